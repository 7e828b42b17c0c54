"""Where the time of a training step goes: kernels on the device, by name and by kind."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu.ours import bare_step, fields_task, pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.autograd.profiler_util import FunctionEventAvg

    from gpu.bench import Bench
    from gpu.sizes import Network

_TOP = 20
"""Kernels told by name."""
_KINDS = (
    ("optimizer and averages", r"multi_tensor|foreach|fused_adam|lerp"),
    # Inductor's names tell all that is fused, also next to which convolution.
    ("norms", r"^triton_(poi|red|per)_\w*norm"),
    ("elementwise", r"^triton_poi"),
    ("reductions", r"^triton_(red|per)"),
    ("copies, casts and layouts", r"nchwToNhwc|nhwcToNchw|convertTensor"),  # cuDNN's, beside convolutions
    (
        "convolutions and products",
        r"conv|gemm|cutlass|xmma|cudnn|wgrad|dgrad|mm\b|nvjet|flash|fmha|attention",
    ),
    ("norms", r"^(statistics|coefficients|activate|reduce_gradient|finish_gradient|differentiate)"),
    ("norms", r"norm|welford|moments|ComputeFusedParams|ComputeInternalGradients|GammaBeta"),
    ("copies, casts and layouts", r"copy|memcpy|memset|cat|transpose|nchw|nhwc|_to_copy|fill"),
    ("reductions", r"reduce|sum|mean"),
    (
        "elementwise",
        r"^(merge|divide_gradient)|elementwise|silu|add|mul|pow|sqrt|pad|upsample|distribution|normal",
    ),
)
"""The first that fits."""


def measure(bench: Bench) -> None:
    """One bare step at the first batch size, and one at the shape of HiRO."""
    sizes = bench.sizes
    for network, n in ((sizes.main, min(sizes.step_targets)), (sizes.hiro, sizes.hiro_batch)):
        what = f"profile: training step, {network.size}², batch {n}"
        with bench.book.attempt(what):
            _tell(bench, what, network, n)
        bench.clock.release()


def _tell(bench: Bench, what: str, network: Network, n: int) -> None:
    step = bare_step(fields_task(network, bench.device), pairs(network, n, bench.device))
    for _ in range(3):
        step()
    wall = bench.clock.block(step, 3)
    events = _profiled(bench, step)
    times = {event.key: _microseconds(event) for event in events}
    busy = sum(times.values()) / 1e6
    launches = sum(event.count for event in events)
    bench.book.add(what, 1e3 * wall, "ms", device_busy=1e3 * busy, share_busy=busy / wall, launches=launches)
    kinds: Counter[str] = Counter()
    for name, spent in times.items():
        kinds[kind_of(name)] += spent  # type: ignore[assignment]  # a counter of microseconds
    for kind, spent in kinds.most_common():
        bench.book.add(f"{what}: {kind}", spent / 1e3, "ms", share=spent / 1e6 / busy)
    for event in sorted(events, key=_microseconds, reverse=True)[:_TOP]:
        spent = _microseconds(event)
        name = event.key[:160]
        bench.book.add(
            f"{what}: kernel", spent / 1e3, "ms", kernel=name, calls=event.count, share=spent / 1e6 / busy
        )


def _profiled(bench: Bench, step: Callable[[], object]) -> list[FunctionEventAvg]:
    """Kernels of one step; on a CPU its operators."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
        bench.clock.idle()
    wanted = DeviceType.CUDA if bench.on_gpu else DeviceType.CPU
    return [
        event
        for event in profiler.key_averages()
        if event.device_type == wanted and not event.is_user_annotation and _microseconds(event)
    ]


def _microseconds(event: FunctionEventAvg) -> float:
    """Spent in it alone."""
    on_device = event.device_type == DeviceType.CUDA
    return float(event.self_device_time_total if on_device else event.self_cpu_time_total)


def kind_of(kernel: str) -> str:
    """Guess from its name what a kernel does."""
    return next((kind for kind, words in _KINDS if re.search(words, kernel, re.IGNORECASE)), "other")
