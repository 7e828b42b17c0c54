"""Histograms of any range, which merge exactly: in whatever order and grouping, the same bit for bit."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Self

import torch
from attrs import field, frozen
from attrs.validators import ge

from hookloop.scores.ensemble import _float64

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

FINEST = -1000
"""The least exponent of a bin's width: whatever lies within 2^-1000 of zero is not told apart."""
EXACT = 2**53
"""Bins are numbered by less than this, which float64 holds exactly."""
UNIT = 2**16
"""An area is counted in so many parts of a cell of mean area: whole numbers add up exactly."""
BINS = 8192
_ROWS = 64
"""Resampled at once: several times as fast as one by one, and still little memory."""


@frozen
class Bins:
    """Bins [i·2^e, (i+1)·2^e) for all integers i from the first to the last one.

    Two bins that are neighbours are one of twice the width, so counts can be coarsened without any loss but
    of resolution.
    """

    first: int
    last: int
    exponent: int
    """e, which says the width."""

    @classmethod
    def between(cls, low: float, high: float, most: int) -> Bins:
        """Bins for values from *low* to *high*, as fine as *most* of them allow."""
        largest = max(-low, high)
        exponent = max(FINEST, math.frexp(largest)[1] - EXACT.bit_length() + 1) if largest else FINEST
        return cls(_bin(low, exponent), _bin(high, exponent), exponent).at_most(most)

    @property
    def number(self) -> int:
        """How many there are."""
        return self.last - self.first + 1

    @property
    def width(self) -> float:
        """Of each."""
        return self.value(1)

    def coarser(self, steps: int) -> Bins:
        """Give bins 2^steps times as wide."""
        return Bins(self.first >> steps, self.last >> steps, self.exponent + steps)

    def at_most(self, most: int) -> Bins:
        """Give the finest bins, no finer than these, of which there are no more than *most*."""
        bins = self
        while bins.number > most:
            bins = bins.coarser(1)
        return bins

    def joined(self, other: Bins, most: int) -> Bins:
        """Give the finest bins that hold what both hold, no finer than either."""
        if not self.number or not other.number:
            return (self if self.number else other).at_most(most)
        exponent = max(self.exponent, other.exponent)
        ours, theirs = self.coarser(exponent - self.exponent), other.coarser(exponent - other.exponent)
        return Bins(min(ours.first, theirs.first), max(ours.last, theirs.last), exponent).at_most(most)

    def value(self, position: float) -> float:
        """What lies *position* bins above zero; the largest number where that is beyond all numbers."""
        try:
            return math.ldexp(position, self.exponent)
        except OverflowError:
            return math.copysign(sys.float_info.max, position)


NOTHING = Bins(0, -1, FINEST)


def _bin(value: float, exponent: int) -> int:
    number = math.floor(math.ldexp(value, -exponent))
    return -1 if value < 0 and number == 0 else number  # too small to be scaled, yet below zero


@frozen
class Quantile:
    """A quantile and what stands behind it."""

    value: float
    below: float
    """How many points lie below: those of the bins below and a share of its own bin."""
    above: float


@frozen(eq=False)
class Histogram:
    """How much of the area, and how many points, had values in each bin.

    Its bins are a function of the least and the greatest value alone, the finest of which there are at most
    *most*: at least half as many unless all values are nearly equal. They need not be chosen beforehand, and
    counting at once, in batches, or merging in any order give identical histograms.
    """

    counts: Tensor = field(factory=lambda: torch.zeros(2, 0, dtype=torch.int64))
    """``[2, bin]``, int64, on the host: the area in 1/65536 of a cell of mean area, and points."""
    bins: Bins = NOTHING
    most: int = field(default=BINS, validator=ge(2))
    """So many bins there may be."""

    @classmethod
    def of(cls, values: Tensor, weights: Tensor, most: int = BINS) -> Self:
        """Count *values* ``[..., lat, lon]``, whose cells have areas *weights* ``[lat, lon]``.

        Counts on the device of *values*, by additions of integers whose order does not matter; waits for it
        twice, to know the range and to take the counts to the host.

        :raises ValueError: where a value is not finite.
        """
        if not values.numel():
            return cls(most=most)
        low, high = torch.stack([values.amin(), values.amax()]).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("found values that are not finite, expected numbers to count")
        bins = Bins.between(low, high, most)
        exact = _float64(values)
        scaled = exact * 2.0**-bins.exponent
        numbers = torch.where((exact < 0) & (scaled == 0), -1.0, scaled.floor()).long()
        index = (numbers - bins.first).flatten()
        area = (weights.to(index.device) * UNIT).round().long().expand(values.shape).flatten()
        counts = torch.zeros(2, bins.number, dtype=torch.int64, device=index.device)
        counts[0].scatter_add_(0, index, area)
        counts[1].scatter_add_(0, index, torch.ones_like(index))
        return cls(counts.cpu(), bins, most)

    def __add__(self, other: Histogram) -> Histogram:
        """Count what both have counted.

        :raises ValueError: where they may have different numbers of bins.
        """
        if self.most != other.most:
            raise ValueError(f"expected a histogram of at most {self.most} bins, found {other.most}")
        bins = self.bins.joined(other.bins, self.most)
        return Histogram(self.over(bins) + other.over(bins), bins, self.most)

    def __mul__(self, times: int) -> Histogram:
        """Count everything *times* times; not at all leaves the empty histogram."""
        if times < 0:
            raise ValueError(f"expected to count 0 times or more, found {times}")
        return Histogram(self.counts * times, self.bins, self.most) if times else Histogram(most=self.most)

    @classmethod
    def resampled(cls, histograms: Sequence[Histogram], times: Tensor) -> Iterator[Histogram]:
        """Give for each row of *times* what ``histograms[i] * times[row, i]`` add up to, but much faster.

        All are over the bins that hold all *histograms*.

        :param times: ``[row, histogram]``, whole numbers.
        """
        bins, counts = together(histograms, histograms[0].most)
        # float64 multiplies several times as fast as int64, and is exact up to 10^11 cells.
        stacked = torch.stack(counts).double().flatten(1)
        for rows in torch.split(times.cpu().double(), _ROWS):
            for own in (rows @ stacked).long():
                yield cls(own.view(2, -1), bins, histograms[0].most)

    def cpu(self) -> Self:
        """Give itself, which is on the host."""
        return self

    def over(self, bins: Bins) -> Tensor:
        """Give the counts over *bins*, none finer than its own, which hold everything: ``[2, bin]``."""
        if bins == self.bins:
            return self.counts
        numbers = torch.arange(self.bins.first, self.bins.last + 1)
        # Shifting by all 64 bits or more would be undefined.
        index = (numbers >> min(bins.exponent - self.bins.exponent, 62)) - bins.first
        return torch.zeros(2, bins.number, dtype=torch.int64).index_add_(1, index, self.counts)

    @property
    def points(self) -> int:
        """How many values were counted."""
        return int(self.counts[1].sum())

    def quantiles(self, shares: Sequence[float]) -> list[Quantile]:
        """Give the values below which lie *shares*, from 0 to 1, of the area.

        Areas are spread evenly over each bin, so a quantile is off by a bin's width at most: it is in the bin
        of the least counted value at or below which lies that share.

        :raises ValueError: where nothing was counted.
        """
        area, points = self.counts.cumsum(1)
        if not self.bins.number or not area[-1]:
            raise ValueError("nothing was counted, so there are no quantiles")
        targets = torch.tensor(shares, dtype=torch.float64) * area[-1]
        at = torch.searchsorted(area.double(), targets)
        own = self.counts[:, at]
        within = (targets - (area[at] - own[0])) / own[0].clamp(min=1)
        below = points[at] - own[1] * (1 - within)
        above = points[-1] - below
        found = zip(at.tolist(), within.tolist(), below.tolist(), above.tolist(), strict=True)
        return [
            Quantile(self.bins.value(self.bins.first + k + share), less, more)
            for k, share, less, more in found
        ]

    def quantile(self, share: float) -> float:
        """Give the value below which lies *share* of the area: see :meth:`quantiles`."""
        return self.quantiles([share])[0].value

    def deviation(self) -> float:
        """Give the standard deviation over the area, each value taken for the middle of its bin.

        So it is off by half a bin's width at most, and exactly 0 where all values are in one bin.

        :raises ValueError: where nothing was counted.
        """
        area = self.counts[0].double()
        if not self.bins.number or not area.sum():
            raise ValueError("nothing was counted, so there is no standard deviation")
        share, position = area / area.sum(), torch.arange(self.bins.number, dtype=torch.float64)
        variance = share @ (position - share @ position).square()
        return self.bins.value(math.sqrt(float(variance)))


def wasserstein(one: Histogram, other: Histogram) -> float:
    """∫|F - G| of two cumulative distributions, in the units of the values.

    Each value is taken for the lower edge of its bin, so the distance is off by a bin's width at most, of the
    bins that hold both.

    :raises ValueError: where one of them has counted nothing.
    """
    if not one.bins.number or not other.bins.number:
        raise ValueError("nothing was counted, so there is no distance")
    bins = one.bins.joined(other.bins, one.most)
    shares = [areas.cumsum(0) / areas.sum() for areas in (one.over(bins)[0], other.over(bins)[0])]
    return bins.value(float((shares[0] - shares[1]).abs().sum()))


def densities(histograms: Sequence[Histogram], most: int) -> tuple[list[float], list[list[float]]]:
    """Give the middles of at most *most* bins that hold all *histograms*, and the density of each in them."""
    bins, counts = together(histograms, most)
    middles = [bins.value(bins.first + k + 0.5) for k in range(bins.number)]
    areas = [area.double() for area, _ in counts]
    return middles, [(area / area.sum() / bins.width).tolist() for area in areas]


def together(histograms: Sequence[Histogram], most: int) -> tuple[Bins, list[Tensor]]:
    """Give at most *most* bins that hold all *histograms*, and the counts of each over them."""
    bins = NOTHING
    for histogram in histograms:
        bins = bins.joined(histogram.bins, most)
    return bins, [histogram.over(bins) for histogram in histograms]
