"""The most memory that a process has had."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of what the system counts."""


def high_water(device: torch.device) -> dict[str, int]:
    """The most bytes so far: ``host`` resident, on a GPU also ``allocated`` and ``reserved`` by torch. Nobody waits."""
    host = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT}
    if device.type != "cuda":
        return host
    import torch

    return {
        **host,
        "allocated": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
    }
