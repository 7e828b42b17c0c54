"""The coarse cells of a trained model are found again in other data: those that training paired, by its own code."""

from __future__ import annotations

import numpy as np
import pytest

from hookloop.data.fields import Fields
from hookloop.data.grids import latitude_axis, longitude_axis
from hookloop.data.options import SourceConfig
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.alignment import by_cells, by_index
from hookloop.plugins.downscaling.coarse_region import FineGrid, Region, trained_region
from hookloop.plugins.downscaling.data_options import SplitConfig

NONE = np.empty(0, "datetime64[ns]")


def grid(south: float, north: float, west: float, east: float, step: float) -> Fields:
    """Cells of *step* degrees between these edges."""
    latitude = np.arange(south + step / 2, north, step)
    longitude = np.arange(west + step / 2, east, step)
    return Fields("some files", {}, NONE, latitude_axis(latitude), longitude_axis(longitude))


def numbered(rows: int, columns: int) -> Fields:
    """Rows and columns without places."""
    axes = latitude_axis(np.arange(rows)), longitude_axis(np.arange(columns))
    return Fields("some files", {}, NONE, *axes, gridded=False)


def model_grid(fine: Fields) -> FineGrid:
    """What a model keeps: single precision."""
    kept = (axis.values.astype(np.float32).astype(np.float64) for axis in (fine.latitude, fine.longitude))
    return FineGrid(*kept)


def split(**box: tuple[float, float]) -> SplitConfig:
    return SplitConfig([SourceConfig("a")], [SourceConfig("b")], **box)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("coarse", "fine", "box"),
    [
        (grid(40, 60, -20, 20, 2.0), grid(40, 60, -20, 20, 0.5), {}),
        (grid(40, 60, -20, 20, 2.0), grid(44, 56, -10, 4, 0.5), {}),
        (grid(-90, 90, 0, 360, 2.0), grid(-90, 90, 0, 360, 1.0), {}),
        (grid(-90, 90, 0, 360, 2.0), grid(-90, 90, -180, 180, 1.0), {}),
        (grid(-90, 90, 0, 360, 2.0), grid(-90, 90, 0, 360, 1.0), {"lat": (30, 50), "lon": (-21, 17)}),
        (grid(-90, 90, -180, 180, 2.0), grid(-90, 90, 0, 360, 1.0), {"lat": (30, 50), "lon": (151, 201)}),
        (grid(49.35, 59.7, -10.55, 2.45, 0.65), grid(49.35, 59.7, -10.55, 2.45, 0.13), {}),
    ],
)
def test_the_cells_that_training_chose(
    coarse: Fields, fine: Fields, box: dict[str, tuple[float, float]]
) -> None:
    """In the same order, whether a box chose them or what the fine cells fill; and whether they go round."""
    aligned = by_cells(coarse, fine, split(**box))
    found = trained_region(coarse, model_grid(aligned.fine), "cells")
    assert found.factor == aligned.factor
    assert found.periodic == aligned.periodic
    np.testing.assert_array_equal(found.coarse.latitude.index, aligned.coarse.latitude.index)
    np.testing.assert_array_equal(found.coarse.longitude.index, aligned.coarse.longitude.index)


def test_longitudes_of_the_other_convention_are_the_same_cells() -> None:
    """Of a model trained from 350 on, in files that begin at -180."""
    fine = FineGrid(np.arange(40.5, 50), np.arange(350.5, 380))
    found = trained_region(grid(-90, 90, -180, 180, 5.0), fine, "cells")
    assert found.coarse.longitude.values.tolist() == [352.5, 357.5, 362.5, 367.5, 372.5, 377.5]
    assert found.coarse.longitude.index.tolist() == [34, 35, 36, 37, 38, 39]
    assert not found.periodic


@pytest.mark.parametrize(("rows", "columns", "periodic"), [(9, 36, False), (9, 18, False)])
def test_rows_and_columns_are_paired_by_number(rows: int, columns: int, periodic: bool) -> None:  # noqa: FBT001
    """Wherever they are; nothing without places goes round anything."""
    coarse, fine = numbered(rows, columns), numbered(rows * 10, columns * 10)
    aligned = by_index(coarse, fine, split())
    grid_of_model = model_grid(fine)
    found = trained_region(coarse, grid_of_model, "index")
    assert not grid_of_model.gridded
    assert (found.factor, found.periodic) == (aligned.factor, aligned.periodic) == (10, periodic)


def test_globes_are_paired_by_number_too() -> None:
    """And go round, as in training."""
    coarse, fine = grid(-90, 90, 0, 360, 10.0), grid(-90, 90, 0, 360, 2.0)
    aligned = by_index(coarse, fine, split())
    found: Region = trained_region(coarse, model_grid(fine), "index")
    assert (found.factor, found.periodic) == (aligned.factor, aligned.periodic) == (5, True)


@pytest.mark.parametrize(
    ("coarse", "pairing", "message"),
    [
        (grid(40, 60, -20, 0, 2.0), "cells", "-19 to -1 E; the model was trained on 10 x 20 cells"),
        (grid(40.5, 60.5, -20, 20, 2.0), "cells", "with centres 41 to 59 N, -19 to 19 E, expected those"),
        (grid(40, 60, -20, 20, 0.7), "cells", "of which no whole number makes a coarse one"),
        (grid(40, 60, -20, 20, 8.0), "cells", "of which no whole number makes a coarse one"),
        (numbered(10, 20), "cells", "no latitude and longitude along dimensions of their own"),
        (numbered(10, 10), "index", "10 x 10 coarse cells; the model was trained on 40 x 80 fine cells"),
    ],
)
def test_other_cells_are_refused(coarse: Fields, pairing: str, message: str) -> None:
    """With what is there and what is expected."""
    fine = model_grid(grid(40, 60, -20, 20, 0.5))
    with pytest.raises(HookloopError, match=f"some files: .*{message}"):
        trained_region(coarse, fine, pairing)  # type: ignore[arg-type]
