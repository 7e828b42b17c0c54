"""Trying something out on a run, and undoing it bit for bit."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from hookloop.snapshot import copied

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hookloop.core import Run
    from hookloop.resume import Stateful


@contextmanager
def undone(run: Run, plugins: Iterable[Stateful] = ()) -> Iterator[None]:
    """Undo on leaving, however it is left, what has happened to the run's state.

    That is weights, buffers, moments, waiting gradients, rates, the state of *plugins* and torch's generators.
    Meanwhile a copy of all this takes as much memory again, on the same device.
    """
    model = run.task.model
    weights = [(p, p.detach().clone()) for p in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    states = [(part, copied(part.state_dict())) for part in (run.optimization, *plugins)]
    accelerator = run.device.type != "cpu"
    with torch.random.fork_rng(
        [run.device] if accelerator else [], device_type=run.device.type if accelerator else "cuda"
    ):
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, saved in weights:
                    weight.copy_(saved)
                for module, name, buffer, saved in buffers:
                    buffer.copy_(saved)
                    setattr(module, name, buffer)  # a layer may have put another in its place
            for part, state in states:
                part.load_state_dict(state)
