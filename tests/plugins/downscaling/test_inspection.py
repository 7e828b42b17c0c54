"""``hookloop inspect``: what it prints and draws is what the files hold and what a run would do."""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
import zarr
from attrs import evolve

from hookloop import logs, manager, yamlfile
from hookloop.cli import main
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import PatchConfig, SplitConfig
from hookloop.plugins.downscaling.dataset import PairedData
from hookloop.plugins.downscaling.inspection import Inspection, inspect
from hookloop.plugins.downscaling.inspection_figure import domain_figure
from hookloop.plugins.downscaling.rehearsal import Rehearsal
from hookloop.plugins.downscaling.splits import open_data, open_pairs
from hookloop.plugins.downscaling.stores import HALO, held, open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hookloop.core import Run
    from hookloop.plugins.downscaling.pairs import Pair

HOURS = 48
FACTOR = 2
ROWS, COLUMNS = 6, 8
LAT, LON = 40.5 + np.arange(ROWS), -3.5 + np.arange(COLUMNS)
CPU = torch.device("cpu")


class Answer:
    """What a command printed and answered."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def row(self, name: str) -> list[str]:
        """The cells of the only line that begins with *name*, however it is indented."""
        lines = [[cell for cell in line.split("  ") if cell.strip()] for line in self.out.splitlines()]
        (found,) = [cells[1:] for cells in lines if cells and cells[0].strip() == name]
        return [cell.strip() for cell in found]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run ``hookloop inspect`` in this process."""

    def called(*arguments: object) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main(["inspect", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, out, err)

    return called


def finer(centres: np.ndarray) -> np.ndarray:
    """Centres of the fine cells below coarse ones."""
    step = centres[1] - centres[0]
    return (centres[:, None] + step * ((np.arange(FACTOR) + 0.5) / FACTOR - 0.5)).reshape(-1)


def save(path: Path, values: np.ndarray, times: object, lat: np.ndarray, lon: np.ndarray) -> str:
    """Write ``[time, lat, lon]`` as precipitation, north first."""
    variable = (("time", "lat", "lon"), values[:, ::-1], {"units": "mm"})
    coordinates = {"time": times, "lat": lat[::-1], "lon": lon}
    xr.Dataset({"pr": variable}, coordinates).to_netcdf(path, engine="h5netcdf")
    return str(path)


class Files:
    """Two days of hourly fields, and a configuration that uses them."""

    def __init__(self, folder: Path, times: object, lat: np.ndarray = LAT, lon: np.ndarray = LON) -> None:
        self.folder = folder
        noise = np.random.default_rng(3)
        shape = HOURS, len(lat) * FACTOR, len(lon) * FACTOR
        self.fine = noise.standard_normal(shape).astype(np.float32)
        self.coarse = self.fine.reshape(HOURS, len(lat), FACTOR, len(lon), FACTOR).mean((2, 4))
        self.times, self.lat, self.lon = times, lat, lon

    def config(self, **options: Any) -> Path:
        """Write the files and ``cfg.yaml``: the first day is learnt, the second is looked at."""
        coarse = save(self.folder / "coarse.nc", self.coarse, self.times, self.lat, self.lon)
        fine = save(self.folder / "fine.nc", self.fine, self.times, finer(self.lat), finer(self.lon))
        split = {"coarse": [coarse], "fine": [fine], "batch_size": 5}
        section = {
            "train": {**split, "time": ["2019-01-01", "2019-01-01"]},
            "validation": {**split, "time": ["2019-01-02", "2019-01-02"]},
            "model": {"inputs": ["pr"], "outputs": ["pr"]},
        }
        for name, value in options.items():
            section[name] = {**section.get(name, {}), **value} if isinstance(value, dict) else value
        path = self.folder / "cfg.yaml"
        document = {
            "plugins": ["downscaling"],
            "run": {"device": "cpu", "dir": str(self.folder / "run")},
            "downscaling": section,
        }
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A region that crosses the prime meridian."""
    return Files(tmp_path, np.datetime64("2019-01-01T00", "ns") + np.arange(HOURS) * np.timedelta64(1, "h"))


def run_of(path: Path) -> Run:
    """Make the run of a configuration."""
    document = yamlfile.read(path.read_text(encoding="utf-8"), str(path), ())
    return manager.make_run(manager.assemble(document, None), logs.events_to(None))


def inspected(path: Path) -> Inspection:
    """Inspect without printing."""
    run = run_of(path)
    return inspect(run.plugins["downscaling"], run)  # type: ignore[arg-type]


def test_help_comes_without_torch() -> None:
    """Nor any other library that takes seconds."""
    heavy = "{'torch', 'numpy', 'xarray', 'matplotlib', 'rich'}"
    code = (
        "import sys\nfrom hookloop.cli import main\n"
        "try: main(['inspect', '--help'])\n"
        f"except SystemExit: print('heavy', {heavy} & {{name.split('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "--no-statistics" in done.stdout
    assert "heavy set()" in done.stdout


def test_the_table_is_what_arithmetic_says(files: Files, call: Callable[..., Answer]) -> None:
    """Grids, times, patches, batches and bytes of a configuration worked out by hand."""
    path = files.config(
        train={"every": "2h", "lat": [41, 45], "lon": [-3, 4]},
        validation={"lat": [41, 45], "lon": [-3, 4]},
        patch={"coarse": [2, 4], "per_sample": 3},
        gap="4h",
    )
    answer = call(path, "--no-statistics")

    assert (answer.code, answer.err) == (0, "")
    assert answer.row("cells (lat x lon)") == ["4 x 7", "8 x 14"]
    assert answer.row("of the files'") == ["6 x 8", "12 x 16"]
    assert answer.row("latitude") == ["41°N to 45°N"] * 2
    assert answer.row("longitude") == ["3°W to 4°E"] * 2
    assert answer.row("spacing") == ["1°", "0.5°"]
    assert answer.row("round the globe") == ["no", "no"]
    assert answer.row("factor")[0] == "2"
    # Every second hour of a day, but for 22 h, which is less than 4 h from midnight.
    assert answer.row("times") == ["11 of 48", "24 of 48"]
    assert answer.row("left out by time") == ["24", "24"]
    assert answer.row("left out by every") == ["12", "-"]
    assert answer.row("left out by gap") == ["1", "-"]
    assert answer.row("first") == ["2019-01-01T00:00", "2019-01-02T00:00"]
    assert answer.row("last") == ["2019-01-01T20:00", "2019-01-02T23:00"]
    assert answer.row("step") == ["2 h", "1 h"]
    assert answer.row("also learnt") == ["-", "-"]
    assert answer.row("samples an epoch") == ["33", "72"]
    assert answer.row("batches an epoch") == ["7 of 5", "15 of 5"]
    assert answer.row("size") == ["2 x 4 coarse, 4 x 8 fine cells"]
    # Two rows and two columns of tiles; (4 - 2 + 1) · (7 - 4 + 1) corners.
    assert answer.row("room in a field") == ["4 tiles, 12 places"]
    a_sample = 4 * ((2 + 2 * HALO) * (4 + 2 * HALO) + 4 * 8)
    assert answer.row("bytes a sample")[0].startswith(f"{a_sample} B ")
    assert answer.row("bytes a batch")[0].startswith(f"{5 * a_sample / 1024:.3g} KiB ")
    assert answer.row("bytes in memory")[0] == f"{4 * 11 * (4 * 7 + 8 * 14) / 1024:.3g} KiB"
    assert answer.row("served from") == ["RAM (auto)"] * 2
    assert [line.split() for line in answer.out.splitlines() if line.startswith("pr ")] == [
        ["pr", "coarse", "mm", "refused", "-"],
        ["pr", "fine", "mm", "refused", "-"],
    ]
    assert "hints" not in answer.out


def test_a_gap_that_leaves_nothing_out_is_said(files: Files, call: Callable[..., Answer]) -> None:
    """None of the hours of the first day is nearer than one hour to the second."""
    assert call(files.config(gap="1h"), "--no-statistics").row("left out by gap") == ["0", "-"]
    assert "left out by gap" not in call(files.config(), "--no-statistics").out


def test_a_split_that_is_served_from_files_takes_no_memory(files: Files, call: Callable[..., Answer]) -> None:
    """Bytes in memory are those of the other splits; without any the line is left out."""
    one = call(files.config(train={"cache": "none", "workers": 0}), "--no-statistics")
    none = {"cache": "none", "workers": 0}
    both = call(files.config(train=none, validation=none), "--no-statistics")

    assert one.row("bytes in memory") == ["-", f"{4 * 24 * 48 * (1 + FACTOR**2) / 1024:.3g} KiB"]
    assert "bytes in memory" not in both.out


def test_the_share_of_patches_in_each_region_is_told(files: Files, call: Callable[..., Answer]) -> None:
    """Of the 5 x 7 centres 3 x 3 lie in the first box with weight 4, and 3 others in the second with weight 2."""
    first = {"lat": [42.0, 44.0], "lon": [-1.0, 1.0], "weight": 4.0}
    second = {"lat": [44.0, 42.0], "lon": [1.0, 2.0], "weight": 2.0}
    path = files.config(patch={"coarse": [2, 2], "region": [first, second]})
    answer = call(path, "--no-statistics")

    total = 9 * 4 + 3 * 2 + (35 - 12)
    assert answer.row("region 1") == [f"42°N to 44°N, 1°W to 1°E: weight 4, {36 / total:.3g} of the patches"]
    assert answer.row("region 2") == [f"42°N to 44°N, 1°E to 2°E: weight 2, {6 / total:.3g} of the patches"]
    assert answer.row("outside") == [f"weight 1, {23 / total:.3g} of the patches"]
    assert "region" not in call(files.config(), "--no-statistics").out


def test_times_that_are_also_learnt_are_counted(files: Files, call: Callable[..., Answer]) -> None:
    """Six hours of the validation day are in the training range."""
    path = files.config(train={"time": ["2019-01-01", "2019-01-02T05"]})
    answer = call(path, "--no-statistics")

    assert answer.row("also learnt") == ["-", "6"]
    assert "validation: 6 of its 24 times are also learnt" in answer.out


def test_blocks_of_time_have_their_step_and_what_lies_between(
    files: Files, call: Callable[..., Answer]
) -> None:
    """Six hours of every eight: three blocks a day, 3 h from the last of one to the first of the next."""
    answer = call(files.config(train={"repeat": {"every": "8h", "take": "6h"}}), "--no-statistics")

    assert answer.row("times")[0] == "18 of 48"
    assert answer.row("left out by repeat") == ["6", "-"]
    assert answer.row("step")[0] == "1 h, 2 up to 3 h"


def test_a_calendar_of_a_climate_model_is_named(tmp_path: Path, call: Callable[..., Answer]) -> None:
    """Times need not be those of the standard calendar."""
    times = xr.date_range("2019-01-01", periods=HOURS, freq="h", calendar="360_day", use_cftime=True)
    answer = call(Files(tmp_path, times).config(), "--no-statistics")

    assert answer.row("calendar") == ["360_day", "360_day"]
    assert answer.row("first") == ["2019-01-01T00:00", "2019-01-02T00:00"]


def test_statistics_are_those_of_the_training_split(files: Files, call: Callable[..., Answer]) -> None:
    """Mean, standard deviation, least and most of the first day alone, as numpy has them."""
    answer = call(files.config())

    assert (answer.code, answer.err) == (0, "")
    rows = {cells[1]: cells for line in answer.out.splitlines() if (cells := line.split())[:1] == ["pr"]}
    for side, values in (("coarse", files.coarse), ("fine", files.fine)):
        day = values[:24].astype(np.float64)
        expected = [f"{number:.5g}" for number in (day.mean(), day.std(), day.min(), day.max())]
        assert rows[side] == ["pr", side, "mm", "refused", "-", *expected, "0"]


@pytest.mark.parametrize(("name", "scale"), [("log1p", 1e-4), ("sqrt", 1.0)])
def test_transformed_values_have_statistics_too(
    files: Files, call: Callable[..., Answer], name: str, scale: float
) -> None:
    """Below those of the values themselves, as numpy has them."""
    files.fine, files.coarse = np.abs(files.fine) / 1000, np.abs(files.coarse) / 1000
    answer = call(files.config(transforms={"pr": {"name": name, "scale": scale}}))

    assert (answer.code, answer.err) == (0, "")
    below = [line.split() for line in answer.out.splitlines() if line.strip().startswith(f"after {name}")]
    for row, side, values in zip(below, ("coarse", "fine"), (files.coarse, files.fine), strict=True):
        day = values[:24].astype(np.float64)
        there = np.log1p(day / scale) if name == "log1p" else np.sqrt(day)
        assert row[2] == side
        expected = [there.mean(), there.std(), there.min(), there.max()]
        assert [float(number) for number in row[3:]] == pytest.approx(expected, rel=1e-4)
    assert "hints" not in answer.out


def test_a_transform_by_quantiles_is_left_to_the_run(files: Files, call: Callable[..., Answer]) -> None:
    """Only a run measures the quantiles; the values themselves are described all the same."""
    answer = call(files.config(transforms={"pr": {"name": "quantile"}}))

    assert (answer.code, answer.err) == (0, "")
    assert "after" not in answer.out


def test_a_scale_of_log1p_far_above_the_values_is_hinted_at(
    files: Files, call: Callable[..., Answer]
) -> None:
    """One that is a hundred times the greatest value bends nothing; their standard deviation is one that does."""
    files.fine, files.coarse = np.abs(files.fine) / 1e5, np.abs(files.coarse) / 1e5
    path = files.config(transforms={"pr": {"name": "log1p"}})
    answer = call(path)

    fine = files.fine[:24].astype(np.float64)
    most, std = f"{fine.max():.2g}", f"{fine.std():.1g}"
    assert (answer.code, answer.err) == (0, "")
    assert f"- pr: log1p with scale 1 hardly changes values of at most {most}" in answer.out
    assert f"such as {std}, their standard deviation" in answer.out
    assert "hints" not in call(path, "--set", f"downscaling.transforms.pr.scale={float(std)}").out


@pytest.mark.parametrize("value", [1e31, -4e4])
def test_a_field_that_looks_damaged_is_hinted_at(
    files: Files, call: Callable[..., Answer], value: float
) -> None:
    """Of any split: with values beyond 1e30, or thousands of the usual spread of a field, here 1, from the rest."""
    files.fine[5:8, :4, :4], files.fine[30, 2, 3] = value, value
    answer = call(files.config())

    assert (answer.code, answer.err) == (0, "")
    hints = answer.out.split("hints on the values\n")[1].splitlines()
    assert len(hints) == 2
    assert hints[0].startswith("- train: pr, fine: values from ")
    assert "in 3 of 24 fields, the first at 2019-01-01T05:00;" in hints[0]
    assert hints[1].startswith("- validation: pr, fine: values from ")
    assert "in 1 of 24 fields, the first at 2019-01-02T06:00;" in hints[1]


def test_heavy_rain_in_dry_fields_is_not_taken_for_damage(files: Files, call: Callable[..., Answer]) -> None:
    """Three in four hours are dry and do not vary; 200 mm is hundreds of the usual spreads of those with rain."""
    noise = np.random.default_rng(4)
    rain = noise.exponential(1.0, files.fine.shape) * (noise.random(files.fine.shape) < 0.1)
    files.fine = (rain * (np.arange(HOURS) % 4 == 0)[:, None, None]).astype(np.float32)
    files.fine[12, 4, 4] = 200.0
    answer = call(files.config())

    assert (answer.code, answer.err) == (0, "")
    assert "hints" not in answer.out


def test_the_level_that_is_read_is_named(files: Files, call: Callable[..., Answer]) -> None:
    """With its unit, whichever unit it was asked for in."""
    levels = files.folder / "levels.nc"
    source = {"path": str(levels), "rename": {"t850": "ta@850"}}
    path = files.config(
        train={"coarse": [str(files.folder / "coarse.nc"), source]},
        validation={"coarse": [str(files.folder / "coarse.nc"), source]},
        model={"inputs": ["pr", "t850"]},
    )
    data = xr.load_dataset(files.folder / "coarse.nc").rename(pr="ta")
    units = {"units": "hPa", "standard_name": "air_pressure", "positive": "down"}
    both = xr.concat([data, data + 1], xr.Variable("plev", [500.0, 850.0], units))
    both.transpose("time", "plev", "lat", "lon").to_netcdf(levels, engine="h5netcdf")
    answer = call(path)

    assert (answer.code, answer.err) == (0, "")
    (row,) = [line for line in answer.out.splitlines() if line.startswith("t850 ")]
    assert row.startswith("t850 (ta at 850 hPa)  coarse")
    assert f"{(files.coarse[:24].astype(np.float64) + 1).mean():.5g}" in row.split()


def test_missing_values_are_counted_and_filled(files: Files, call: Callable[..., Answer]) -> None:
    """A value in the place of missing ones counts in the statistics, and how many they are is said."""
    files.coarse[3, 1] = np.nan
    answer = call(files.config(fill={"pr": 0.5}))

    assert (answer.code, answer.err) == (0, "")
    day = np.nan_to_num(files.coarse[:24].astype(np.float64), nan=0.5)
    (row,) = [line.split() for line in answer.out.splitlines() if line.split()[:2] == ["pr", "coarse"]]
    assert row[3] == "0.5"
    assert row[5:7] == [f"{day.mean():.5g}", f"{day.std():.5g}"]
    assert row[-1] == f"{COLUMNS / day.size:.3%}"


def test_missing_values_that_a_run_refuses_are_refused_after_the_table(
    files: Files, call: Callable[..., Answer]
) -> None:
    """The error is the one of reading the split, and the table is there to look at."""
    files.fine[5, 2, 3:5] = np.nan
    path = files.config()
    with pytest.raises(HookloopError) as refused:
        held(inspected(path).train.pair, CPU)
    answer = call(path)

    assert answer.code == 2
    assert answer.err == f"{refused.value}\n"
    (row,) = [line.split() for line in answer.out.splitlines() if line.split()[:2] == ["pr", "fine"]]
    assert row[-1] == f"{2 / files.fine[:24].size:.3%}"


def test_missing_values_of_a_split_that_is_only_looked_at_are_refused(
    files: Files, call: Callable[..., Answer]
) -> None:
    """In the words of a run, which finds them before or, where it streams them, while it learns; but not unread."""
    files.fine[40, 2, 3] = np.nan
    path = files.config(validation={"cache": "none", "workers": 0})
    with pytest.raises(HookloopError) as refused:
        held(inspected(path).splits[1].pair, CPU)
    answer = call(path)

    assert (answer.code, answer.err) == (2, f"{refused.value}\n")
    assert f"variable pr: 1 of {files.fine[24:].size} values" in answer.err
    assert call(path, "--no-statistics").code == 0


def test_inputs_whose_files_begin_at_different_times_are_read_where_they_meet(
    files: Files, call: Callable[..., Answer]
) -> None:
    """As a run does: the ranges leave out the twelve hours that one of them lacks."""
    late = files.folder / "late.nc"
    path = files.config(
        train={
            "time": ["2019-01-01T12", "2019-01-01T23"],
            "coarse": [str(files.folder / "coarse.nc"), str(late)],
        },
        validation={"coarse": [str(files.folder / "coarse.nc"), str(late)]},
        model={"inputs": ["pr", "hus"]},
    )
    data = xr.load_dataset(files.folder / "coarse.nc").rename(pr="hus")
    data.isel(time=slice(12, None)).to_netcdf(late, engine="h5netcdf")
    answer = call(path)

    assert (answer.code, answer.err) == (0, "")
    assert answer.row("times") == ["12 of 48", "24 of 48"]
    assert answer.row("left out by time") == ["36", "24"]


def test_patches_for_which_there_is_no_memory_are_refused(
    files: Files, call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of a run that streams them; in memory none are shuffled, and nothing is refused."""
    monkeypatch.setattr("hookloop.data.reading.memory_of_machine", lambda: 2**16)
    patch = {"coarse": [2, 3], "per_sample": 8, "shuffle": 24}
    streamed = files.config(train={"cache": "none", "workers": 0}, validation={"cache": "ram"}, patch=patch)
    run = run_of(streamed)
    options: Any = run.plugins["downscaling"]
    with run.cleanup, pytest.raises(HookloopError) as refused:
        next(open_data(options, open_pairs(options), run)["train"].batches(0))
    answer = call(streamed, "--no-statistics")

    assert (answer.code, answer.err) == (2, f"{refused.value}\n")
    assert "192 samples are read together" in answer.err
    assert call(streamed, "--no-statistics", "--set", "downscaling.train.cache=ram").code == 0


def test_the_prime_meridian_is_neither_east_nor_west(tmp_path: Path, call: Callable[..., Answer]) -> None:
    """However it is rounded in the files."""
    times = np.datetime64("2019-01-01T00", "ns") + np.arange(HOURS) * np.timedelta64(1, "h")
    path = Files(tmp_path, times, lon=0.5 + np.arange(COLUMNS) - 1.3878e-14).config()
    assert call(path, "--no-statistics").row("longitude") == ["0° to 8°E"] * 2


def test_an_infinite_value_is_refused_even_where_missing_ones_are_filled(
    files: Files, call: Callable[..., Answer]
) -> None:
    """What fills missing values stands in for NaN and for nothing else."""
    files.coarse[2, 0, 0], files.coarse[3, 1, 1] = np.inf, np.nan
    answer = call(files.config(fill={"pr": 0.0}))

    assert answer.code == 2
    assert answer.err.startswith(f"variable pr: 1 of {files.coarse[:24].size} values")


def test_an_input_that_does_not_vary_is_refused(files: Files, call: Callable[..., Answer]) -> None:
    """It cannot be normalised."""
    files.coarse[:] = 4.0
    answer = call(files.config())

    assert answer.code == 2
    assert answer.err == (
        "pr in the training data: expected fields that vary; leave them out of downscaling.model.inputs\n"
    )


def test_problems_of_all_splits_come_at_once(files: Files, call: Callable[..., Answer]) -> None:
    """A line each, and nothing else is printed."""
    path = files.config(train={"coarse": ["a.nc"]}, validation={"time": ["2030-01-01", "2030-01-02"]})
    answer = call(path)

    assert (answer.code, answer.out) == (2, "")
    first, second = answer.err.splitlines()
    assert first.startswith("downscaling.train: a.nc: no such file")
    assert second.startswith("downscaling.validation: no times in 2030-01-01 to 2030-01-02")


def test_a_patch_and_static_fields_that_do_not_fit_are_told_together(
    files: Files, call: Callable[..., Answer]
) -> None:
    """What is wrong with every split is said once."""
    path = files.config(patch={"coarse": [7, 4]}, statics=[{"path": "nowhere.nc", "variable": "terrain"}])
    answer = call(path)

    assert answer.code == 2
    static, patch = answer.err.splitlines()
    assert "nowhere.nc" in static
    assert patch.startswith("downscaling.patch.coarse: a patch of 7 x 4 coarse cells is larger")


def test_without_the_plugin_there_is_nothing_to_inspect(files: Files, call: Callable[..., Answer]) -> None:
    """Its section alone does not make it run."""
    answer = call(files.config(), "--plugins", "ema")

    assert answer.code == 2
    assert "found none, expected exactly one" in answer.err


def test_a_bar_is_for_terminals_alone(files: Files) -> None:
    """On one the progress of reading is shown, and the table comes out whole."""
    script = shutil.which("script")
    if script is None:
        pytest.skip("no pseudo-terminal to be had")
    command = shlex.join([sys.executable, "-m", "hookloop", "inspect", str(files.config())])
    done = subprocess.run(
        [script, "-qec", command, "/dev/null"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "train: fields read" in done.stdout
    assert "validation: fields read" in done.stdout
    assert done.stdout.count("48/48") >= 2  # the first day of either side, and the second


def test_options_are_overridden_as_in_a_run(files: Files, call: Callable[..., Answer]) -> None:
    """``--set`` counts here too."""
    answer = call(files.config(), "--no-statistics", "--set", "downscaling.train.batch_size=12")

    assert answer.row("batches an epoch") == ["2 of 12", "5 of 5"]


@pytest.mark.parametrize("random_offset", [True, False])
def test_the_first_patches_are_those_of_the_run(files: Files, *, random_offset: bool) -> None:
    """They lie where the first batch that a run is given has them, wherever it reads from."""
    patch = {"coarse": [2, 3], "per_sample": 4, "shuffle": 3, "random_offset": random_offset}
    path = files.config(patch=patch)
    run = run_of(path)
    options: Any = run.plugins["downscaling"]
    found = inspect(options, run)
    with run.cleanup:
        batch = next(open_data(options, open_pairs(options), run)["train"].batches(0))

    np.testing.assert_array_equal(np.array(found.train.first) * FACTOR, batch.corner)


def rehearsal_of(pair: Pair, patch: PatchConfig, batch_size: int, workers: int = 0) -> Rehearsal:
    """A validation split, whose order needs no run."""
    split = SplitConfig(coarse=["-"], fine=["-"], cache="none", workers=workers, batch_size=batch_size)
    return Rehearsal("validation", split, patch, pair, run=None)  # type: ignore[arg-type]


def test_chunks_of_many_times_cost_as_many_times_as_much(pair_on_disk: Callable[..., Pair]) -> None:
    """Every job decodes the 20 times of each chunk that it needs; read together they are decoded once."""
    pair = pair_on_disk(40, 6, 8, chunks=(20, 6, 8))  # of 24 x 32 fine cells: 16 chunks, nothing too much
    alone = rehearsal_of(pair, PatchConfig(), batch_size=1)
    together = rehearsal_of(pair, PatchConfig(together=20), batch_size=1)
    cell = 6 * 8 + 24 * 32
    jobs = alone.asked().jobs
    chunks = sum(len(set(job.cuts[0].times // 20)) for job in jobs)

    assert sum(len(job.cuts[0].times) for job in jobs) == 40
    cost = alone.cost(alone.asked())
    assert cost.ratio == pytest.approx(chunks * 20 / 40)
    assert cost.bytes_a_patch == pytest.approx(chunks * 20 * 4 * 2 * cell / 40)  # of two variables
    assert together.cost(together.asked()).ratio == 1
    hint = alone.hint(cost)
    assert hint is not None
    assert "downscaling.patch.together: 20 makes that 1, or rechunk" in hint
    assert together.hint(together.cost(together.asked())) is None


def test_large_chunks_are_hinted_at(pair_on_disk: Callable[..., Pair]) -> None:
    """One field a chunk, patches of 2 x 2 of its 6 x 8 coarse cells: rechunk."""
    pair = pair_on_disk(10, 6, 8, chunks=(1, 24, 32))
    small = rehearsal_of(pair, PatchConfig(coarse=(2, 2)), batch_size=1)
    hint = small.hint(small.cost(small.asked()))

    assert hint is not None
    assert "take more of each field (downscaling.patch.per_sample), or rechunk" in hint
    assert hint.endswith("rechunk towards 6 x 6 coarse and 8 x 8 fine cells of one time")


def test_chunks_as_long_as_what_is_read_together_may_stay_so(pair_on_disk: Callable[..., Pair]) -> None:
    """Where together is set to the times of a chunk, the hint keeps them."""
    pair = pair_on_disk(10, 6, 8, chunks=(5, 24, 32))
    small = rehearsal_of(pair, PatchConfig(coarse=(2, 2), together=5), batch_size=1)
    hint = small.hint(small.cost(small.asked()))

    assert hint is not None
    assert hint.endswith("rechunk towards 6 x 6 coarse and 8 x 8 fine cells of 5 times")


@pytest.mark.parametrize("members", [1, 3])
def test_what_patches_share_is_used_once(pair_on_disk: Callable[..., Pair], members: int) -> None:
    """Whole fields in one chunk each: nothing is decoded in vain, though members share the fine field."""
    pair = pair_on_disk(4, 6, 8, members=members, chunks=(1, 24, 32))
    whole = rehearsal_of(pair, PatchConfig(), batch_size=4 * members)
    cost = whole.cost(whole.asked())

    assert cost.used == 4 * 2 * (members * 6 * 8 + 24 * 32)  # of two variables
    assert cost.ratio == 1


@pytest.mark.parametrize(
    ("chunks", "patch"),
    [
        ((1, 24, 32), PatchConfig()),
        ((4, 7, 9), PatchConfig(coarse=(3, 4), random_offset=False)),
        ((4, 7, 9), PatchConfig(coarse=(3, 4), random_offset=False, together=4)),
        ((4, 24, 32), PatchConfig(coarse=(3, 4), random_offset=False, per_sample=3)),
    ],
)
@pytest.mark.parametrize("members", [1, 2])
def test_the_cost_is_what_reading_decodes(
    pair_on_disk: Callable[..., Pair],
    monkeypatch: pytest.MonkeyPatch,
    chunks: tuple[int, int, int],
    patch: PatchConfig,
    members: int,
) -> None:
    """As many values as are in the chunks that the stores are asked for while an epoch is read."""
    pair = pair_on_disk(10, 6, 8, members=members, chunks=chunks)
    rehearsal = rehearsal_of(pair, patch, batch_size=2)
    cost = rehearsal.cost(rehearsal.asked())
    got: list[str] = []
    get = zarr.storage.LocalStore.get

    async def counted(store: Any, key: str, *rest: Any, **more: Any) -> Any:
        if "/c/" in key or key.startswith("c/"):
            got.append(f"{store.root}/{key}")
        return await get(store, key, *rest, **more)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    with ExitStack() as stack:
        store = open_store(pair, "none", rehearsal.workers, patch.together, CPU, lambda *_, **__: None, stack)
        data = PairedData(pair, store, patch, 2, None, CPU)
        batches = list(data.batches(0))

    sides = {True: pair.coarse, False: pair.fine}
    sizes = {
        is_coarse: math.prod(next(iter(fields.parts.values()))[0].chunks.values())
        for is_coarse, fields in sides.items()
    }
    assert cost.patches == sum(len(batch) for batch in batches)
    assert cost.decoded == sum(sizes["coarse" in name] for name in got)


def test_the_buffer_is_two_blocks_of_patches(files: Files) -> None:
    """Three reads of four patches each, twice."""
    path = files.config(
        train={"cache": "none", "workers": 0}, patch={"coarse": [2, 3], "per_sample": 4, "shuffle": 3}
    )
    found = inspected(path)
    a_sample = 4 * ((2 + 2 * HALO) * (3 + 2 * HALO) + 4 * 6)

    assert found.train.stream is not None
    assert found.train.stream.buffer == 2 * 3 * 4 * a_sample
    assert found.splits[1].stream is None


def boxes(ax: Any) -> list[tuple[float, ...]]:
    """What is outlined, as west, south, east, north."""
    return [
        tuple(
            round(float(edge), 6) for edge in box.get_extents().transformed(ax.transData.inverted()).extents
        )
        for box in ax.patches
    ]


def test_the_figure_shows_the_fields_where_they_are(files: Files) -> None:
    """North is up, the pixels are the first time's, and the first patch is outlined where it lies."""
    found = inspected(files.config(patch={"coarse": [2, 3]}))
    coarse, fine = domain_figure(found).axes[:2]

    for ax, values in ((coarse, files.coarse), (fine, files.fine)):
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array(), values[0])
        assert ax.get_ylim() == (40.0, 46.0)
        assert ax.get_xlim() == (-4.0, 4.0)
        row, column = found.train.first[0]
        assert (-4.0 + column, 40.0 + row, -1.0 + column, 42.0 + row) in boxes(ax)
    assert coarse.get_title() == "coarse: 6 x 8 cells, 1°"
    assert len(boxes(coarse)) == len(boxes(fine)) + 1  # the halo


def test_the_figure_shows_regions_and_what_is_not_used(files: Files) -> None:
    """A region is outlined, files that reach further than the domain are shaded as far as they do."""
    box = {"lat": [41, 45], "lon": [-3, 4]}
    region = {"lat": [42.0, 44.0], "lon": [-1.0, 2.0], "weight": 4.0}
    found = inspected(files.config(train=box, validation=box, patch={"coarse": [2, 2], "region": region}))
    coarse, fine = domain_figure(found).axes[:2]

    for ax in (coarse, fine):
        assert (-1.0, 42.0, 2.0, 44.0) in boxes(ax)
        assert (-4.0, 40.0, 4.0, 46.0) in boxes(ax)
        assert ax.get_xlim()[0] < -3.0
        assert ax.get_xlim()[1] == 4.0  # there is nothing further east
    assert [text.get_text().strip() for text in fine.texts] == ["weight 4"]
    assert coarse.get_title() == "coarse: 4 x 7 of 6 x 8 cells, 1°"


def test_patches_of_the_first_batch_lie_on_the_edges_of_cells(files: Files) -> None:
    """All of them are outlined exactly, and told apart by colour and width instead."""
    found = inspected(files.config(patch={"coarse": [2, 3]}))
    _, fine = domain_figure(found).axes[:2]

    expected = [(-4.0 + x, 40.0 + y, -1.0 + x, 42.0 + y) for y, x in found.train.first]
    assert sorted(boxes(fine)) == sorted(expected)
    assert len({(box.get_edgecolor(), box.get_linewidth()) for box in fine.patches}) == 5


def test_files_that_go_round_the_globe_are_shaded_on_both_sides(tmp_path: Path) -> None:
    """Coarse fields of the whole globe, from 0° on, of which fine ones across 0° cover a part."""
    times = np.datetime64("2019-01-01T00", "ns") + np.arange(HOURS) * np.timedelta64(1, "h")
    files = Files(tmp_path, times, lat=-80.0 + 20 * np.arange(9), lon=10.0 + 20 * np.arange(18))
    path = files.config(patch={"coarse": [2, 2]})
    data = xr.load_dataset(tmp_path / "fine.nc")
    west = data.assign_coords(lon=(data.lon + 180) % 360 - 180).sortby("lon")
    west.sel(lat=slice(70, 30), lon=slice(-40, 40)).to_netcdf(tmp_path / "fine.nc", engine="h5netcdf")
    coarse, fine = domain_figure(inspected(path)).axes[:2]

    assert coarse.get_xlim() == fine.get_xlim() == pytest.approx((-40 - 0.12 * 80, 40 + 0.12 * 80))
    shaded = [box for box in boxes(coarse) if box[3] - box[1] == 180]
    west_end, east_end = min(box[0] for box in shaded), max(box[2] for box in shaded)
    assert west_end <= coarse.get_xlim()[0]
    assert east_end >= coarse.get_xlim()[1]
    assert sum(box[2] - box[0] for box in shaded) == pytest.approx(east_end - west_end)


def test_a_patch_across_the_seam_is_drawn_on_both_sides(tmp_path: Path, call: Callable[..., Answer]) -> None:
    """Round the globe a patch that goes out in the east comes in from the west."""
    times = np.datetime64("2019-01-01T00", "ns") + np.arange(HOURS) * np.timedelta64(1, "h")
    path = Files(tmp_path, times, lat=np.array([-45.0, 45.0]), lon=np.arange(45.0, 360, 90)).config(
        patch={"coarse": [1, 2]}
    )
    found = inspected(path)
    seam = evolve(found.train, first=[(0, 3)])
    _, fine = domain_figure(evolve(found, splits=[seam])).axes[:2]

    assert sorted(boxes(fine)) == [(-90.0, -90.0, 90.0, 0.0), (270.0, -90.0, 450.0, 0.0)]
    assert call(path, "--no-statistics").row("round the globe") == ["yes", "yes"]


def test_fields_without_coordinates_are_drawn_by_cell(files: Files, call: Callable[..., Answer]) -> None:
    """Of a projected grid rows and columns are counted."""
    path = files.config(pairing="index")
    for name in ("coarse.nc", "fine.nc"):
        data = xr.load_dataset(files.folder / name)
        bare = data.rename(lat="y", lon="x").drop_vars(["y", "x"])
        bare.to_netcdf(files.folder / name, engine="h5netcdf")
    answer = call(path, "--no-statistics", "--figure", files.folder / "domain.png")

    assert (answer.code, answer.err) == (0, "")
    assert answer.row("coordinates") == ["rows, columns", "rows, columns"]
    _, fine = domain_figure(inspected(path)).axes[:2]
    assert fine.get_xlim()[1] - fine.get_xlim()[0] == COLUMNS * FACTOR


@pytest.mark.parametrize("name", ["domain.png", "domain.PDF"])
def test_a_figure_is_written_in_the_format_of_its_name(
    files: Files, call: Callable[..., Answer], name: str
) -> None:
    """PNG for slides, PDF for papers."""
    path = files.folder / name
    answer = call(files.config(), "--no-statistics", "--figure", path)

    assert (answer.code, answer.err) == (0, "")
    assert path.read_bytes()[:4] == {"png": b"\x89PNG", "pdf": b"%PDF"}[path.suffix[1:].lower()]


@pytest.mark.parametrize(
    ("name", "said"), [("domain.doc", "expected a name that ends in"), ("none/a.png", "no such directory")]
)
def test_a_figure_that_cannot_be_written_is_refused_first(
    files: Files, call: Callable[..., Answer], name: str, said: str
) -> None:
    """Before anything is opened."""
    answer = call(files.config(), "--figure", files.folder / name)

    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("--figure: ")
    assert said in answer.err


def test_a_field_of_nothing_is_drawn_too(files: Files) -> None:
    """Missing values are left blank, even where there are no others."""
    files.fine[0], files.coarse[0] = np.nan, np.nan
    figure = domain_figure(inspected(files.config()))
    assert [len(ax.images) for ax in figure.axes[:2]] == [1, 1]
