"""Which rank generates what: whole windows, or some members of one where there are more ranks than windows."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hookloop.task import Window


@frozen(eq=False)
class Part:
    """What one rank generates: the same members of some windows, one window after another."""

    windows: Sequence[tuple[int, Window]]
    """With their numbers among all windows."""
    team: range
    """The ranks that share these windows; the first of them scores what all have generated."""
    shares: Sequence[range]
    """Which members each of the team generates: the first of it one at least, others perhaps none."""

    def share_of(self, rank: int) -> range:
        """Say which members *rank*, one of the team, generates."""
        return self.shares[self.team.index(rank)]


def windows_for(
    world: int, most: int, windows: Callable[[int], Sequence[Window]]
) -> Sequence[Sequence[tuple[int, Window]]]:
    """Divide cases into windows so that *world* ranks have as much to do, where that can be.

    :param most: cases that may be in a window; with one rank there are as many.
    :param windows: gives the windows of at most so many cases.
    :returns: numbered windows; each inner sequence goes on from its own first one and must stay on one rank.
    """
    largest = chains(windows(most))
    if world == 1 or len(largest) == len(smallest := chains(windows(1))):
        return largest
    turns = -(-len(smallest) // (world * most))
    return chains(windows(-(-len(smallest) // (world * turns))))


def chains(windows: Sequence[Window]) -> list[list[tuple[int, Window]]]:
    """Number *windows*, and keep those together that go on from one another."""
    found: list[list[tuple[int, Window]]] = []
    for number, window in enumerate(windows):
        if not found or not window.continues:
            found.append([])
        found[-1].append((number, window))
    return found


def spread(parts: Sequence[Sequence[tuple[int, Window]]], members: int, world: int) -> list[Part]:
    """Say for each of *world* ranks what it generates.

    Chains of windows are dealt out in turn. Where there are fewer of them than ranks, the others help: members
    are divided evenly among the team of a chain.

    :param parts: at least one chain, as :func:`chains` gives them.
    """
    teams = min(len(parts), world)
    found = []
    for rank in range(world):
        team = range(rank % teams, world, teams)
        ends = [-(-i * members // len(team)) for i in range(len(team) + 1)]
        windows = [numbered for chain in parts[team.start :: teams] for numbered in chain]
        shares = [range(start, end) for start, end in pairwise(ends)]
        found.append(Part(windows, team, shares))
    return found
