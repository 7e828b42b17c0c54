"""Generate ensembles window by window, without knowing what a window or its state is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import define, evolve, field, frozen

from hookloop.errors import HookloopError
from hookloop.passing import receive_fields, send_fields
from hookloop.spreading import spread, windows_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hookloop.core import Run
    from hookloop.spreading import Part
    from hookloop.task import Generative, Paired, State, Window


@frozen(eq=False)
class Generated:
    """A window with all its members."""

    number: int
    """Of the window among all of the split, in the order of the cases."""
    paired: Paired


def ensembles(
    run: Run, task: Generative, split: str, *, members: int, max_batch: int, limit: int | None = None
) -> Iterator[Generated | None]:
    """Yield each window of *split* with all its members; end early once the run is asked to stop.

    Member *k* of a case is seeded by the run, the case and *k* alone, so it is the same for any *max_batch* and any
    number of ranks. Each piece of the ensemble has a state of its own, which it carries from window to window. All
    ranks yield equally often: ``None`` in a turn that leaves a rank nothing to score.

    :param max_batch: fields generated at once; a larger ensemble is generated in pieces.
    :param limit: cases in all; the task chooses them, ``None`` for all.
    :raises HookloopError: where there is no case.
    """
    rank, world = run.ranks.rank, run.ranks.world
    chains = windows_for(world, max(1, max_batch // members), lambda size: task.windows(split, size, limit))
    if not chains:
        raise HookloopError(f"generation: found no case in the split {split}, expected at least one")
    parts = spread(chains, members, world)
    turns = max(len(part.windows) for part in parts)
    pieces = max(-(-len(share) // max_batch) for part in parts for share in part.shares)
    own = parts[rank]
    sampler = _Sampler(run, task, split, _pieces(own.share_of(rank), max_batch))
    for turn in range(turns):
        number, window = own.windows[turn] if turn < len(own.windows) else (0, None)
        generated: list[Paired] = []
        for i in range(pieces):
            if run.agree():
                return
            if window is not None and i < len(sampler.pieces):
                generated.append(sampler.generate(window, i))
        paired = _collected(generated, own, rank) if window is not None else None
        yield Generated(number, paired) if paired is not None else None


@define(eq=False)
class _Sampler:
    """Generates members in pieces."""

    run: Run
    task: Generative
    split: str
    pieces: Sequence[range]
    """The numbers of the members that are generated together."""
    _states: dict[int, State] = field(init=False, factory=dict)
    """Of each piece, where its last window ended."""

    def generate(self, window: Window, piece: int) -> Paired:
        """Generate a piece of *window*, and note where it ends."""
        if piece not in self._states or not window.continues:
            self._states[piece] = self.task.initial_condition(self.split)
        members = self.pieces[piece]
        seeds = [[self.run.seed("sample", case, member) for member in members] for case in window.cases]
        paired, self._states[piece] = self.task.predict_paired(
            self._states[piece], window, seeds, members.start
        )
        return paired


def _pieces(members: range, size: int) -> list[range]:
    return [members[start : start + size] for start in range(0, len(members), size)]


def _collected(generated: Sequence[Paired], part: Part, rank: int) -> Paired | None:
    """Bring the members of a window to the rank that scores them, in order; ``None`` on the others."""
    joined = _joined(generated) if generated else None
    if rank != part.team[0]:
        if joined is not None:
            send_fields(joined.prediction, part.team[0])
        return None
    assert joined is not None
    others = [
        evolve(joined, prediction=receive_fields(joined.prediction, len(share), other))
        for other, share in zip(part.team[1:], part.shares[1:], strict=True)
        if share
    ]
    return _joined([joined, *others])


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
