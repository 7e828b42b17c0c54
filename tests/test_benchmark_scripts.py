"""What the benchmarks conclude from numbers: they are run seldom, on other machines."""

from __future__ import annotations

import importlib
import io
import json
import math
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import xarray as xr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """What imports a module of the benchmark's package ``gpu``, which is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    finders = list(sys.meta_path)
    yield lambda name: importlib.import_module(f"gpu.{name}")
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.partition(".")[0] == "gpu"]:
        del sys.modules[name]


@pytest.mark.timeout(900)
@pytest.mark.long
def test_every_part_of_the_gpu_benchmark_works(tmp_path: Path) -> None:
    """Small sizes on the CPU: all is right, every row of the table is there, and a line says what it must."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--small", "--device", "cpu"]
    out = tmp_path / "lines.jsonl"
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "correctness holds" in done.stderr
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if "error" in line]
    measured = {line["what"]: line for line in lines if "value" in line}
    rows = (
        "ceiling: bf16 product",
        "correct: tensors that differ in a resumed run",
        "training step, batch 2",
        "training step, batch 2: everything that is not the network",
        "forward, batch 1",
        "generation, 4 fields, 5 evaluations of heun",
        "generation, 4 fields, 3 evaluations of dpmpp_2m",
        "GroupNorm + SiLU, 2×16×32², bf16, contiguous",
        "EMA update",
        "training step, 32², batch 2",
        "stall for a checkpoint",
        "from the start to the first training step",
        "precision: curves of bf16 and fp32 apart, last half",
        "profile: training step, 16², batch 2",
        "setting deterministic: bare training step, batch 2",
    )
    assert not set(rows) - measured.keys()
    for line in measured.values():
        assert {
            "unit",
            "target",
            "bound",
            "peer",
            "machine",
            "versions",
            "revision",
            "sources",
        } <= line.keys()
    step = measured["training step, batch 2"]
    assert step["quartiles"][0] <= step["value"] <= step["quartiles"][1]
    assert 0 < step["bound"] < step["value"]
    assert step["samples_per_second"] == pytest.approx(2e3 / step["value"], rel=1e-3)
    assert measured["forward, batch 2"]["bound"] == pytest.approx(
        2 * measured["forward, batch 1"]["bound"], rel=1e-3
    )


def test_what_is_wrong_is_told_and_a_missed_target_is_not_wrong(gpu: Callable[[str], ModuleType]) -> None:
    """Not a number is wrong whatever the limit; a part that breaks lets the next one go on; memory may be short."""
    book = gpu("records").Book(torch.device("cpu"), io.StringIO())
    book.add("slow", 70.0, "ms", target=62.0)
    book.add("quick", 61.0, "ms", target=62.0)
    with book.attempt("large"):
        raise torch.OutOfMemoryError
    assert book.failed == []
    assert "MISSED" in book.table().splitlines()[1]
    assert "reached" in book.table().splitlines()[2]
    book.check("close", 0.1, 0.1)
    book.check("far", 0.11, 0.1)
    book.check("undefined", math.nan, 0.1)
    with book.attempt("broken"):
        raise ValueError("no")
    assert [name.partition(":")[0] for name in book.failed] == ["far", "undefined", "broken"]
    assert book.table().endswith("3 things are wrong")


def test_contestants_take_turns(gpu: Callable[[str], ModuleType]) -> None:
    """A block of the loop's steps, then a block of each other; the first round is no result."""
    calls: list[str] = []
    clock = gpu("clock").Clock(torch.device("cpu"))
    blocks = gpu("training").Blocks(["one", "sample"], 2, 3, clock, {"peer": lambda: calls.append("peer")})
    for _ in blocks.batches(0):
        calls.append("ours")  # noqa: PERF401 - others append meanwhile
    assert calls == ["ours", "ours", "peer", "peer"] * 4
    assert {name: len(times.seconds) for name, times in blocks.times.items()} == {"hookloop": 3, "peer": 3}
    assert blocks.n_samples == 16


def test_only_what_is_missing_is_stood_in_for(gpu: Callable[[str], ModuleType]) -> None:
    """A package that is there stays what it is; of another every name is a class that does nothing."""
    gpu("stand_ins").stand_in(("json", "not_installed_anywhere"))
    absent = importlib.import_module("not_installed_anywhere.deeper")
    assert absent.Anything(1, two=2)(3) is None
    assert importlib.import_module("json") is json
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nor_is_this")
    for name in [name for name in sys.modules if name.startswith("not_installed")]:
        del sys.modules[name]


def test_what_is_allocated_is_not_filled_to_be_deterministic(
    gpu: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would be timed too, and repeats nothing."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        gpu("settings").be_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(mode=False)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", "convolutions and products"),
        ("void at::native::RowwiseMomentsCUDAKernel<float, float>", "norms"),
        ("differentiate", "norms"),
        ("merge", "elementwise"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy", "copies, casts and layouts"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer and averages"),
        ("void at::native::vectorized_elementwise_kernel<4, silu_kernel>", "elementwise"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16>", "copies, casts and layouts"),
        ("void cudnn::ops::nhwcToNchwKernel<__half>", "copies, casts and layouts"),
        ("cudnn::engines_precompiled::convertTensor_kernel<float>", "copies, casts and layouts"),
        ("triton_poi_fused_convolution_silu_3", "elementwise"),
        ("triton_red_fused_convolution_native_group_norm_1", "norms"),
        ("triton_per_fused_convolution_backward_sum_2", "reductions"),
        ("unheard of", "other"),
    ],
)
def test_kernels_are_told_apart_by_name(gpu: Callable[[str], ModuleType], kernel: str, kind: str) -> None:
    """As cuDNN, torch and our own are called."""
    assert gpu("kernels_of_a_step").kind_of(kernel) == kind
