"""Events for people and for machines: one logger per run, made without touching structlog's globals."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, cast

import structlog
from attrs import frozen

from hookloop.records import masked

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TextIO

    from structlog.typing import FilteringBoundLogger

    Event = MutableMapping[str, object]

_ERRORS = {"error", "critical"}
_COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_RESET = "\x1b[0m"


def log_of(rank: int) -> str:
    """Name the file in a run's directory that a rank's events go to."""
    return f"log.rank{rank}.jsonl" if rank else "log.jsonl"


def events_to(path: Path | None, stream: TextIO | None = None, rank: int = 0) -> FilteringBoundLogger:
    """Make a logger that appends events to *path* as JSON lines and shows them on *stream* to people.

    An event is ``noun.participle`` with keys: ``logger.info("checkpoint.saved", step=1000)``. Values of
    keys that look secret are masked in both places. Numbers that are not finite are written as the strings
    ``"nan"``, ``"inf"`` and ``"-inf"``, so that the file is JSON for every reader.

    :param path: ``log.jsonl``, or ``None`` for no file.
    :param stream: where people read; ``None`` is whatever ``sys.stderr`` is at the time, so that a progress
        bar can redirect it.
    :param rank: of several processes the one that logs; of those that do not lead people see errors only.
    """
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _plain_and_masked,
        *([_Lines(path)] if path else []),
        *([_ErrorsOf(rank)] if rank else []),
        _Rendering(stream),
    ]
    logger: FilteringBoundLogger = structlog.wrap_logger(
        _Console(stream),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        context_class=dict,
        cache_logger_on_first_use=False,
    )
    return logger


def _plain_and_masked(_logger: object, _method: str, event: Event) -> Event:
    return cast("dict[str, object]", masked(_plain(event)))


def _plain(value: object) -> object:
    """Turn anything into what JSON knows."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | AbstractSet) and not isinstance(value, bytes):
        return [_plain(item) for item in value]
    return str(value)


@frozen
class _Lines:
    """Appends an event to the file, opened anew each time: events are rare, and nothing is left to close."""

    path: Path

    def __call__(self, _logger: object, _method: str, event: Event) -> Event:
        first = {key: event[key] for key in ("timestamp", "level", "event")}
        line = json.dumps({**first, **event}, ensure_ascii=False) + "\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as problem:  # a full disk must not end a run for the sake of its log
            event["unwritten"] = str(problem)
        return event


@frozen
class _ErrorsOf:
    """Lets through what has gone wrong, with the rank in front."""

    rank: int

    def __call__(self, _logger: object, _method: str, event: Event) -> Event:
        if event["level"] not in _ERRORS:
            raise structlog.DropEvent
        return {**event, "event": f"rank {self.rank}: {event['event']}"}


@frozen
class _Rendering:
    """Makes the short line for people: ``12:30:05 checkpoint.saved step=1000``."""

    stream: TextIO | None

    def __call__(self, _logger: object, _method: str, event: Event) -> str:
        level, name = str(event.pop("level")), event.pop("event")
        traceback = event.pop("exception", None)
        time = datetime.fromisoformat(str(event.pop("timestamp"))).astimezone()
        keys = " ".join(f"{key}={_short(value)}" for key, value in event.items())
        mark = f"{level.upper()} " if level in _COLOURS else ""
        text = f"{time:%H:%M:%S} {mark}{name} {keys}".rstrip()
        if level in _COLOURS and _is_coloured(_current(self.stream)):
            text = f"{_COLOURS[level]}{text}{_RESET}"
        return f"{text}\n{traceback}" if traceback else text


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if text.isprintable() and " " not in text and text else repr(text)


def _is_coloured(stream: TextIO) -> bool:
    return not os.environ.get("NO_COLOR") and stream.isatty()


def _current(stream: TextIO | None) -> TextIO:
    return sys.stderr if stream is None else stream


@frozen
class _Console:
    """What structlog writes to; each level is a method."""

    stream: TextIO | None

    def msg(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a closed terminal must not end a run
            print(text, file=_current(self.stream), flush=True)

    debug = info = warning = error = critical = msg
