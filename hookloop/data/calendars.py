"""Times in any calendar: of the standard one as numpy has them, of climate models as cftime has them.

Nothing of torch is imported here, so that the processes that read start quickly.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Times: TypeAlias = npt.NDArray[np.datetime64 | np.object_]
"""``datetime64[ns]`` of the standard calendar, or cftime dates of one calendar, which may be any."""

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]

STANDARD = "standard"
YEAR = 365.2425
"""Days in a mean year of the standard calendar; what is learnt of the season counts in these."""

_MEAN_YEAR = {STANDARD: YEAR, "julian": 365.25, "noleap": 365.0, "all_leap": 366.0, "360_day": 360.0}
_EXAMPLES = 3
"""How many examples an error names."""
_MINUTE = 60_000_000
"""Microseconds in a minute."""
_SINCE = "microseconds since 1970-01-01"
_NUMPY = "proleptic_gregorian"
"""The calendar of datetime64."""
_ISO = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d))?)?)?)?)?", re.ASCII)
_BEGINNING = (1, 1, 1, 0, 0, 0)
_UNITS = ("days", "hours", "minutes", "seconds")


def calendar_of(times: Times) -> str:
    """Name the calendar, as CF does; the kinds of Gregorian calendar are one, ``standard``."""
    if _is_numpy(times) or not len(times):
        return STANDARD
    name: str = times[0].calendar
    return STANDARD if name == _NUMPY else name


def dates(times: Times) -> str:
    """Name the first few of *times*, to the minute."""
    return ", ".join(labels(times[:_EXAMPLES]))


def labels(times: Times) -> list[str]:
    """Name each of *times*, such as ``2019-03-22T06:00``."""
    if _is_numpy(times):
        return [str(label) for label in np.datetime_as_string(times, unit="m")]
    return [time.isoformat()[:16] for time in times]


def hour_of_day(times: Times) -> Floats:
    """Hours since the day began, UTC, with fractions: ``[time]`` in 0 … 24."""
    if _is_numpy(times):
        return _since("datetime64[D]", times, np.timedelta64(1, "h"))
    return np.array([24 * _fraction_of_day(time) for time in times], dtype=np.float32)


def day_of_year(times: Times) -> Floats:
    """Days since the year began, UTC, with fractions: ``[time]`` in 0 … 366.

    Those of another calendar are scaled, so that its mean year has :data:`YEAR` days too.
    """
    if _is_numpy(times):
        return _since("datetime64[Y]", times, np.timedelta64(1, "D"))
    scale = YEAR / _MEAN_YEAR[calendar_of(times)]
    return np.array([scale * (time.dayofyr - 1 + _fraction_of_day(time)) for time in times], dtype=np.float32)


def minutes_since(times: Times, first: np.datetime64 | object) -> Ints:
    """Whole minutes from *first*, a date of the same calendar, to each of *times*."""
    return (_ticks(times) - _ticks(_alone(first))) // _MINUTE


def same(one: Times, other: Times) -> bool:
    """Whether both are the same times, one by one, of the same calendar."""
    return calendar_of(one) == calendar_of(other) and np.array_equal(_ticks(one), _ticks(other))


def only_in(one: Times, other: Times) -> Times:
    """Those of *one* that *other* has not, ascending; both of the same calendar."""
    unique, first = np.unique(_ticks(one), return_index=True)
    return one[first[~np.isin(unique, _ticks(other))]]


def repeated(times: Times) -> Times:
    """Those that occur more than once, each of them once, ascending."""
    _, first, counts = np.unique(_ticks(times), return_index=True, return_counts=True)
    return times[first[counts > 1]]


def set_back(times: Times) -> Times:
    """Those that are before the one they follow."""
    return times[1:][np.diff(_ticks(times)) < 0]


def order(times: Times) -> Ints:
    """Number *times* from the earliest to the latest."""
    return np.argsort(_ticks(times), kind="stable")


def span(times: Times) -> str:
    """Name the first and the last of *times*."""
    return " to ".join(labels(times[[0, -1]]))


def within(times: Times, first: str, last: str) -> slice:
    """Find the ascending *times* from *first* to *last*, both included: a partial date is all of its span.

    Dates are those of ISO 8601, with hyphens: a year, a month or a day, which may have a time to the second.

    :raises ValueError: where one is no such date, or not one of the calendar.
    """
    if not len(times):
        return slice(0, 0)
    calendar = _NUMPY if _is_numpy(times) else str(times[0].calendar)
    ticks = _ticks(times)
    begin = int(np.searchsorted(ticks, _bounds(first, calendar, "first")[0]))
    end = int(np.searchsorted(ticks, _bounds(last, calendar, "last")[1]))
    return slice(begin, max(begin, end))


def joined(pieces: Sequence[Times]) -> Times:
    """Put *pieces* of one calendar one after another, all of them as cftime dates if some are."""
    if not pieces:
        return np.empty(0, "datetime64[ns]")
    if len({_kind(piece) for piece in pieces}) > 1:
        pieces = [_as_cftime(piece) for piece in pieces]
    return np.concatenate(pieces)


def to_millisecond(times: Times) -> Times:
    """Round to what is meant: ``days since`` in floating point are microseconds off, and so would not match."""
    if _is_numpy(times):
        whole = (times + np.timedelta64(500, "us")).astype("datetime64[ms]")
        return whole.astype("datetime64[ns]")
    import datetime as dt

    return np.array([_rounded(time, dt.timedelta(microseconds=500)) for time in times], dtype=object)


def _bounds(date: str, calendar: str, which: str) -> tuple[int, int]:
    """Say when a *date*, all of what it leaves open, begins and is over, as :func:`_ticks` counts."""
    import datetime as dt

    import cftime

    if (found := _ISO.fullmatch(date)) is None:
        raise ValueError(
            f"expected dates such as 2019, 2019-03, 2019-03-22 or 2019-03-22T06:00, found {date} as the {which} one"
        )
    given = [int(number) for number in found.groups() if number is not None]
    try:
        begin = cftime.datetime(*given, *_BEGINNING[len(given) :], calendar=calendar)
    except ValueError as problem:
        name = STANDARD if calendar == _NUMPY else calendar
        raise ValueError(f"the {which} date, {date}, is none of the calendar {name}") from problem
    year, month, *rest = given if len(given) > 1 else [given[0], 12]
    over = (
        begin + dt.timedelta(**{_UNITS[len(rest) - 1]: 1})
        if rest
        else cftime.datetime(year + month // 12, month % 12 + 1, 1, calendar=calendar)
    )
    first, after = (int(cftime.date2num(end, _SINCE, calendar)) for end in (begin, over))
    return first, after


def _is_numpy(times: Times) -> TypeGuard[npt.NDArray[np.datetime64]]:
    return times.dtype.kind == "M"


def _rounded(time: object, half: object) -> object:
    later = time + half  # type: ignore[operator]  # cftime has no types
    return later.replace(microsecond=later.microsecond // 1000 * 1000)


def _since(beginning: str, times: Times, unit: np.timedelta64) -> Floats:
    return np.asarray((times - times.astype(beginning)) / unit, dtype=np.float32)


def _fraction_of_day(time: object) -> float:
    microseconds = ((time.hour * 60 + time.minute) * 60 + time.second) * 1_000_000 + time.microsecond  # type: ignore[attr-defined]
    return float(microseconds) / (1440 * _MINUTE)


def _ticks(times: Times) -> Ints:
    """Microseconds since 1970: whole numbers, which sort and compare a thousand times faster than dates."""
    if _is_numpy(times):
        return times.astype("datetime64[us]").astype(np.int64)
    import cftime

    calendar = times[0].calendar if len(times) else STANDARD
    return np.asarray(cftime.date2num(times, _SINCE, calendar), dtype=np.int64)


def _alone(time: np.datetime64 | object) -> Times:
    alone = np.empty(1, "datetime64[ns]" if isinstance(time, np.datetime64) else object)
    alone[0] = time
    return alone


def _kind(times: Times) -> str:
    return "numpy" if _is_numpy(times) or not len(times) else str(times[0].calendar)


def _as_cftime(times: Times) -> Times:
    """Dates of the same names in the proleptic Gregorian calendar, which is that of numpy."""
    import cftime

    if times.dtype.kind == "O":
        named = ((*time.timetuple()[:6], time.microsecond) for time in times)
        return np.array([cftime.datetime(*parts, calendar=_NUMPY) for parts in named], dtype=object)
    found = cftime.num2date(_ticks(times), _SINCE, _NUMPY, only_use_cftime_datetimes=True)
    return np.asarray(found, dtype=object)
