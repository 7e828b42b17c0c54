"""What is known of a training split is measured once, kept, and measured anew where anything has changed."""

from __future__ import annotations

import io
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import structlog
import torch
import zarr
from attrs import evolve, field, frozen

from hookloop.data.normalize import Scale
from hookloop.data.readers import Inline
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import SplitConfig, TransformConfig
from hookloop.plugins.downscaling.measured import checked, measured
from hookloop.plugins.downscaling.options import ModelConfig
from hookloop.plugins.downscaling.pairs import Pair, open_pair
from hookloop.plugins.downscaling.sample import write
from hookloop.plugins.downscaling.stores import Streamed, held, open_store, times_at_once
from hookloop.plugins.downscaling.synthetic import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hookloop.plugins.downscaling.measure import Measured
    from hookloop.plugins.downscaling.stores import Store

CPU = torch.device("cpu")


@frozen(eq=False)
class Asked:
    """What :func:`measured` is asked for."""

    pair: Pair
    store: Store
    config: ModelConfig = ModelConfig(inputs=["t2m"], outputs=["t2m"])  # noqa: RUF009 - frozen
    transforms: Mapping[str, TransformConfig] = field(factory=dict)
    given: Scale | None = None

    def answer(self) -> tuple[Measured, list[Mapping[str, object]]]:
        """Measure, and listen."""
        with structlog.testing.capture_logs() as events:
            logger = structlog.get_logger()
            found = measured(self.pair, self.store, self.config, self.transforms, self.given, logger)
        return found, list(events)

    def is_new(self) -> bool:
        """Whether it had to be measured."""
        return not self.answer()[1][-1]["cached"]


@pytest.fixture
def split(tmp_path: Path) -> SplitConfig:
    """Write 70 hours of sample data."""
    write(tmp_path / "data", Recipe(n=16, factor=4), 70, 3, 0)
    return SplitConfig(
        coarse=[str(tmp_path / "data" / "train_coarse.zarr")],
        fine=[str(tmp_path / "data" / "train_fine.zarr")],
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a test a cache of its own."""
    monkeypatch.setenv("HOOKLOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ask(split: SplitConfig) -> Asked:
    """Open a split and hold it in memory."""
    pair = open_pair(split, ["t2m"], ["t2m"])
    return Asked(pair, held(pair, CPU))


@pytest.fixture
def asked(split: SplitConfig, cache: Path) -> Asked:
    """Ask for the sample data, whose statistics nobody knows."""
    assert not cache.exists()
    return ask(split)


QUANTILE = {"t2m": TransformConfig("quantile")}


def numbers(found: Measured) -> list[list[float]]:
    """Give everything measured, to compare bits."""
    knots = [each.tolist() for name in sorted(found.knots) for each in found.knots[name]]
    scales = (found.inputs, found.targets)
    return [each.tolist() for scale in scales for each in (scale.mean, scale.std)] + knots


def test_the_second_time_nothing_is_read(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is the same, bit for bit; each tells so in one event."""
    first, told = evolve(asked, transforms=QUANTILE).answer()
    monkeypatch.delattr("hookloop.plugins.downscaling.measured.measure")
    second, told_again = evolve(asked, transforms=QUANTILE).answer()
    assert numbers(second) == numbers(first)
    assert [(event["event"], event["cached"]) for event in told + told_again] == [
        ("data.measured", False),
        ("data.measured", True),
    ]


@pytest.mark.parametrize("together", [64, 9])
def test_wherever_the_split_lives_it_has_the_same_bits(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """Held in memory, it is not read again; streamed, it is; as many times at once as its shapes allow."""
    monkeypatch.setattr("hookloop.data.places._BLOCK", together * 4 * (4 * 4 + 16 * 16))
    monkeypatch.setenv("HOOKLOOP_CACHE", "")
    assert times_at_once(asked.pair) == together
    expected = numbers(evolve(asked, transforms=QUANTILE).answer()[0])
    with ExitStack() as cleanup:
        store = open_store(asked.pair, "none", 0, 1, CPU, lambda *_, **__: None, cleanup)
        assert isinstance(store, Streamed)
        assert numbers(evolve(asked, store=store, transforms=QUANTILE).answer()[0]) == expected
    monkeypatch.delattr("hookloop.plugins.downscaling.measured.blocks")
    assert numbers(evolve(asked, transforms=QUANTILE).answer()[0]) == expected


@pytest.mark.usefixtures("cache")
def test_a_streamed_split_is_checked_at_the_start(pair_on_disk: Callable[..., Pair]) -> None:
    """A gap in validation data is found before the first epoch, and what was found sound is not read again."""

    def check(pair: Pair) -> list[object]:
        store = Streamed(pair, Inline((pair.coarse, pair.fine), lambda *_, **__: None), 0, 1, pinned=False)
        with structlog.testing.capture_logs() as events:
            checked("validation", pair, store, structlog.get_logger())
        return [event["cached"] for event in events]

    sound = pair_on_disk()
    assert [check(sound), check(sound)] == [[False], [True]]
    damaged = pair_on_disk()
    zarr.open_array(damaged.fine.parts["b"][0].path, path="b")[3, 1, 1] = np.nan
    for _ in range(2):  # a refusal is not remembered as a success
        with pytest.raises(HookloopError, match="variable b: 1 of 7680 values"):
            check(damaged)


def test_members_are_all_looked_at(pair_on_disk: Callable[..., Pair]) -> None:
    """Member m of the coarse fields is m higher than their block means: quantiles are those of all of them."""
    pair = pair_on_disk(members=3)
    config = ModelConfig(inputs=["a", "b"], outputs=["b"])
    pair = evolve(pair, outputs=["b"], fine=evolve(pair.fine, parts={"b": pair.fine.parts["b"]}))
    store = held(pair, CPU)
    found, _ = Asked(pair, store, config, {"a": TransformConfig("quantile")}).answer()
    values = found.knots["a"][0]
    coarse = store.coarse[:, 0]
    assert (values[0], values[-1]) == (coarse.min(), coarse.max())
    assert coarse[2::3].max() == coarse.max()
    # b is the difference of its fine fields, of mean x, from m + x, whose interpolation has about their mean.
    assert found.targets.mean.item() == pytest.approx(-1.0, abs=0.05)


def test_whatever_it_depends_on_is_measured_anew(split: SplitConfig, asked: Asked, tmp_path: Path) -> None:
    """Transforms, given statistics, variables, residual, times, region, files."""
    given = Scale(torch.zeros(1), torch.ones(1))
    log1p = TransformConfig("log1p")
    assert asked.is_new()
    assert not asked.is_new()
    assert evolve(asked, transforms={"t2m": log1p}).is_new()
    assert evolve(asked, transforms={"t2m": evolve(log1p, scale=2.0)}).is_new()
    assert evolve(asked, given=given).is_new()
    assert evolve(asked, given=evolve(given, std=2 * given.std)).is_new()
    assert not evolve(asked, given=given).is_new()
    assert evolve(asked, config=evolve(asked.config, residual=False)).is_new()
    assert ask(evolve(split, time=("2020-01-01", "2020-01-02"))).is_new()
    assert ask(evolve(split, lon=(2.0, 6.0))).is_new()
    assert not ask(split).is_new()
    chunk = next(path for path in (tmp_path / "data" / "train_fine.zarr" / "t2m").iterdir())
    os.utime(chunk, ns=(2**62, 2**62))
    assert ask(split).is_new()


def test_damage_costs_a_warning(asked: Asked, cache: Path) -> None:
    """What is broken is measured anew, and mended."""
    first, _ = asked.answer()
    (kept,) = (cache / "statistics").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    second, events = asked.answer()
    assert numbers(second) == numbers(first)
    assert [(event["event"], event["log_level"]) for event in events] == [
        ("statistics.damaged", "warning"),
        ("data.measured", "info"),
    ]
    assert not asked.is_new()


def test_a_place_that_cannot_be_written_is_no_error(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in its place stands for a directory of somebody else's; it is said that nothing was kept."""
    (tmp_path / "in the way").touch()
    monkeypatch.setenv("HOOKLOOP_CACHE", str(tmp_path / "in the way"))
    for _ in range(2):
        _, events = asked.answer()
        assert [event["event"] for event in events] == ["statistics.not_kept", "data.measured"]
        assert {event["log_level"] for event in events} == {"info"}


def test_off_it_is_measured_each_time(asked: Asked, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word about it, and without a file."""
    monkeypatch.setenv("HOOKLOOP_CACHE", "")
    for _ in range(2):
        assert [event["event"] for event in asked.answer()[1]] == ["data.measured"]
    assert not cache.exists()


def test_data_that_cannot_be_told_apart_are_not_kept(asked: Asked, cache: Path, tmp_path: Path) -> None:
    """Files that are gone meanwhile have no size and no time."""
    (tmp_path / "data" / "train_fine.zarr").rename(tmp_path / "elsewhere.zarr")
    for _ in range(2):
        assert [event["event"] for event in asked.answer()[1]] == ["statistics.not_kept", "data.measured"]
    assert not cache.exists()


class Terminal(io.StringIO):
    """Where somebody sits."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), True), (io.StringIO(), False)])
def test_a_bar_is_shown_to_people_alone(
    asked: Asked, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, shown: bool
) -> None:
    """On a terminal all times are counted to their end; into a pipe nothing is written."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    asked.answer()
    assert ("measuring" in stream.getvalue()) is shown
    assert ("70/70" in stream.getvalue()) is shown
