"""A trace of a few steps by torch's profiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen
from torch.profiler import ProfilerActivity, profile, record_function

from hookloop.durable import make_directory

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from hookloop.profiling.hook_times import HookTimes


@frozen(eq=False)
class Trace:
    """Being taken, from :func:`begin` to :meth:`write` or :meth:`drop`."""

    _profile: profile
    _times: HookTimes
    first: int
    """Its first step."""

    def write(self, directory: Path) -> Path:
        """End it and write it, for chrome://tracing or https://ui.perfetto.dev, whole or not at all.

        :raises OSError: where it cannot be written.
        """
        self.drop()
        make_directory(directory)
        path = directory / f"trace_step_{self.first:08d}.json.gz"
        partial = path.with_name(f".partial_{path.name}")
        try:
            self._profile.export_chrome_trace(str(partial))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def drop(self) -> None:
        """End it."""
        self._times.label = None
        self._profile.stop()


def begin(times: HookTimes, device: torch.device, first: int) -> Trace:
    """Begin a trace in which hooks stand by name, as ``hook plugin``."""
    gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    profiler = profile(activities=[ProfilerActivity.CPU, *gpu])
    profiler.start()
    times.label = record_function
    return Trace(profiler, times, first)
