"""What the benchmarks conclude from numbers: they are run seldom, on other machines."""

from __future__ import annotations

import math
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import xarray as xr

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
EXACT = {"crps": 1.0, "spread_skill": 1.0}


def script(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script at *path* as a module, its neighbours importable as when it is run."""
    spec = spec_from_file_location(Path(path).stem, BENCHMARKS / path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.syspath_prepend(str(BENCHMARKS / Path(path).parent))
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def analytic(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("analytic/run.py", monkeypatch)


def scored(analytic: ModuleType, daily: list[float], **other: Any) -> Any:
    """Days of 24 hours each, perfect but for what is given."""
    known = {"crps": float(np.mean(daily)), "spread_skill": 1.0, "rings": [0.0] * 25}
    return analytic.Scored(daily_crps=daily, hours=[24] * len(daily), **{**known, **other})


def test_what_hurts_every_day_is_seen_through_days_that_differ(analytic: ModuleType) -> None:
    """Days differ by far more than the models do, so only the difference on the same days can tell."""
    easy_and_hard = [0.5, 1.5, 0.4, 1.6, 0.7, 1.3]
    own = scored(analytic, easy_and_hard)
    assert analytic.verdict(own, scored(analytic, [d + 0.02 for d in easy_and_hard]), EXACT)[
        "without statics"
    ] == (
        True,
        "1.020 times the CRPS; larger by 0.0200 to 0.0200 K (95 %, paired by day)",
    )
    at_times = [d + more for d, more in zip(easy_and_hard, [0.3, -0.2] * 3, strict=True)]
    assert not analytic.verdict(own, scored(analytic, at_times), EXACT)["without statics"][0]


def test_the_interval_of_the_difference_holds_what_theory_says(analytic: ModuleType) -> None:
    """Of many days it is the mean +- 1.96 standard errors; a day of few hours counts as little."""
    more = np.random.default_rng(1).normal(0.1, 0.05, 400)
    own = scored(analytic, [1.0] * 400)
    low, high = analytic.difference(own, scored(analytic, (1.0 + more).tolist()))
    error = 1.96 * more.std() / math.sqrt(400)
    np.testing.assert_allclose([low, high], [more.mean() - error, more.mean() + error], atol=0.1 * error)
    short = analytic.Scored(1.0, 1.0, [1.0] * 5 + [9.0], [1000] * 5 + [0], [0.0])
    assert analytic.difference(short, scored(analytic, [2.0] * 6)) == pytest.approx((1.0, 1.0))


def test_few_days_show_nothing_and_it_is_said(analytic: ModuleType) -> None:
    """In words, not NaN."""
    holds, words = analytic.verdict(scored(analytic, [1.0] * 4), scored(analytic, [2.0] * 4), EXACT)[
        "without statics"
    ]
    assert not holds
    assert words == "2.000 times the CRPS; not shown by 4 days, expected 5 or more to resample"


@pytest.mark.parametrize(
    ("rings", "holds"),
    [
        ([0.0] * 20 + [-0.06] * 5, False),  # a band that is wrong, though the mean over all is 1.2 %
        ([0.0] * 24 + [0.15], True),  # a ring that is off by chance
        ([0.04] * 25, True),
        ([0.06, -0.06] * 12, True),  # noise
    ],
)
def test_the_spectrum_is_judged_by_bands(analytic: ModuleType, rings: list[float], holds: bool) -> None:  # noqa: FBT001
    """Neither by single rings nor by the mean over all of them; the worst ring is told."""
    own = scored(analytic, [1.0] * 5, rings=rings)
    found, words = analytic.verdict(own, own, EXACT)["spectrum"]
    assert found is holds
    assert f"{100 * max(map(abs, rings)):.1f} % in the worst ring" in words


def test_members_are_scored_against_the_truth_of_the_same_day(analytic: ModuleType, tmp_path: Path) -> None:
    """Two days, rows of one file the other way round; the CRPS of two members by its definition."""
    generator = np.random.default_rng(0)
    times = np.datetime64("2020-01-01", "ns") + np.arange(48) * np.timedelta64(1, "h")
    axes = {"latitude": np.arange(8.0), "longitude": np.arange(8.0)}
    truth = xr.DataArray(generator.normal(size=(48, 8, 8)), {"time": times, **axes}, name="t2m")
    members = truth.expand_dims(member=2, axis=1) + generator.normal(size=(48, 2, 8, 8))
    truth.to_netcdf(tmp_path / "fine.nc", engine="h5netcdf")
    members.rename("t2m").isel(latitude=slice(None, None, -1)).to_zarr(
        tmp_path / "made.zarr", consolidated=False
    )
    days = analytic.days_of(tmp_path / "made.zarr", tmp_path / "fine.nc")
    found = analytic.Scored.of(days)
    a, b, y = members.values[:, 0], members.values[:, 1], truth.values
    crps = (abs(a - y) + abs(b - y)) / 2 - abs(a - b) / 2
    np.testing.assert_allclose(found.daily_crps, [crps[:24].mean(), crps[24:].mean()])
    np.testing.assert_allclose(found.crps, crps.mean())
    assert found.hours == [24, 24]
    assert len(found.rings) == 3  # wave numbers 1, 2, 3: below 0.8 of 4
    assert torch.isfinite(torch.tensor(found.rings)).all()


def test_a_score_of_zero_is_printed_and_networks_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bias at all is a result; what is undefined is none."""
    ours = script("era5_uk/ours.py", monkeypatch)
    assert ours.shown({"crps": 0.1, "bias": 0.0, "tail_error": None}) == "crps 0.1000, bias 0.0000"
    assert (ours.called(1), ours.called(8)) == ("1 network (of fme's size)", "8 networks (deep ensemble)")
