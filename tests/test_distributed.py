"""Several processes agree on what to do, whoever asks and whenever."""

from __future__ import annotations

import os
import random
import signal
import time
from fractions import Fraction

import pytest
from ranks import on_ranks

from hookloop.distributed import Joined, Ranks, Requests, Share, Stop, joined
from hookloop.errors import HookloopError

LATE, EARLY = Stop("late", 75), Stop("early", 143)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_shares_hold_every_row_once_and_weigh_as_the_whole(world: int, size: int) -> None:
    """Those of weight 0 hold one row too; the mean over the ranks of weight · mean is the mean of the batch."""
    values = [Fraction(row * row + 1) for row in range(size)]
    shares = [Share(rank, world) for rank in range(world)]
    weighing = [share for share in shares if share.weight(size)]
    assert sorted(row for share in weighing for row in share.rows(size)) == list(range(size))
    means = [sum(values[row] for row in share.rows(size)) / len(share.rows(size)) for share in shares]
    whole = sum(
        Fraction(share.weight(size)).limit_denominator(99) * mean
        for share, mean in zip(shares, means, strict=True)
    )
    assert whole / world == sum(values) / size


def test_one_process_is_alone_and_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of anybody."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as ranks, ranks.leader_first():
        assert (ranks.rank, ranks.world, ranks.leads) == (0, 1, True)
        assert ranks.agree(asked := Requests(EARLY)) == ranks.exchange(asked) == asked
        assert (ranks.gather(3), ranks.broadcast(4)) == ([3], 4)


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names what is missing."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(HookloopError, match="WORLD_SIZE is 2, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        joined(),
    ):
        pass


def exchanged(ranks: Ranks, asked: list[dict[int, Requests]]) -> list[tuple[Stop | None, str | None]]:
    """What a rank hears in a loop where *asked* says, by batch and rank, who asks for what from then on."""
    own, heard = Requests(), []
    for batch in asked:
        new = batch.get(ranks.rank, Requests())
        own.stop, own.save = own.stop or new.stop, own.save or new.save
        agreed = ranks.exchange(own)
        if agreed.save:
            own.save = None
        heard.append((agreed.stop, agreed.save))
    return heard


def test_what_one_asks_all_hear_one_batch_later() -> None:
    """Of two that stop the lowest rank counts, a save is heard once, and nothing is heard that nobody asked."""
    asked = [{}, {1: Requests(save="USR1")}, {}, {}, {1: Requests(LATE)}, {0: Requests(EARLY)}, {}]
    heard = on_ranks(2, exchanged, asked)
    told = Stop("late (rank 1)", 75)
    nothing = (None, None)
    assert (
        heard[0]
        == heard[1]
        == [nothing, nothing, (None, "USR1"), nothing, nothing, (told, None), (told, None)]
    )


def agreed(ranks: Ranks, before: int, *stops: Stop | None) -> Stop | None:
    """Ask at once; the request is already under way where it has been sent *before*."""
    own = Requests(stops[ranks.rank])
    for _ in range(before):
        ranks.exchange(own)
    return ranks.agree(own).stop


@pytest.mark.parametrize("before", [0, 1, 2])
def test_asked_at_once_the_lowest_rank_that_wants_to_stop_is_heard(before: int) -> None:
    """It is named, unless all want the same; nobody is left with what was under way."""
    assert on_ranks(2, agreed, before, None, LATE) == [Stop("late (rank 1)", 75)] * 2
    assert on_ranks(2, agreed, before, EARLY, LATE) == [EARLY] * 2
    assert on_ranks(2, agreed, before, None, None) == [None] * 2


def many_exchanged(ranks: Ranks, schedules: list[list[int | None]]) -> list[list[Stop | None]]:
    """What a rank hears in runs of six batches in which ranks ask to stop at the batches given, if at all."""
    heard = []
    for schedule in schedules:
        assert isinstance(ranks, Joined)
        ranks._settle()  # the run before has ended
        ranks._stop = None
        at = schedule[ranks.rank]
        own = [
            Requests(Stop(f"{ranks.rank}") if at is not None and batch >= at else None) for batch in range(6)
        ]
        heard.append([ranks.exchange(requests).stop for requests in own])
    return heard


def test_whoever_asks_whenever_all_hear_the_same_at_the_same_batch() -> None:
    """Four ranks, 60 schedules: the batch after the first request, the lowest of those who asked by then."""
    choose = random.Random(7)  # noqa: S311 - a test
    schedules = [[choose.choice([None, None, 0, 1, 2, 3, 4, 5]) for _ in range(4)] for _ in range(60)]
    answers = on_ranks(4, many_exchanged, schedules)
    assert all(answer == answers[0] for answer in answers)
    for schedule, heard in zip(schedules, answers[0], strict=True):
        first = min((at for at in schedule if at is not None), default=5)
        asking = [rank for rank, at in enumerate(schedule) if at == first]
        expected = (
            None if first == 5 else Stop(f"{asking[0]}" + (f" (rank {asking[0]})" if len(asking) < 4 else ""))
        )
        assert heard == [None] * (first + 1) + [expected] * (5 - first)


def told(ranks: Ranks) -> tuple[object, ...]:
    return (
        ranks.rank,
        ranks.local,
        ranks.leads,
        ranks.share,
        ranks.gather(ranks.rank * 10),
        ranks.broadcast(f"{ranks.rank}"),
    )


def test_ranks_tell_one_another_small_things() -> None:
    """Gathered by rank; broadcast by rank 0."""
    assert on_ranks(2, told) == [
        (0, 0, True, Share(0, 2), [0, 10], "0"), (1, 1, False, Share(1, 2), [0, 10], "0"),
    ]  # fmt: skip


def led(ranks: Ranks) -> float:
    """When a rank did what rank 0 does first."""
    with ranks.leader_first():
        if ranks.leads:
            time.sleep(0.2)
        return time.time()


def test_rank_0_has_done_it_before_the_others_begin() -> None:
    """So what it remembers is there for them."""
    first, second = on_ranks(2, led)
    assert first <= second


def fails(ranks: Ranks, at: int) -> None:
    if ranks.rank == at:
        raise HookloopError("mine")
    ranks.gather(None)


@pytest.mark.parametrize("at", [0, 1])
def test_who_waits_for_a_rank_that_fails_is_lost_and_no_cause(at: int) -> None:
    """The first real error is raised, and nobody hangs."""
    with pytest.raises(HookloopError, match="mine"):
        on_ranks(2, fails, at)


def refused(ranks: Ranks) -> None:
    with ranks.leader_first():
        if not ranks.leads:
            raise AssertionError("began although rank 0 refused")
        raise HookloopError("no")


def test_where_rank_0_refuses_the_others_do_not_begin() -> None:
    """They end with its exit code, told already."""
    with pytest.raises(HookloopError, match="no"):
        on_ranks(2, refused)


def killed(ranks: Ranks) -> None:
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.gather(None)


def test_a_rank_that_is_killed_is_noticed_at_once() -> None:
    """The other one does not wait until the time is over."""
    began = time.monotonic()
    with pytest.raises(ChildProcessError, match="rank 1 ended with -9"):
        on_ranks(2, killed)
    assert time.monotonic() - began < 60.0


def hangs(ranks: Ranks) -> None:
    if ranks.rank == 1:
        time.sleep(600)
    ranks.gather(None)


def test_a_test_that_hangs_fails() -> None:
    """After its own time limit."""
    with pytest.raises(TimeoutError, match="ranks \\[0, 1\\] of 2 have not answered"):
        on_ranks(2, hangs, seconds=15.0)
