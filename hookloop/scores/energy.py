"""Energy score: the CRPS of whole fields, which sees whether their pixels belong together.

Source: Gneiting & Raftery 2007 (doi:10.1198/016214506000001437), section 4.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs.validators import ge, optional

from hookloop.scores.ensemble import _float64, check_cases, numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hookloop.scores.score import Cases, Chart, Maps, Sum


def fair_energy_score(members: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Give mean ‖x - y‖ - 1/2 mean ‖x - x'‖ over distinct members, unbiased for the members being a sample.

    The norm is √(Σ w d² / Σ w), so that it does not grow with the number of pixels: of one pixel it is the
    CRPS. Distances are taken from differences, not from products: nothing cancels where members are alike.

    :param members: ``[part, member, pixel]``, float64, two members or more.
    :param truth: ``[part, pixel]``, float64.
    :param weights: area of each pixel, ``[part, pixel]``.
    :returns: ``[part]``, zero where a part has no area.
    """
    import torch

    m = members.shape[1]
    shares = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    departures = (members - truth[:, None]) * shares.sqrt()[:, None]
    apart = torch.zeros_like(shares[:, 0])
    for i in range(1, m):  # every pair once, those of all parts at a time
        apart += torch.linalg.vector_norm(departures[:, i:] - departures[:, :-i], dim=2).sum(1)
    return departures.square().sum(2).sqrt().mean(1) - apart / (m * (m - 1))


def _tiles(fields: Tensor, side: int | None) -> Tensor:
    """Cut ``[…, lat, lon]`` into ``[…, tile, pixel]``: square tiles of *side* cells, or one of everything."""
    if side is None:
        return fields.flatten(-2).unsqueeze(-2)
    return fields.unfold(-2, side, side).unfold(-2, side, side).flatten(-2).flatten(-3, -2)


@frozen
class EnergyScore:
    """Fair energy score of whole fields, or of square tiles of them."""

    chosen_as: ClassVar[str] = "energy"
    comparable: ClassVar[tuple[str, ...]] = ()

    tile: int | None = field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "cells a side of the tiles that are scored each; null for the whole field at once"},
    )

    @property
    def _name(self) -> str:
        return "energy_score" if self.tile is None else f"energy_score_{self.tile}"

    @property
    def smaller_is_better(self) -> tuple[str, ...]:
        """Its only result, whose name has the side of the tiles."""
        return (self._name,)

    @property
    def headline(self) -> tuple[str, ...]:
        """The same."""
        return (self._name,)

    def sums(self, cases: Cases) -> dict[str, Sum]:
        """Scores of all cases and tiles, each tile as often as its area says.

        :raises ValueError: for fewer than two members, shapes that do not fit, or a field that is not made of
            whole tiles.
        """
        check_cases(cases)
        if self.tile is not None and any(cells % self.tile for cells in cases.truth.shape[1:]):
            raise ValueError(
                f"expected fields of whole tiles of {self.tile} cells, found {list(cases.truth.shape[1:])}"
            )
        truth = _tiles(_float64(cases.truth), self.tile)
        members = _tiles(_float64(cases.members), self.tile).transpose(1, 2)
        weights = _tiles(cases.weights.to(truth), self.tile).expand_as(truth)
        parts = fair_energy_score(members.flatten(0, 1), truth.flatten(0, 1), weights.flatten(0, 1))
        area = weights.sum(-1).flatten()
        return {"area": area.sum(), "energy_score": (parts * area).sum()}

    def results(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """``energy_score``, or ``energy_score_<tile>``, in units of the variable."""
        total = numbers(sums)
        return {self._name: total["energy_score"] / total["area"]} if total.get("area") else {}

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Chart | Maps]:  # noqa: ARG002 - a Score's
        """Nothing to draw."""
        return ()
