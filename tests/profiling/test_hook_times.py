"""Times are those that the clock told, and hooks behave as they did."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from attrs import define
from clocks import Clock

from hookloop import hookimpl
from hookloop.hot import freeze
from hookloop.manager import register
from hookloop.profiling import hook_times
from hookloop.profiling.hook_times import HookTimes

if TYPE_CHECKING:
    from collections.abc import Generator

    from pluggy import HookRelay, PluginManager


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the times are measured with."""
    made = Clock()
    monkeypatch.setattr(hook_times, "now", made)
    return made


def timed(*plugins: object) -> tuple[HookTimes, HookRelay, ExitStack]:
    """Register plugins called a, b, …, in this order, and time them."""
    relay = manager_of(*plugins).hook
    times, cleanup = HookTimes(), ExitStack()
    times.attach(relay, cleanup)
    return times, relay, cleanup


def manager_of(*plugins: object) -> PluginManager:
    """Call them a, b, …."""
    return register(dict(zip("abcd", plugins, strict=False)))


def table_of(times: HookTimes) -> dict[tuple[str, str], tuple[int, int, int, int, int]]:
    """Calls, total, own, outermost and longest, where there was a call."""
    return {
        (row.hook, row.plugin): (row.calls, row.total, row.own, row.outermost, row.longest)
        for row in times
        if row.calls
    }


def test_a_hook_that_calls_another_is_not_counted_twice(clock: Clock) -> None:
    """3 before, 5 in the inner hook, 2 after: 10 in all, of which 5 its own; the inner 5 are nobody's else."""

    @define(eq=False)
    class Outer:
        relay: HookRelay | None = None

        @hookimpl
        def before_epoch(self) -> None:
            clock.spend(3)
            assert self.relay is not None
            self.relay.log(run=None, metrics={})
            clock.spend(2)

    class Inner:
        @hookimpl
        def log(self) -> None:
            clock.spend(5)

    times, relay, _ = timed(outer := Outer(), Inner())
    outer.relay = relay
    relay.before_epoch(run=None)
    relay.before_epoch(run=None)
    assert table_of(times) == {
        ("before_epoch", "a"): (2, 20, 10, 20, 5),
        ("log", "b"): (2, 10, 10, 0, 5),
    }
    assert times.outermost("before_epoch", "log") == 20
    assert (times.own("a"), times.own("b"), times.calls) == (10, 10, 4)
    assert times.left == clock.at


def test_a_wrapper_is_not_charged_for_what_it_wraps(clock: Clock) -> None:
    """2 before and 4 after are one call of 6; the 7 within belong to what is wrapped; the answer is changed."""

    class Wrapper:
        @hookimpl(wrapper=True)
        def validate(self) -> Generator[None, list[object], list[object]]:
            clock.spend(2)
            answers = yield
            clock.spend(4)
            return [*answers, {"more": 1.0}]

    class Wrapped:
        @hookimpl
        def validate(self) -> dict[str, float]:
            clock.spend(7)
            return {"val/loss": 0.0}

    times, relay, _ = timed(Wrapper(), Wrapped())
    assert relay.validate(run=None) == [{"val/loss": 0.0}, {"more": 1.0}]
    assert table_of(times) == {("validate", "a"): (1, 6, 6, 6, 4), ("validate", "b"): (1, 7, 7, 7, 7)}


def test_a_wrapper_still_catches(clock: Clock) -> None:
    """What is raised within reaches it, and what it makes of it is what the caller gets; all are timed."""

    class Catching:
        @hookimpl(wrapper=True)
        def train_step(self) -> Generator[None, object, object]:
            try:
                return (yield)
            except ValueError as error:
                clock.spend(3)
                return {"caught": str(error)}

    class Failing:
        @hookimpl
        def train_step(self) -> None:
            clock.spend(5)
            raise ValueError("broken")

    times, relay, _ = timed(Catching(), Failing())
    assert relay.train_step(run=None, batch=None) == {"caught": "broken"}
    assert table_of(times) == {("train_step", "a"): (1, 3, 3, 3, 3), ("train_step", "b"): (1, 5, 5, 5, 5)}


class TwoYields:
    """No wrapper."""

    @hookimpl(wrapper=True)
    def validate(self) -> Generator[None, object, object]:
        """Yield twice."""
        yield
        yield


class NoYield:
    """No wrapper either."""

    @hookimpl(wrapper=True)
    def validate(self) -> Generator[None, object, object]:
        """Yield never."""
        if self is None:
            yield


class OldStyle:
    """A wrapper as pluggy had them before 1.0."""

    @hookimpl(hookwrapper=True)
    def validate(self) -> Generator[None, object, None]:
        """Look at the result."""
        result = yield
        result.force_result([*result.get_result(), "seen"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("plugin", [TwoYields, NoYield, OldStyle])
def test_odd_wrappers_end_as_without_being_timed(plugin: type) -> None:
    """The same answer, or the same error with the place of the wrapper in it."""

    def outcome(relay: HookRelay) -> object:
        try:
            return relay.validate(run=None)
        except RuntimeError as error:
            return str(error)

    _, relay, _ = timed(plugin())
    assert outcome(relay) == outcome(manager_of(plugin()).hook)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_hooks_are_timed_too(clock: Clock, frozen: bool) -> None:  # noqa: FBT001
    """Both ways of calling a hook see the implementation that is timed, with the arguments that it names."""
    seen: list[object] = []

    class Plugin:
        @hookimpl
        def after_batch(self, losses: object, run: object) -> None:
            clock.spend(9)
            seen.append((run, losses))

    times, relay, _ = timed(Plugin())
    if frozen:
        freeze(relay.after_batch)("r", "b", "l")
    else:
        relay.after_batch(run="r", batch="b", losses="l")
    assert seen == [("r", "l")]
    assert table_of(times) == {("after_batch", "a"): (1, 9, 9, 9, 9)}


def test_a_failure_is_timed_and_goes_on(clock: Clock) -> None:
    """And the next call is again an outermost one."""

    class Failing:
        @hookimpl
        def log(self, metrics: object) -> None:
            clock.spend(4)
            if metrics:
                raise ValueError("broken")

    times, relay, _ = timed(Failing())
    with pytest.raises(ValueError, match="broken"):
        relay.log(run=None, metrics={"x": 1.0})
    relay.log(run=None, metrics={})
    assert table_of(times) == {("log", "a"): (2, 8, 8, 8, 4)}


def test_everything_is_put_back() -> None:
    """The functions are the very ones that were there, also where two have timed them."""

    def functions(relay: HookRelay) -> list[object]:
        callers = vars(relay).values()
        return [impl.function for caller in callers for impl in caller.get_hookimpls()]

    manager = manager_of(OldStyle(), TwoYields())
    before, cleanup = functions(manager.hook), ExitStack()
    for times in (HookTimes(), HookTimes()):
        times.attach(manager.hook, cleanup)
    assert not set(before) & set(functions(manager.hook))
    cleanup.close()
    assert functions(manager.hook) == before


def test_labels_stand_around_the_calls_while_there_are_any() -> None:
    """Each is named by hook and plugin; both halves of a wrapper are."""
    labels: list[str] = []

    def label(name: str) -> ExitStack:
        labels.append(name)
        return ExitStack()

    class Plugin:
        @hookimpl
        def log(self) -> None:
            """Do nothing."""

    times, relay, _ = timed(Plugin(), OldStyle())
    relay.log(run=None, metrics={})
    times.label = label
    relay.log(run=None, metrics={})
    relay.validate(run=None)
    times.label = None
    relay.log(run=None, metrics={})
    assert labels == ["log a", "validate b", "validate b"]


def test_timing_a_call_costs_little() -> None:
    """More than nothing and less than 100 µs, on any machine that tests are run on."""
    assert 0 < hook_times.cost_of_timing() < 100_000
