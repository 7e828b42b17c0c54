from __future__ import annotations

import cftime
import numpy as np
import pytest

from hookloop.data.calendars import (
    calendar_of,
    dates,
    day_of_year,
    hour_of_day,
    joined,
    labels,
    minutes_since,
    only_in,
    order,
    repeated,
    same,
    set_back,
    span,
    to_millisecond,
    within,
)

CALENDARS = ["standard", "proleptic_gregorian", "noleap", "all_leap", "360_day", "julian"]
HOURS = np.datetime64("2019-03-22T00", "ns") + np.arange(48) * np.timedelta64(1, "h")


def hourly(calendar: str, count: int = 48, first: str = "2019-03-22") -> np.ndarray:
    """Make hourly dates of a calendar, as cftime has them."""
    units = f"hours since {first}"
    return cftime.num2date(np.arange(count), units, calendar, only_use_cftime_datetimes=True)


@pytest.mark.parametrize("calendar", CALENDARS)
def test_calendars_have_the_names_of_cf(calendar: str) -> None:
    """Those of Gregory are one, as numpy's is; nothing at all has the standard one."""
    expected = "standard" if calendar == "proleptic_gregorian" else calendar
    assert calendar_of(hourly(calendar)) == expected
    assert calendar_of(HOURS) == calendar_of(HOURS[:0]) == calendar_of(hourly(calendar, 0)) == "standard"


def test_dates_name_three_to_the_minute() -> None:
    """Of either kind, as many as an error can show; labels name them all."""
    expected = "2019-03-22T00:00, 2019-03-22T01:00, 2019-03-22T02:00"
    assert dates(HOURS) == dates(hourly("360_day")) == expected
    assert labels(HOURS[:2]) == labels(hourly("noleap", 2)) == ["2019-03-22T00:00", "2019-03-22T01:00"]
    assert dates(hourly("360_day", 1, "2001-02-30")) == "2001-02-30T00:00"
    assert dates(HOURS[:0]) == ""


def test_hour_of_day() -> None:
    """Hours begin again each day, with fractions, in every calendar."""
    np.testing.assert_array_equal(hour_of_day(HOURS), np.tile(np.arange(24.0), 2))
    half = HOURS[:1] + np.timedelta64(90, "m")
    np.testing.assert_array_equal(hour_of_day(half), [1.5])
    for calendar in CALENDARS:
        np.testing.assert_array_equal(hour_of_day(hourly(calendar)), np.tile(np.arange(24.0), 2))
    assert hour_of_day(HOURS).dtype == hour_of_day(hourly("noleap")).dtype == np.float32


def test_day_of_year_counts_days_since_the_year_began() -> None:
    """The first day is 0, the last of a leap year 365, and hours are fractions."""
    times = np.array(["2019-01-01", "2020-12-31", "2019-02-01T18"], "datetime64[ns]")
    np.testing.assert_array_equal(day_of_year(times), [0, 365, 31.75])
    gregorian = np.array([cftime.DatetimeGregorian(2020, 12, 31), cftime.DatetimeGregorian(2019, 2, 1, 18)])
    np.testing.assert_array_equal(day_of_year(gregorian), [365, 31.75])


@pytest.mark.parametrize(("calendar", "days"), [("noleap", 365), ("360_day", 360), ("all_leap", 366)])
def test_a_year_of_another_calendar_is_as_long(calendar: str, days: int) -> None:
    """A quarter of its year is a quarter of 365.2425 days, and its end is the end of the season's circle."""
    year = hourly(calendar, days * 24 + 1, "2001-01-01")
    found = day_of_year(year).astype(np.float64)
    np.testing.assert_allclose(found[:-1], np.arange(days * 24) / (days * 24) * 365.2425, rtol=1e-6)
    assert found[-1] == 0


def test_season_agrees_between_calendars() -> None:
    """The same date is nearly the same season: to the day that the leap day makes."""
    for calendar in ("noleap", "all_leap"):
        assert abs(day_of_year(hourly(calendar, 1))[0] - day_of_year(HOURS[:1])[0]) < 1.1


@pytest.mark.parametrize("calendar", ["numpy", *CALENDARS])
def test_times_are_compared(calendar: str) -> None:
    """Equality, differences, order, repetition and distance are those of the hours they were made from."""
    times = HOURS if calendar == "numpy" else hourly(calendar)
    np.testing.assert_array_equal(minutes_since(times, times[2]), 60 * (np.arange(48) - 2))
    assert same(times, times.copy())
    assert not same(times, times[:-1])
    assert not same(times, np.roll(times, 1))
    shuffled = np.random.default_rng(0).permutation(48)
    np.testing.assert_array_equal(times[shuffled][order(times[shuffled])], times)
    np.testing.assert_array_equal(only_in(times[shuffled], times[::2]), times[1::2])
    assert not len(only_in(times[:5], times))
    np.testing.assert_array_equal(repeated(times[[3, 1, 3, 2, 1]]), times[[1, 3]])
    np.testing.assert_array_equal(set_back(times[[0, 2, 1, 3]]), times[[1]])
    assert not len(repeated(times))
    assert not len(set_back(times))


def test_calendars_are_not_the_same_by_their_numbers() -> None:
    """Hours of two calendars differ, though their names are alike; Gregorian ones do not."""
    assert not same(hourly("noleap", first="1970-01-01"), hourly("360_day", first="1970-01-01"))
    assert not same(HOURS, hourly("noleap"))
    assert same(HOURS, hourly("standard"))
    assert same(hourly("proleptic_gregorian"), hourly("standard"))


@pytest.mark.parametrize("calendar", ["numpy", "noleap", "360_day"])
def test_partial_dates_are_all_of_their_span(calendar: str) -> None:
    """A day is all its hours, a month all its days, both ends included, whatever lies outside."""
    times = HOURS if calendar == "numpy" else hourly(calendar)
    assert within(times, "2019-03-23", "2019-03-23") == slice(24, 48)
    assert within(times, "2019-03", "2019-03") == slice(0, 48)
    assert within(times, "2019-03-22T03:00", "2019-03-22T05:00") == slice(3, 6)
    for first, last in (("2020", "2021"), ("2018", "2018"), ("2019-03-23", "2019-03-22")):
        found = within(times, first, last)
        assert found.start == found.stop
    assert within(times[:0], "2019", "2020") == slice(0, 0)


def test_thirtieth_of_february() -> None:
    """A date of 360_day is one there, and none in the standard calendar."""
    times = hourly("360_day", 48, "2019-02-30")
    assert within(times, "2019-02-30", "2019-02-30") == slice(0, 24)
    with pytest.raises(ValueError, match="the first date, 2019-02-30, is none of the calendar standard"):
        within(HOURS, "2019-02-30", "2019-03")
    with pytest.raises(ValueError, match="the last date, 2019-01-31T06, is none of the calendar 360_day"):
        within(times, "2019", "2019-01-31T06")


@pytest.mark.parametrize("calendar", ["numpy", "noleap"])
@pytest.mark.parametrize(
    "date",
    ["spring", "22-03-2019", "03/22/2019", "2019-3-22", "20190322", "2019-Q1", "2019-03-22T00:00Z", "19", ""],
)
def test_no_dates(calendar: str, date: str) -> None:
    """Words are no dates in any calendar, and what one may take for another date is none either."""
    times = HOURS if calendar == "numpy" else hourly(calendar)
    for ends, which in (((date, "2019"), "first"), (("2019", date), "last")):
        with pytest.raises(ValueError, match=rf"expected dates such as 2019, .* found {date} as the {which}"):
            within(times, *ends)


@pytest.mark.parametrize("calendar", ["numpy", "standard", "noleap", "360_day"])
@pytest.mark.parametrize(
    ("date", "begin", "hours"),
    [
        ("2020", 0, 366 * 24),
        ("2020-02", 31 * 24, 29 * 24),
        ("2020-12", 335 * 24, 31 * 24),
        ("2020-12-30", 364 * 24, 24),
        ("2020-02-29T06", 59 * 24 + 6, 1),
        ("2020-02-29 06:00", 59 * 24 + 6, 1),
        ("2020-02-29T06:00:00", 59 * 24 + 6, 1),
        ("2020-02-29T06:01", 59 * 24 + 7, 0),
    ],
)
def test_spans_of_dates(calendar: str, date: str, begin: int, hours: int) -> None:
    """A date is all hours between its beginning and that of the next year, month, day, hour, minute or second."""
    if calendar == "numpy":
        times = np.datetime64("2019-12-31", "ns") + np.arange(400 * 24) * np.timedelta64(1, "h")
    else:
        times = hourly(calendar, 400 * 24, "2019-12-30")
    named = date.replace(" ", "T")
    inside = [n for n, label in enumerate(labels(times)) if label.startswith(named[:16])]
    if calendar in ("numpy", "standard"):
        before = 24 if calendar == "numpy" else 48
        assert inside == list(range(before + begin, before + begin + hours))
    if calendar == "noleap" and "02-29" in date:
        with pytest.raises(ValueError, match="is none of the calendar noleap"):
            within(times, date, date)
        return
    found = within(times, date, date)
    assert list(range(found.start, found.stop)) == inside


def test_seconds_within_a_minute() -> None:
    """A minute is all its seconds."""
    seconds = HOURS[0] + np.arange(180) * np.timedelta64(1, "s")
    assert within(seconds, "2019-03-22T00:01", "2019-03-22T00:01") == slice(60, 120)
    assert within(seconds, "2019-03-22T00:01:05", "2019-03-22T00:01:06") == slice(65, 67)


def test_span() -> None:
    """The first and the last time are named."""
    assert span(HOURS) == "2019-03-22T00:00 to 2019-03-23T23:00"


def test_joined_as_numpy_has_them_or_as_cftime_has_them() -> None:
    """What lies beyond datetime64[ns] makes cftime dates of all; the dates are the same."""
    assert joined([HOURS[:5], HOURS[5:]]).dtype == "datetime64[ns]"
    beyond = hourly("standard", 3, "2300-01-01")
    both = joined([HOURS, beyond])
    assert labels(both) == labels(HOURS) + labels(beyond)
    assert same(both[:48], HOURS)
    assert joined([]).dtype == "datetime64[ns]"
    assert same(joined([hourly("noleap")[:5], hourly("noleap")[5:]]), hourly("noleap"))


def test_rounding_of_floating_point_is_undone() -> None:
    """Dates a few microseconds off, before 1970 too, are the ones that were meant."""
    for first in ("2019-03-22", "1950-03-22"):
        exact = np.datetime64(first, "ns") + np.arange(48) * np.timedelta64(1, "h")
        for off in (-3000, 3000):
            np.testing.assert_array_equal(to_millisecond(exact + np.timedelta64(off, "ns")), exact)
    for off in (-7, 7):
        late = np.array([time + np.timedelta64(off, "us").item() for time in hourly("noleap")])
        assert same(to_millisecond(late), hourly("noleap"))
