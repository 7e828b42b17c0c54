"""Whether block means of what was generated are the coarse field that it was generated from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from hookloop.scores.ensemble import _float64, check_cases, numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hookloop.scores.score import Cases, Chart, Maps, Sum


def block_sums(fields: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum blocks of ``[…, lat, lon]`` to ``[…, *shape]``: as many whole cells in each.

    :raises ValueError: where the cells are not whole.
    """
    lat, lon = fields.shape[-2:]
    if not all(shape) or lat % shape[0] or lon % shape[1]:
        raise ValueError(
            f"expected a coarse field whose cells are whole cells of {[lat, lon]}, found {list(shape)}"
        )
    return fields.reshape(*fields.shape[:-2], shape[0], lat // shape[0], shape[1], lon // shape[1]).sum(
        (-1, -3)
    )


@frozen
class CoarseConsistency:
    """Error of block means of each member, and of the truth, against the variable's own coarse field.

    Block means are weighted by the areas of the fine cells. Coarse fields made as plain means differ from them
    by a little where areas differ within a block: ``coarse_error_truth`` says by how much.
    """

    chosen_as: ClassVar[str] = "consistency"
    smaller_is_better: ClassVar[tuple[str, ...]] = ("coarse_error",)
    comparable: ClassVar[tuple[str, ...]] = ()
    headline: ClassVar[tuple[str, ...]] = ()

    def sums(self, cases: Cases) -> dict[str, Sum]:
        """Squared errors over cases and area; nothing where there is no coarse field.

        :raises ValueError: for shapes that do not fit or cells that are not whole.
        """
        import torch

        check_cases(cases)
        if cases.coarse is None:
            return {}
        coarse, shape = _float64(cases.coarse), cases.coarse.shape[1:]
        if len(coarse) != len(cases.truth):
            raise ValueError(f"expected {len(cases.truth)} coarse fields, found {len(coarse)}")
        weights = cases.weights.to(coarse)
        area = block_sums(weights, shape)
        per_area = area.clamp_min(torch.finfo(area.dtype).tiny)
        # From the coarse cell itself, so that large values keep their digits.
        own = _spread_out(coarse, cases.truth.shape[1:])
        truth = block_sums((_float64(cases.truth) - own) * weights, shape) / per_area
        members = block_sums((_float64(cases.members) - own[:, None]) * weights, shape) / per_area
        return {
            "area": area.sum() * len(coarse),
            "members": (members.square().mean(1).sum(0) * area).sum(),
            "truth": (truth.square().sum(0) * area).sum(),
        }

    def results(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """``coarse_error`` of the members and ``coarse_error_truth``: root mean squares, in units of the variable."""
        total = numbers(sums)
        if not total.get("area"):
            return {}
        return {
            "coarse_error": math.sqrt(total["members"] / total["area"]),
            "coarse_error_truth": math.sqrt(total["truth"] / total["area"]),
        }

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Chart | Maps]:  # noqa: ARG002 - a Score's
        """Nothing to draw."""
        return ()


def _spread_out(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """Give every fine cell its coarse cell's value."""
    rows = coarse.repeat_interleave(shape[0] // coarse.shape[1], dim=1)
    return rows.repeat_interleave(shape[1] // coarse.shape[2], dim=2)
