"""The time of every hook of every plugin, by wrapping the implementations."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from time import perf_counter_ns as now
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from contextlib import AbstractContextManager, ExitStack
    from types import CodeType

    from pluggy import HookImpl, HookRelay

    Implementation = Callable[..., object]

_CALIBRATION = 2000
"""Calls to find out what measuring one costs."""


@define(eq=False)
class HookTime:
    """What one hook of one plugin has taken, in nanoseconds."""

    hook: str
    plugin: str
    calls: int = 0
    total: int = 0
    """With the hooks that it has called itself."""
    own: int = 0
    """Without them; what a wrapper wraps is in neither."""
    outermost: int = 0
    """Of the total, what no other hook has called."""
    longest: int = 0
    """The longest own time in one go."""


@define(eq=False)
class HookTimes:
    """Times implementations on the thread that calls the hooks."""

    rows: dict[str, dict[str, HookTime]] = field(factory=dict)
    """By hook, then by plugin."""
    left: int = field(factory=now)
    """When the last hook ended that no other had called."""
    label: Callable[[str], AbstractContextManager[object]] | None = None
    """What marks an implementation, ``hook plugin``, while a trace is taken."""
    _within: list[int] = field(factory=lambda: [0])
    """What was taken within each of the calls at hand."""

    def attach(self, relay: HookRelay, cleanup: ExitStack) -> None:
        """Time every implementation, called by pluggy or frozen, until *cleanup* is unwound."""
        for hook, caller in vars(relay).items():
            for impl in caller.get_hookimpls():
                row = self.row(hook, impl.plugin_name)
                function = impl.function
                wraps = impl.wrapper or impl.hookwrapper
                _replace(impl, self.timed_wrapper(row, function) if wraps else self.timed(row, function))
                cleanup.callback(_replace, impl, function)

    def timed(self, row: HookTime, function: Implementation, calls: int = 1) -> Implementation:
        """Make a *function* that does the same and adds its time, and so many *calls*, to *row*."""
        within, name = self._within, f"{row.hook} {row.plugin}"

        def call(*arguments: object, **named: object) -> object:
            within.append(0)
            began = now()
            try:
                if self.label is None:
                    return function(*arguments, **named)
                with self.label(name):
                    return function(*arguments, **named)
            finally:
                spent = now() - began
                own = spent - within.pop()
                within[-1] += spent
                row.calls += calls
                row.total += spent
                row.own += own
                row.longest = max(own, row.longest)
                if len(within) == 1:
                    row.outermost += spent
                    self.left = began + spent

        return call

    def timed_wrapper(
        self, row: HookTime, function: Callable[..., Generator[object, object, object]]
    ) -> Implementation:
        """Make a wrapper that does the same, and times what it does before and after what it wraps."""

        def call(*arguments: object, **named: object) -> _TimedWrapper:
            return _TimedWrapper(self, row, function(*arguments, **named))

        return call

    def row(self, hook: str, plugin: str) -> HookTime:
        """Give the row of one *hook* of one *plugin*."""
        return self.rows.setdefault(hook, {}).setdefault(plugin, HookTime(hook, plugin))

    def __iter__(self) -> Iterator[HookTime]:
        """Every row."""
        for rows in self.rows.values():
            yield from rows.values()

    def outermost(self, *hooks: str) -> int:
        """Nanoseconds in these *hooks* where no other hook had called them."""
        return sum(row.outermost for hook in hooks for row in self.rows.get(hook, {}).values())

    def own(self, plugin: str) -> int:
        """Nanoseconds that a *plugin* has taken itself."""
        return sum(row.own for row in self if row.plugin == plugin)

    @property
    def calls(self) -> int:
        """How many calls were timed."""
        return sum(row.calls for row in self)


@define(eq=False)
class _TimedWrapper(Generator[object, object, object]):
    """A wrapper's generator whose two halves are timed."""

    _times: HookTimes
    _row: HookTime
    _generator: Generator[object, object, object]
    _calls: int = 1
    """The first half counts the call."""

    def send(self, value: object) -> object:
        """Do the next half."""
        calls, self._calls = self._calls, 0
        return self._times.timed(self._row, self._generator.send, calls)(value)

    def throw(self, *error: object) -> object:
        """Do the second half after a failure."""
        return self._times.timed(self._row, self._generator.throw, 0)(*error)

    def close(self) -> None:
        """End early."""
        self._generator.close()

    @property
    def gi_code(self) -> CodeType:
        """Where it is written: pluggy tells it in its errors."""
        return self._generator.gi_code  # type: ignore[attr-defined, no-any-return]


def _replace(impl: HookImpl, function: Implementation) -> None:
    """Have both pluggy and frozen hooks call *function*: they look it up when they call and when they freeze."""
    impl.function = function  # type: ignore[misc]


def cost_of_timing() -> float:
    """Measure what timing adds to a call, in nanoseconds."""
    function = int
    timed = HookTimes().timed(HookTime("", ""), function)
    bare, measured = (_duration(one) for one in (function, timed))
    return max(measured - bare, 0) / _CALIBRATION


def _duration(function: Implementation) -> int:
    began = now()
    for _ in range(_CALIBRATION):
        function()
    return now() - began
