"""What is done to variables before they are normalised, and undone after fields are generated."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hookloop.plugins.downscaling.data_options import TransformConfig

    Knots = tuple[Tensor, Tensor]

_KNOTS = 1024
_APART = 1e-9
"""Least distance of knots as a share of the range, so that noise around 0 makes no slope that explodes."""
_ATOM = 0.01
"""Of a sample: the least or the greatest value is an atom where it has this share."""


def signed_log1p(x: Tensor, scale: Tensor) -> Tensor:
    """sign(x)·ln(1 + |x|/scale), linear around 0 within ± *scale*."""
    return x.sign() * _finite(x.abs() / scale).log1p()


def signed_expm1(z: Tensor, scale: Tensor) -> Tensor:
    """Undo :func:`signed_log1p`."""
    return z.sign() * z.abs().expm1() * scale


def signed_sqrt(x: Tensor) -> Tensor:
    """sign(x)·√|x|."""
    return x.sign() * x.abs().sqrt()


def signed_square(z: Tensor) -> Tensor:
    """Undo :func:`signed_sqrt`."""
    return z * z.abs()


def piecewise_linear(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Map *x* to the polygon through (knots, values), whose first and last segments go on for ever.

    :param knots: ``[knot]``, ascending, two or more; the last one may be repeated, which changes nothing.
    :param values: ``[knot]``, ascending alike, so that swapping both undoes the map.
    """
    last = (knots < knots[-1]).sum()
    above = torch.searchsorted(knots, x.contiguous()).clamp(min=1).minimum(last)
    left, right = knots[above - 1], knots[above]
    low, high = values[above - 1], values[above]
    return low + (x - left) / (right - left) * (high - low)


def quantile_knots(sample: Tensor) -> Knots:
    """Choose the knots of the map that makes values distributed as *sample* standard normal.

    A knot's normal score is Φ⁻¹ of its mid-distribution function P(X < x) + P(X = x)/2 (Parzen 2004, Stat.
    Sci. 19, 652), so values that occur often, such as dry zeros, have one score. The knots are values of the
    sample whose scores are about evenly spaced, the least and the greatest among them; those that
    noise alone tells apart are left out.

    :param sample: any shape, finite.
    :returns: values and scores, ``[1024]`` float32, ascending; the last one is repeated where there are fewer.
    :raises ValueError: where all values are the same.
    """
    ordered = sample.flatten().sort().values
    n = len(ordered)
    end = torch.special.ndtri(torch.tensor(1 - 0.5 / n, dtype=torch.float64)).item()
    shares = torch.special.ndtr(torch.linspace(-end, end, _KNOTS, dtype=torch.float64))
    picked = ordered[(shares * n).long().clamp(0, n - 1)]
    chosen = _apart(picked.unique())  # type: ignore[no-untyped-call]
    if len(chosen) <= 1:
        raise ValueError(f"all {n} values are {ordered[0].item():g}")
    below = torch.searchsorted(ordered, chosen)
    up_to = torch.searchsorted(ordered, chosen, right=True)
    scores = torch.special.ndtri((below + up_to).double() / (2 * n)).float()
    fill = _KNOTS - len(chosen)  # one shape for all data, so that a checkpoint fits a model of other data
    return (
        torch.cat([chosen, chosen[-1:].expand(fill)]),
        torch.cat([scores, scores[-1:].expand(fill)]),
    )


def _apart(ascending: Tensor) -> Tensor:
    """Leave out what is not a billionth of the range above the one before."""
    values = ascending.tolist()
    least = _APART * (values[-1] - values[0])
    kept = values[:1]
    for value in values[1:]:
        if value - kept[-1] >= least:
            kept.append(value)
    kept[1:] = [*kept[1:-1], *values[1:][-1:]]  # the greatest stays, rather than one just below it
    return ascending.new_tensor(kept)


def inner_scores(knots: Knots) -> Tensor:
    """Scores of knots as they are neared from within the range: of an atom, that of its inner edge.

    An atom is a least or greatest value that at least 1 % of the sample have, such as dry zeros. With the
    share p its own score, from its mid-distribution function, is ±Φ⁻¹(p/2); its scores end at ±Φ⁻¹(p), so that
    a standard normal variable is beyond with probability p.

    :returns: ``[knot]`` float32, ascending; the very scores of :func:`quantile_knots` but for atoms.
    """
    values, scores = knots
    inner, ends = scores.clone(), scores[[0, -1]].double()
    low, high = (2 * torch.special.ndtr(ends * ends.new_tensor([1.0, -1.0]))).unbind()
    if low >= _ATOM:
        inner[0] = torch.special.ndtri(low)
    if high >= _ATOM:
        # Two atoms that leave nothing between them have one edge, or by rounding the upper a lower one.
        above = inner[0].nextafter(inner.new_tensor(torch.inf))
        inner[values == values[-1]] = (-torch.special.ndtri(high).float()).maximum(above)
    return inner


def _finite(x: Tensor) -> Tensor:
    """Stop at the largest number where a finite one has overflown; NaN stays."""
    most = torch.finfo(x.dtype).max
    return x.clamp(-most, most)


class Log1p(nn.Module):
    """:func:`signed_log1p`, with its scale as a buffer."""

    scale: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Physical to transformed values."""
        return signed_log1p(x, self.scale)

    def inverse(self, z: Tensor) -> Tensor:
        """Transformed to physical values."""
        return signed_expm1(z, self.scale)


class Sqrt(nn.Module):
    """:func:`signed_sqrt`."""

    def forward(self, x: Tensor) -> Tensor:
        """Physical to transformed values."""
        return signed_sqrt(x)

    def inverse(self, z: Tensor) -> Tensor:
        """Transformed to physical values."""
        return signed_square(z)


class Quantile(nn.Module):
    """The map between the distribution of a sample and the standard normal one, with its knots as buffers.

    Where the sample begins or ends with an atom (:func:`inner_scores`), all scores of it are that very value.
    """

    values: Tensor
    scores: Tensor
    inner: Tensor

    def __init__(self, knots: Knots) -> None:
        super().__init__()
        self.register_buffer("values", knots[0])
        self.register_buffer("scores", knots[1])
        self.register_buffer("inner", inner_scores(knots))

    def forward(self, x: Tensor) -> Tensor:
        """Physical values to normal scores."""
        inside = (x > self.values[0]) & (x < self.values[-1])
        within = piecewise_linear(x, self.values, self.inner)
        return _finite(torch.where(inside, within, piecewise_linear(x, self.values, self.scores)))

    def inverse(self, z: Tensor) -> Tensor:
        """Normal scores to physical values; infinite ones stay infinite, to be found."""
        low = (self.inner[0] > self.scores[0]) & (z <= self.inner[0]) & z.isfinite()
        high = (self.inner[-1] < self.scores[-1]) & (z >= self.inner[-1]) & z.isfinite()
        x = piecewise_linear(z, self.inner, self.values)
        return torch.where(low, self.values[0], torch.where(high, self.values[-1], x))


Transform = Log1p | Sqrt | Quantile


class Transforms(nn.Module):
    """The transforms of those variables that have one; others stay as they are.

    :param least: by variable, the least value that is generated.
    :param dry: by variable, what becomes the least value where less is generated.
    """

    def __init__(
        self, transforms: Mapping[str, Transform], least: Mapping[str, float], dry: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.by_variable = nn.ModuleDict({_key(name): each for name, each in transforms.items()})
        self.least = dict(least)
        self.dry = dict(dry)

    def forward(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """Transform physical ``[…, variable, lat, lon]``, whose variables are *names*."""
        return self._each(x, names, lambda _, transform, own: transform.forward(own))

    def inverse(self, z: Tensor, names: Sequence[str]) -> Tensor:
        """Back from :meth:`forward` to physical units, but not below what is the least."""
        return self._each(z, names, self._back)

    def _back(self, name: str, transform: Transform, z: Tensor) -> Tensor:
        x = self.not_below(name, transform.inverse(z))
        if name not in self.dry:
            return x
        return torch.where((x < self.dry[name]) & ~x.isinf(), self.least[name], x)

    def not_below(self, name: str, x: Tensor) -> Tensor:
        """Raise physical values to what is the least of that variable."""
        if name not in self.least:
            return x
        return torch.where(x.isinf(), x, x.clamp(min=self.least[name]))  # the infinite is to be found

    def any_of(self, names: Sequence[str]) -> bool:
        """Whether one of the variables *names* has a transform."""
        return any(_key(name) in self.by_variable for name in names)

    def _each(
        self, x: Tensor, names: Sequence[str], apply: Callable[[str, Transform, Tensor], Tensor]
    ) -> Tensor:
        """Apply the transform of each variable, if it has one; without any, *x* is what comes back."""
        if not self.any_of(names):
            return x
        transforms = cast("dict[str, Transform]", dict(self.by_variable.items()))
        found = [transforms.get(_key(name)) for name in names]
        fields = [
            own if transform is None else apply(name, transform, own)
            for name, transform, own in zip(names, found, x.unbind(-3), strict=True)
        ]
        return torch.stack(fields, -3)


def _key(name: str) -> str:
    """Call a variable what a module may be called: no dot, and no method of :class:`torch.nn.ModuleDict`."""
    return "of_" + name.replace(".", "%2E")


def make_transforms(options: Mapping[str, TransformConfig], knots: Mapping[str, Knots]) -> Transforms:
    """Build the transforms that the *options* ask for.

    :param knots: of each variable with a quantile transform.
    """
    return Transforms(
        {name: _make(name, option, knots) for name, option in options.items()},
        {name: option.minimum for name, option in options.items() if option.minimum is not None},
        {name: option.dry_below for name, option in options.items() if option.dry_below is not None},
    )


def _make(name: str, option: TransformConfig, knots: Mapping[str, Knots]) -> Transform:
    if option.name == "sqrt":
        return Sqrt()
    if option.name == "quantile":
        return Quantile(knots[name])
    return Log1p(option.scale)
