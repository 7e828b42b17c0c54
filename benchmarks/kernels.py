"""What lies between the convolutions of the U-Net: its bytes and launches, and the time of each kernel on a GPU.

    python benchmarks/kernels.py            # JSON lines; without a GPU what can be said without one

The bound: every activation that must be read or written, once, at the rate at which this machine copies. Counting
runs the network of 59.0 million weights on the ``meta`` device and looks at every operator. Without a GPU the
kernels are checked against torch in float32, interpreted, which takes minutes (``TRITON_INTERPRET=1``, Triton 3.7
with NumPy 2.4).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from attrs import define, field
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from hookloop.diffusion.fused import Fused  # noqa: E402
from hookloop.diffusion.kernels import Passes, Plain, deviation  # noqa: E402
from hookloop.diffusion.unet import UNet  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

H100 = 3.0e12
"""Bytes a second, for counts made without a GPU (reference: 3 TB/s of 3.35)."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BATCHES = (1, 4, 16)


class Autocast(Plain):
    """Torch's passes as autocast runs them on CUDA: normalisation in float32, and a cast before each convolution."""

    def _norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), norm.num_groups, norm.weight, norm.bias, norm.eps)

    def normalised(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """See ``Passes``."""
        return F.silu(self._norm(norm, x)).to(x.dtype)

    def modulated(self, conv: nn.Conv2d, x: Tensor, norm: nn.GroupNorm, modulation: Tensor) -> Tensor:
        """See ``Passes``."""
        scale, shift = modulation[:, :, None, None].chunk(2, 1)
        return F.silu(self._norm(norm, conv(x)) * (1 + scale) + shift).to(x.dtype)


def network(device: str) -> UNet:
    """The network of the published comparison: 128 channels, [1, 2, 2, 2], 4 blocks, 4 inputs, 1 output."""
    torch.manual_seed(0)
    with torch.device(device):
        return UNet(1, 4, channels=128, multipliers=(1, 2, 2, 2), blocks=4, attention=False)


def size(value: object) -> int:
    """Bytes of all tensors in *value*."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def convolution(args: Sequence[Any], out: Any) -> dict[str, tuple[int, int]]:
    """The convolution, and its bias, which ATen adds in a pass of its own."""
    bias = {} if args[2] is None else {"between": (2 * size(out), 1)}
    return {"convolutions": (size(args[:2]) + size(out), 1), **bias}


def convolution_backward(args: Sequence[Any], _out: Any) -> dict[str, tuple[int, int]]:
    """The gradients of input and weight, each of the gradient and the other, and the sum for the bias."""
    gradient, x, weight = args[:3]
    of_input, of_weight, of_bias = args[-1]
    bias = {"between": (size(gradient), 1)} if of_bias else {}
    asked = of_input + of_weight
    return {"convolutions": (asked * size([gradient, x, weight]), asked), **bias}


COSTS: dict[str, Callable[[Sequence[Any], Any], dict[str, tuple[int, int]]]] = {
    "convolution": convolution,
    "convolution_backward": convolution_backward,
    # ATen's read their input twice, backward both inputs; the small kernels stand there too.
    "native_group_norm": lambda args, out: {"between": (2 * size(args[0]) + size(out[0]), 3)},
    "native_group_norm_backward": lambda args, out: {"between": (2 * size(args[:2]) + size(out[0]), 5)},
    "norm_silu": lambda args, out: {"between": (2 * size(args[0]) + size(out[:2]), 2 + len(args[0]))},
    "norm_silu_backward": lambda args, out: {
        "between": (2 * size([args[0], args[2]]) + size(args[1]) + size(out[0]), 3)
    },
    "merge_backward": lambda args, out: {"between": (size(args[0]) + size(out), 2)},
}
"""Bytes and launches of operators that are more than one pass, from their arguments and answers."""
NOTHING = {"detach", "_unsafe_view", "empty", "new_empty", "empty_like"}


@define(eq=False)
class Traffic(TorchDispatchMode):
    """Count what every operator reads and writes, and its kernels; convolutions apart."""

    moved: Counter[str] = field(factory=Counter)
    launches: Counter[str] = field(factory=Counter)

    def __attrs_pre_init__(self) -> None:
        """Become a mode."""
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run it and count it."""
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if not func.is_view and name not in NOTHING:
            one_pass = {"between": (size([args, kwargs]) + size(out), 1)}
            costs = COSTS[name](args, out) if name in COSTS else one_pass
            for kind, (moved, launches) in costs.items():
                self.moved[kind] += moved
                self.launches[kind] += launches
        return out


def counted(passes: Passes, batch: int, *, train: bool) -> Traffic:
    """What a forward moves, and a backward where *train*, in bfloat16 with norms in float32."""
    net = network("meta").bfloat16()
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.float()
    net.passes = passes
    inputs = [torch.empty(batch, c, 128, 128, dtype=torch.bfloat16, device="meta") for c in (1, 4)]
    label = torch.empty(batch, dtype=torch.bfloat16, device="meta")
    with torch.set_grad_enabled(train), Traffic() as traffic:
        out = net(*inputs, label)
        if train:
            out.backward(torch.empty_like(out))
    return traffic


def count() -> None:
    """Say what the passes before and now move and launch, in the network at batch 16."""
    for train in (False, True):
        for passes in (Autocast(), Plain(), Fused()):
            traffic = counted(passes, 16, train=train)
            say(
                "count",
                passes=type(passes).__name__.lower(),
                what="forward and backward" if train else "forward",
                gb_between=round(traffic.moved["between"] / 1e9, 2),
                ms_at_3_tb_s=round(traffic.moved["between"] / H100 * 1e3, 2),
                launches_between=traffic.launches["between"],
                gb_convolutions=round(traffic.moved["convolutions"] / 1e9, 2),
                launches_convolutions=traffic.launches["convolutions"],
            )


def say(benchmark: str, /, **found: object) -> None:
    """One line of JSON."""
    print(json.dumps({"benchmark": benchmark, **found}), flush=True)


def timed(work: Callable[[], object], rounds: int = 20) -> float:
    """Median milliseconds on the GPU, after warming up."""
    for _ in range(5):
        work()
    taken = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end))
    return statistics.median(taken)


def graphed(work: Callable[[], object]) -> Callable[[], object]:
    """The same as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def kernels() -> None:
    """Time group norm with silu, and the residual sum, on 16×256×128² bfloat16, beside torch's and the bytes."""
    ceiling = torch.empty(1 << 29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(ceiling)
    rate = 2 * ceiling.numel() / (timed(lambda: target.copy_(ceiling)) * 1e-3)
    say("copy", tb_s=round(rate / 1e12, 3), device=torch.cuda.get_device_name(), torch=torch.__version__)
    norm = nn.GroupNorm(32, 256, device="cuda")
    conv = nn.Conv2d(256, 256, 1, device="cuda", dtype=torch.bfloat16)
    for layout, form in LAYOUTS.items():
        x = torch.randn(16, 256, 128, 128, device="cuda").bfloat16().contiguous(memory_format=form)
        x.requires_grad_()
        g = torch.randn_like(x)
        whole = size(x)
        compiled = torch.compile(lambda x, norm=norm: F.silu(norm(x.float())).bfloat16())
        plain: dict[str, Callable[[], Tensor]] = {
            "autocast": lambda x=x: Autocast().normalised(norm, x),
            "compiled": lambda x=x, compiled=compiled: compiled(x),
            "fused": lambda x=x: Fused().normalised(norm, x),
        }
        merged: dict[str, Callable[[], Tensor]] = {
            "torch": lambda x=x, g=g: (x + (g + conv.bias[:, None, None])) * 0.5**0.5,  # type: ignore[index]
            "fused": lambda x=x, g=g: torch.ops.hookloop.merge(x, g, conv.bias, 0.5**0.5),
        }
        for what, variants, passes in (("norm_silu", plain, (3, 5)), ("merge", merged, (3, 0))):
            for name, work in variants.items():
                with torch.no_grad():
                    forward = timed(work)
                found = {
                    "forward_ms": round(forward, 4),
                    "forward_bound_ms": round(passes[0] * whole / rate * 1e3, 4),
                }
                if passes[1]:
                    out = work()
                    leaves = [x, norm.weight, norm.bias]
                    backward = timed(
                        lambda out=out, g=g, of=leaves: torch.autograd.grad(out, of, g, retain_graph=True)
                    )
                    found |= {
                        "backward_ms": round(backward, 4),
                        "backward_bound_ms": round(passes[1] * whole / rate * 1e3, 4),
                    }
                say(what, layout=layout, passes=name, **found)


def networks() -> None:
    """Time the network, bf16 autocast: forward, forward as a graph, forward and backward."""
    for batch in BATCHES:
        for layout, form in LAYOUTS.items():
            net = network("cuda").to(memory_format=form)  # type: ignore[call-overload]
            given = [torch.randn(batch, c, 128, 128, device="cuda") for c in (1, 4)]
            given = [part.contiguous(memory_format=form) for part in given]
            label = torch.randn(batch, device="cuda")
            for passes in (Plain(), Fused()):
                net.passes = passes

                def forward(net: UNet = net, given: list[Tensor] = given, label: Tensor = label) -> Tensor:
                    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                        out: Tensor = net(*given, label)
                    return out

                def step(net: UNet = net, forward: Callable[[], Tensor] = forward) -> None:
                    net.zero_grad()
                    forward().float().square().mean().backward()

                with torch.no_grad():
                    found = {"forward_ms": timed(forward), "forward_graph_ms": timed(graphed(forward))}
                torch.cuda.reset_peak_memory_stats()
                found |= {"step_ms": timed(step)}
                found |= {"step_gb": torch.cuda.max_memory_allocated() / 1e9}
                name = type(passes).__name__.lower()
                say(
                    "network",
                    batch=batch,
                    layout=layout,
                    passes=name,
                    **{k: round(v, 3) for k, v in found.items()},
                )


def main() -> int:
    """Correctness before speed: nothing is timed where the kernels are wrong."""
    device = torch.device("cuda" if GPU else "cpu")
    far = {str(d): deviation(Fused(), device, d) for d in (torch.float32, torch.bfloat16)}
    allowed = {
        "torch.float32": 5e-3 if GPU else 1e-5,
        "torch.bfloat16": 2e-2,
    }  # convolutions in TF32 on a GPU
    right = all(far[name] <= limit for name, limit in allowed.items())
    say("correct", device=str(device), deviation=far, allowed=allowed, right=right)
    count()
    if GPU and right:
        kernels()
        networks()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
