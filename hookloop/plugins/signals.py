"""``signals``: asked to end by the system or the keyboard, a run saves its state first; or saves and goes on."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from attrs import Attribute, define, field

from hookloop.hookspecs import hookimpl
from hookloop.settings import doc

if TYPE_CHECKING:
    from types import FrameType

    from hookloop.core import Run

_UNCATCHABLE = {"SIGKILL", "SIGSTOP"}


def _catchable(_instance: object, _attribute: Attribute[list[str]], value: list[str]) -> None:
    known = {number.name for number in signal.Signals} - _UNCATCHABLE
    if wrong := [name for name in value if name not in known]:
        raise ValueError(f"expected signals that can be caught, such as SIGTERM, found {', '.join(wrong)}")


@define(eq=False)
class Signals:
    """Turns the first signal into a request to stop; the second one stops at once.

    The process answers 128 + the signal's number either way. Other signals ask for the state to be saved now.
    """

    names: list[str] = field(
        factory=lambda: ["SIGTERM", "SIGINT"],
        validator=_catchable,
        metadata=doc("signals that stop the run at the next boundary, its state saved"),
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
    asked: bool = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.owner:
            # A forked worker inherits the handler, but its death is nobody's request to stop.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        name = signal.Signals(number).name
        if number in self.saving:
            self.run.save(name)
            _say(f"hookloop: {name}: saving after this batch")
            return
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        self.run.stop(name, 128 + number)
        _say(f"hookloop: {name}: stopping at the next boundary; once more stops at once")


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
