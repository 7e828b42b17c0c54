"""Which times a split uses; ``HOOKLOOP_EXAMPLES=100000`` tries that many of each property."""

from __future__ import annotations

import cftime
import numpy as np
import pytest
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st

from hookloop.data.options import RepeatConfig
from hookloop.data.selection import chosen, without_neighbours
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import SplitConfig

HOUR = np.timedelta64(1, "h")
HOURS = np.datetime64("2019-03-22T00", "ns") + np.arange(48) * HOUR


def split(**options: object) -> SplitConfig:
    """Make a split that is nothing but a choice of times."""
    return SplitConfig(coarse=["x"], fine=["x"], **options)


def kept(times: np.ndarray, **options: object) -> list[int]:
    """Choose from *times*."""
    return chosen(times, split(**options), "x.nc").tolist()


def in_calendar(hours: np.ndarray, calendar: str) -> np.ndarray:
    """Dates these *hours* after the beginning of 2000."""
    if calendar == "standard":
        return np.datetime64("2000-01-01", "ns") + hours * HOUR
    return cftime.num2date(hours, "hours since 2000-01-01", calendar)


MOMENTS = st.lists(st.integers(0, 24 * 40), min_size=1, max_size=60, unique=True).map(
    lambda hours: np.array(sorted(hours))
)
CALENDARS = st.sampled_from(["standard", "noleap", "360_day"])
DAYS = st.integers(1, 12)


def test_all_times_without_options() -> None:
    """What is not asked to be left out is used."""
    assert kept(HOURS) == list(range(48))


def test_both_ends_are_included_and_a_day_is_a_whole_day() -> None:
    """A date alone stands for all its hours."""
    assert kept(HOURS, time=("2019-03-22T22", "2019-03-23")) == list(range(22, 48))


def test_months_of_thirty_days() -> None:
    """30 February 2000 is a day of its own in the calendar of 360 days."""
    times = cftime.num2date(np.arange(0, 360 * 24, 6), "hours since 2000-01-01", "360_day")
    assert kept(times, time=("2000-02-30", "2000-02-30")) == list(range(59 * 4, 60 * 4))
    assert kept(times, time=("2000-12", "2000-12")) == list(range(330 * 4, 360 * 4))


def test_several_ranges() -> None:
    """Times of several ranges come in the order of time, each once, however the ranges overlap."""
    ranges = [
        ("2019-03-23T20", "2019-03-23"),
        ("2019-03-22T02", "2019-03-22T05"),
        ("2019-03-22T04", "2019-03-22T07"),
    ]
    assert kept(HOURS, time=ranges) == [*range(2, 8), *range(44, 48)]


def test_every_counts_from_the_first_of_the_range() -> None:
    """Six-hourly from one o'clock on, not from midnight."""
    assert kept(HOURS, time=("2019-03-22T01", "2019-03-22T20"), every="6h") == [1, 7, 13, 19]


def test_every_leaves_out_what_lies_between() -> None:
    """Times at distances that are no whole number of the interval are left out, not rounded to it."""
    times = HOURS[[0, 1, 5, 6, 7, 12, 20, 24]]
    assert kept(times, every="6h") == [0, 3, 5, 7]


def test_blocks_of_days() -> None:
    """A block begins with the first time and ends before the time that is ``take`` later."""
    days = HOURS[0] + np.arange(16) * 24 * HOUR
    assert kept(days, repeat=RepeatConfig(every="7d", take="6d")) == [
        0,
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        9,
        10,
        11,
        12,
        14,
        15,
    ]
    assert kept(days, repeat=RepeatConfig(every="7d", take="2d", start="3d")) == [3, 4, 10, 11]
    assert kept(days, repeat=RepeatConfig(every="7d", take="2d", start="9d")) == [9, 10]


@many(200)
@given(MOMENTS, CALENDARS, DAYS, st.integers(0, 12), st.integers(0, 50), st.sampled_from([1, 3, 6]))
def test_blocks_are_those_of_arithmetic(
    hours: np.ndarray, calendar: str, every: int, take: int, start: int, step: int
) -> None:
    """Whatever the times, the calendar and the blocks: each time is kept if its hours say so, and no other."""
    since = hours - hours[0]
    expected = [
        n
        for n, h in enumerate(since.tolist())
        if h % step == 0
        and h >= start
        and any(0 <= h - start - k * 24 * every < 24 * take for k in range(1000))
    ]
    if not 0 < take <= every:
        with pytest.raises(ValueError, match=f"takes {take}d of every {every}d; expected that much at most"):
            RepeatConfig(every=f"{every}d", take=f"{take}d")
        return
    options = {
        "repeat": RepeatConfig(every=f"{every}d", take=f"{take}d", start=f"{start}h"),
        "every": f"{step}h",
    }
    times = in_calendar(hours, calendar)
    if not expected:
        with pytest.raises(HookloopError):
            kept(times, **options)
    else:
        assert kept(times, **options) == expected


@many(100)
@given(MOMENTS, CALENDARS, st.integers(2, 12), st.data())
def test_what_one_split_skips_another_takes(
    hours: np.ndarray, calendar: str, every: int, data: st.DataObject
) -> None:
    """Six days of seven to learn and the seventh to look at are all times, none of them twice."""
    take = data.draw(st.integers(1, every - 1))
    times = in_calendar(np.unique([*hours, hours[0] + 24 * take]), calendar)  # so that neither is empty
    learnt = kept(times, repeat=RepeatConfig(every=f"{every}d", take=f"{take}d"))
    seen = kept(times, repeat=RepeatConfig(every=f"{every}d", take=f"{every - take}d", start=f"{take}d"))
    assert sorted(learnt + seen) == list(range(len(times)))


@many(100)
@given(MOMENTS, MOMENTS, CALENDARS, st.integers(0, 72))
def test_gap_is_kept(here: np.ndarray, there: np.ndarray, calendar: str, gap: int) -> None:
    """Those stay that are at least the gap away from every other time, whichever come first."""
    left = without_neighbours(in_calendar(here, calendar), in_calendar(there, calendar), f"{gap}h")
    assert left.tolist() == [n for n, h in enumerate(here) if all(abs(h - other) >= gap for other in there)]


def test_gap_to_nothing() -> None:
    """Without other times there is nothing to keep away from."""
    assert without_neighbours(HOURS, HOURS[:0], "1d").tolist() == list(range(48))
    assert without_neighbours(HOURS[:0], HOURS, "1d").tolist() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"time": ("2020", "2021")},
            r"no times in 2020 to 2021: x\.nc has 2019-03-22T00:00 to 2019-03-23T23:00",
        ),
        ({"time": ("2019-03-23", "2019-03-22")}, "no times in 2019-03-23 to 2019-03-22"),
        ({"time": [("2019-03-22", "2019-03-22"), ("2020", "2021")]}, "no times in 2020 to 2021"),
        (
            {"time": ("yesterday-ish", "2020")},
            "time: expected dates such as 2019, .* found yesterday-ish as the first one",
        ),
        ({"every": "0h"}, "every: expected a duration longer than nothing, found 0h"),
        (
            {"repeat": RepeatConfig(every="7d", take="1d", start="6d")},
            r"repeat \(1d of every 7d from 6d on\) leaves none of 48 times: x\.nc has 2019-03-22T00:00 to 2019-03-23",
        ),
    ],
)
def test_choice_that_makes_no_sense(options: dict[str, object], message: str) -> None:
    """What leaves nothing, or says nothing, is refused with what there is."""
    with pytest.raises(HookloopError, match=message):
        kept(HOURS, **options)


def test_day_that_the_calendar_has_not() -> None:
    """29 February is no day of a calendar without leap years; the calendar and the end of the range are named."""
    times = cftime.num2date(np.arange(0, 365), "days since 2000-01-01", "noleap")
    message = "time: the {} date, 2000-02-29, is none of the calendar noleap"
    with pytest.raises(HookloopError, match=message.format("first")):
        kept(times, time=("2000-02-29", "2000-03-01"))
    with pytest.raises(HookloopError, match=message.format("last")):
        kept(times, time=("2000-02-01", "2000-02-29"))


def test_no_times_at_all() -> None:
    """Files without times are named."""
    with pytest.raises(HookloopError, match=r"no times: x\.nc has none at all"):
        kept(HOURS[:0])
