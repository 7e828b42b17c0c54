"""``signals``: asked to end by the system or the keyboard, a run saves its state first; or saves and goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from attrs import Attribute, define, field

from hookloop.hookspecs import hookimpl
from hookloop.settings import doc

if TYPE_CHECKING:
    from types import FrameType

    from hookloop.core import Run

_UNCATCHABLE = {"SIGKILL", "SIGSTOP"}
_SAME_SECONDS = 5.0
"""How long one signal may take on its ways to a rank: from the keyboard or the scheduler, and from the launcher."""


def _catchable(_instance: object, _attribute: Attribute[list[str]], value: list[str]) -> None:
    known = {number.name for number in signal.Signals} - _UNCATCHABLE
    if wrong := [name for name in value if name not in known]:
        raise ValueError(f"expected signals that can be caught, such as SIGTERM, found {', '.join(wrong)}")


@define(eq=False)
class Signals:
    """Turns the first signal into a request to stop; the second one stops at once.

    The process answers 128 + the signal's number either way. Other signals ask for the state to be saved now.
    Of several ranks one that is asked is enough, rank 0 tells it, and the same signal counts once in 5 seconds.
    """

    names: list[str] = field(
        factory=lambda: ["SIGTERM", "SIGINT", "SIGHUP"],
        validator=_catchable,
        metadata=doc(
            "signals that stop the run at the next boundary, its state saved; SIGHUP not under nohup"
        ),
    )

    save: list[str] = field(
        factory=lambda: ["SIGUSR1", "SIGUSR2"],
        validator=_catchable,
        metadata=doc("signals that save the state after the batch at hand, unless they are to stop the run"),
    )

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Install the handlers; the earlier ones come back when the run ends."""
        if threading.current_thread() is not threading.main_thread():
            run.events.warning("signals.skipped", reason="only the main thread can handle signals")
            return
        stopping, saving = ({signal.Signals[name] for name in names} for names in (self.names, self.save))
        handler = _Handler(run, os.getpid(), frozenset(saving - stopping))
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup: the terminal may be closed
            stopping, saving = stopping - {signal.SIGHUP}, saving - {signal.SIGHUP}
        for number in sorted(stopping | saving):
            run.cleanup.callback(signal.signal, number, signal.signal(number, handler) or signal.SIG_DFL)


@define(eq=False, repr=False)  # giving a handler back, signal.signal looks at its repr: of the whole run
class _Handler:
    """Does next to nothing, because a handler may interrupt anything."""

    run: Run
    owner: int
    """The process that is to be stopped."""
    saving: frozenset[signal.Signals]
    """Those that only ask for the state to be saved."""
    first: tuple[int, float] | None = None
    """The signal that asked for the end, and when."""

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.owner:
            # A forked worker inherits the handler, but its death is nobody's request to stop.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        name = signal.Signals(number).name
        if number in self.saving:
            self.run.save(name)
            self._say(f"hookloop: {name}: saving after this batch")
        elif self.first is None:
            self.first = number, time.monotonic()
            self.run.stop(name, 128 + number)
            self._say(f"hookloop: {name}: stopping at the next boundary; once more stops at once")
        elif not self._is_the_same(number):
            os._exit(128 + number)

    def _is_the_same(self, number: int) -> bool:
        """Whether the first request has arrived once more, by another way."""
        assert self.first is not None
        first, at = self.first
        return self.run.ranks.world > 1 and number == first and time.monotonic() - at < _SAME_SECONDS

    def _say(self, text: str) -> None:
        if self.run.ranks.leads:
            with suppress(OSError):
                os.write(2, f"{text}\n".encode())
