"""From generated fields to numbers: which cases each score counts, and what the numbers are called."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Literal

import torch
from attrs import define, field, frozen

from hookloop.errors import HookloopError
from hookloop.passing import receive, send
from hookloop.scores.score import Cases, Naming
from hookloop.scores.tally import Tally
from hookloop.words import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from hookloop.distributed import Ranks
    from hookloop.scores.score import Chart, Maps, Score
    from hookloop.scores.tally import Sums
    from hookloop.task import Paired

Areas = Literal["area", "equal"]


@define(eq=False)
class Scoring:
    """Scores of everything counted: by variable, and by lead time where there is any."""

    scores: Sequence[Score]
    seed: Callable[[str], int]
    """Of a draw, by what it is for."""
    weights: Areas = "area"
    _tallies: dict[str, list[Tally]] = field(init=False, factory=dict)
    """By variable, one for each score."""
    _by_lead: dict[str, dict[str, list[Tally]]] = field(init=False, factory=dict)
    """The same at each lead time, but not by day: that would grow with both."""
    _places: dict[str, tuple[int, int]] = field(init=False, factory=dict)
    """Of each day that is known, its first row: the number of the window, and that of the row there."""
    _cell_areas: dict[tuple[object, ...], Tensor] = field(init=False, factory=dict)

    def know(self, window: int, days: Sequence[str]) -> None:
        """Know the days of a window's rows before any of them is counted, by whichever rank.

        :param window: its number among all windows.
        """
        new = [day for day in days if day not in self._places]
        for row, day in enumerate(days):
            self._places[day] = min((window, row), self._places.get(day, (window, row)))
        for tally in chain.from_iterable(self._tallies.values()):
            tally.know(new)

    def count(self, paired: Paired) -> None:
        """Count every row and variable of *paired*.

        :raises HookloopError: where the data make a score impossible.
        """
        leads = _leads(paired)
        for lead, rows in _groups(leads, range(len(leads))):
            for name in paired.prediction:
                self._count(paired, name, lead, rows)

    def collect(self, ranks: Ranks) -> None:
        """Count on rank 0 what all *ranks* have counted, in their order; all of them know the same days.

        Sums of one variable after another come there, on the host.
        """
        counted = self.counted()
        if not ranks.leads:
            send(len(counted), 0)
            for lead, name, tallies in counted:
                send((lead, name, [tally.to_host() for tally in tallies]), 0)
            return
        if ranks.world > 1:
            for tally in chain.from_iterable(tallies for _, _, tallies in counted):
                tally.to_host()
        for other in range(1, ranks.world):
            for _ in range(receive(other)):
                self.merge(*receive(other))
        self.order()

    def merge(self, lead: str, name: str, sums: Sequence[Mapping[str, Sums]]) -> None:
        """Count what has been counted elsewhere: by day, for each score, of one item of :meth:`counted` there."""
        for tally, days in zip(self._at(lead, name), sums, strict=True):
            tally.merge(days)

    def order(self) -> None:
        """Put days in the order of the cases, in which intervals are drawn from them.

        Where windows go on from one another and have days of their own, ranks come to know them in another order.
        """
        for tally in chain.from_iterable(self._tallies.values()):
            tally.order(self._places)

    def counted(self) -> list[tuple[str, str, list[Tally]]]:
        """Give the tallies of each variable, one for each score: over all lead times, called ``""``, and at each."""
        by_lead = {"": self._tallies, **self._by_lead}
        return [(lead, name, own) for lead, tallies in by_lead.items() for name, own in tallies.items()]

    def _count(self, paired: Paired, name: str, lead: str, rows: Sequence[int]) -> None:
        days = days_of(paired)
        every = self._cases(paired, name, rows)
        each = [
            (day, self._cases(paired, name, own)) for day, own in _groups([days[row] for row in rows], rows)
        ]
        totals = self._at("", name)
        at_lead = self._at(lead, name) if lead else [None] * len(totals)
        for total, own_tally in zip(totals, at_lead, strict=True):
            score = total.score
            with _telling(score, name):
                for day, cases in each if score.headline else [("", every)]:
                    sums = score.sums(cases)
                    total.add(day, sums)
                    if own_tally is not None:
                        own_tally.add("", sums)

    def _at(self, lead: str, name: str) -> list[Tally]:
        """Give the tallies of a variable, as :meth:`counted` does."""
        tallies = self._by_lead.setdefault(lead, {}) if lead else self._tallies
        if name not in tallies:
            tallies[name] = [Tally(score) for score in self.scores]
            for tally in () if lead else tallies[name]:
                tally.know(self._places)
        return tallies[name]

    def _cases(self, paired: Paired, name: str, rows: Sequence[int]) -> Cases:
        leads = _leads(paired)
        truth = _taken(paired.target[name], rows)
        baseline, coarse = paired.baseline.get(name), paired.coarse.get(name)
        return Cases(
            name=name,
            members=_taken(paired.prediction[name], rows),
            truth=truth,
            weights=self._areas(paired, truth.device),
            seeds=[self.seed(f"ties/{name}/{paired.labels[row]}/{leads[row]}") for row in rows],
            baseline=None if baseline is None else _taken(baseline, rows),
            coarse=None if coarse is None else _taken(coarse, rows),
            wraps=paired.wraps,
        )

    def _areas(self, paired: Paired, device: torch.device) -> Tensor:
        latitude = tuple(paired.latitude)
        key = latitude, len(paired.longitude), paired.gridded, device
        if key not in self._cell_areas:
            uneven = self.weights == "area" and paired.gridded
            self._cell_areas[key] = cell_areas(latitude, len(paired.longitude), uneven=uneven).to(device)
        return self._cell_areas[key]

    def results(self) -> Results:
        """Everything counted so far."""
        return Results(self._tallies, self._by_lead, self.seed)


def days_of(paired: Paired) -> Sequence[str]:
    """The day of each row."""
    return paired.days or paired.labels


@frozen(eq=False)
class Results:
    """What was counted, by variable, one tally for each score."""

    tallies: Mapping[str, Sequence[Tally]]
    by_lead: Mapping[str, Mapping[str, Sequence[Tally]]]
    seed: Callable[[str], int]

    @cached_property
    def numbers(self) -> dict[str, dict[str, float]]:
        """Results by name, then by variable, undefined ones absent.

        :raises HookloopError: where two scores give one result.
        """
        return _numbers(self.tallies)

    @property
    def means(self) -> dict[str, float]:
        """Results without units, averaged over variables, where every variable has them."""
        comparable = {
            result for tallies in self.tallies.values() for t in tallies for result in t.score.comparable
        }
        return {
            result: mean(by_name)
            for result, by_name in self.numbers.items()
            if result in comparable and len(by_name) == len(self.tallies)
        }

    def metrics(self) -> dict[str, float]:
        """Every number of a variable under the key that ``inference/`` is put before.

        ``<result>/<variable>``, the ends of its interval as ``<result>_low`` and ``<result>_high``, and the results
        again for each lead time below ``lead/<lead time>/``.
        """
        metrics = _flat(self.numbers)
        for name, tallies in self.tallies.items():
            for tally in tallies:
                ends = tally.intervals(self.seed(f"bootstrap/{name}"))
                for result, (low, high) in ends.items():
                    metrics[f"{result}_low/{name}"], metrics[f"{result}_high/{name}"] = low, high
        for lead, tallies_by_name in self.by_lead.items():
            metrics |= {
                f"lead/{lead}/{key}": value for key, value in _flat(_numbers(tallies_by_name)).items()
            }
        return metrics

    def pictures(self) -> Iterator[tuple[str, Chart | Maps]]:
        """Each variable's pictures of all scores, over all lead times."""
        for name, tallies in self.tallies.items():
            for tally in tallies:
                for picture in tally.score.pictures(tally.totals):
                    yield name, picture


def cell_areas(latitude: Sequence[float], columns: int, *, uneven: bool) -> Tensor:
    """Areas of cells ``[lat, lon]``, 1 on average: as the cosine of latitude, or all equal.

    :param latitude: of the rows, degrees.
    :param uneven: whether cells shrink towards the poles.
    """
    rows = (
        torch.tensor(latitude, dtype=torch.float64).deg2rad().cos() if uneven else torch.ones(len(latitude))
    )
    return (rows / rows.mean()).double()[:, None].expand(-1, columns).contiguous()


def mean(values: Mapping[str, float]) -> float:
    """Average over variables."""
    return sum(values.values()) / len(values)


def _numbers(tallies: Mapping[str, Sequence[Tally]]) -> dict[str, dict[str, float]]:
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for name, own in tallies.items():
        for tally in own:
            with _telling(tally.score, name):
                results = tally.results()
            for result, value in results.items():
                if not math.isfinite(value):
                    raise HookloopError(
                        f"generation: {tally.score.chosen_as} of {name}: {result} is {value}; expected a number, "
                        "or nothing where it is undefined"
                    )
                if name in found[result]:
                    raise HookloopError(
                        f"generation.metrics: {result} of {name} is given by two of them; expected one each"
                    )
                found[result][name] = value
    return dict(found)


@contextmanager
def _telling(score: Score, name: str) -> Iterator[None]:
    """Say which score of which variable it is that cannot be."""
    try:
        yield
    except ValueError as error:
        raise HookloopError(f"generation: {score.chosen_as} of {name}: {error}") from error


def expect_variables(scores: Sequence[Score], names: Sequence[str]) -> None:
    """Refuse scores whose options name variables that are not generated.

    :param names: those that are.
    :raises HookloopError: naming the first, and what was probably meant.
    """
    for score in scores:
        for name in score.variables if isinstance(score, Naming) else ():
            if name not in names:
                raise HookloopError(
                    f"generation.metrics: {score.chosen_as}: no variable called {name} is generated; expected some of "
                    f"{', '.join(names)}{suggestion(name, names)}"
                )


def _flat(numbers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {
        f"{result}/{name}": value for result, by_name in numbers.items() for name, value in by_name.items()
    }


def _leads(paired: Paired) -> Sequence[str]:
    """The lead time of each row; empty where there is none."""
    return paired.lead_times or [""] * len(paired.labels)


def _groups(keys: Sequence[str], values: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Values by key, in the order in which the keys first appear."""
    grouped: defaultdict[str, list[int]] = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        grouped[key].append(value)
    yield from grouped.items()


def _taken(field: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of *field*, as a view where they follow one another; on the host where the device has no float64."""
    field = field.cpu() if field.device.type == "mps" else field
    if all(after == before + 1 for before, after in pairwise(rows)):
        return field[rows[0] : rows[-1] + 1]
    return field[list(rows)]
