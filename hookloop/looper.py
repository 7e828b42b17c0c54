"""Generate ensembles window by window, without knowing what a window or its state is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import evolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hookloop.core import Run
    from hookloop.task import Generative, Paired, Window


def ensembles(
    run: Run, task: Generative, split: str, *, members: int, max_batch: int, limit: int | None
) -> Iterator[tuple[Window, Paired]]:
    """Yield each window of *split* with all its members; end early once the run is asked to stop.

    Member *k* of a case is seeded by the run, the case and *k* alone, so it is the same for any *max_batch*.
    Each part of the ensemble has a state of its own, which it carries from window to window.

    :param max_batch: fields generated at once; a larger ensemble is generated in parts.
    :param limit: cases in all; the task chooses them, ``None`` for all.
    """
    parts = [range(start, min(start + max_batch, members)) for start in range(0, members, max_batch)]
    states = [task.initial_condition(split) for _ in parts]
    for window in task.windows(split, max(1, max_batch // members), limit):
        generated = []
        for i, part in enumerate(parts):
            if run.stopping:
                return
            seeds = [[run.seed("sample", case, member) for member in part] for case in window.cases]
            paired, states[i] = task.predict_paired(states[i], window, seeds, part.start)
            generated.append(paired)
        yield window, _joined(generated)


def _joined(parts: Sequence[Paired]) -> Paired:
    """Put the members of all parts beside one another."""
    if len(parts) == 1:
        return parts[0]
    return evolve(
        parts[0],
        prediction={
            name: torch.cat([part.prediction[name] for part in parts], 1) for name in parts[0].prediction
        },
    )
