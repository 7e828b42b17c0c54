"""``hookloop ema reconstruct`` on files as the checkpoint plugin writes them."""

from __future__ import annotations

import math
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, cast

import pytest
import torch
from attrs import define, field
from torch import Tensor, nn

from hookloop import files
from hookloop.averaging import Profile, combination, exponent, inner_product
from hookloop.cli import main
from hookloop.core import Run, train
from hookloop.hookspecs import hookimpl
from hookloop.plugins.ema import EMA
from hookloop.testing import TinyTask, fake_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

EPOCHS, BATCHES = 30, 8


class Answer:
    """What the command printed and answered."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def reconstruct(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run the command in this process, which already has torch."""

    def called(directory: Path, sigma_rel: float, out: Path, *more: object) -> Answer:
        arguments = [directory, "--sigma-rel", sigma_rel, "--out", out, *more]
        with pytest.raises(SystemExit) as ended:
            main(["ema", "reconstruct", *map(str, arguments)])
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, *capfd.readouterr())

    return called


class Net(nn.Module):
    """A weight under two names, one that is not trained, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.inner = nn.Module()
        self.inner.weight = self.weight
        self.fixed = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


@define(eq=False)
class Keep:
    """Writes every average after each epoch, in the layout of the checkpoint plugin."""

    averages: Mapping[str, EMA]

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Move what is not averaged."""
        model = run.task.model
        with torch.no_grad():
            model.get_parameter("fixed").fill_(run.progress.step)
        model.get_buffer("seen").fill_(run.progress.step)

    @hookimpl
    def after_epoch(self, run: Run) -> None:
        """Write."""
        at = run.progress
        for name, ema in self.averages.items():
            state = {
                "format": 1,
                "progress": {"epoch": at.epoch, "batch": at.batch, "step": at.step},
                "config": {"run": {"seed": 0}},
                "best": {"best": 0.5},
                "model": dict(ema.averaged_weights(run.task.model)),
                "average": ema.average_facts(),
            }
            (run.dir / "checkpoints").mkdir(exist_ok=True)
            files.save(state, run.dir / "checkpoints" / f"{name}_epoch_{at.epoch:04d}.ckpt")


@define(eq=False)
class Watch:
    """Keeps every weight of the run, and the average of a width that no file holds."""

    ema: EMA
    weights: list[float] = field(factory=list)
    averages: dict[int, float] = field(factory=dict)

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Keep both."""
        self.weights.append(run.task.model.get_parameter("weight").item())
        self.averages[run.progress.step] = self.ema.averages[0].item()

    def bound(self, error: float, sigma_rel: float) -> float:
        """Say how far off an average can be whose profile is off by *error*.

        The deviation is ∫ (mixture - p) (w - c), at most ‖mixture - p‖ ‖w - c‖ (Cauchy-Schwarz).
        """
        p = Profile(len(self.weights), exponent(sigma_rel))
        spread = torch.tensor(self.weights).var(correction=0).item() * len(self.weights)
        return error * math.sqrt(inner_product(p, p) * spread)


def real_run(directory: Path, sigma_rel: float) -> Watch:
    """Train with two averages that are kept, while another one is watched."""
    narrow, wide = EMA(sigma_rel=0.05, validate=False), EMA(sigma_rel=0.1, validate=False)
    watch = Watch(watched := EMA(sigma_rel=sigma_rel, validate=False))
    keep, task = Keep({"ema": narrow, "ema@wide": wide}), TinyTask(noise=1.0, model=Net())
    train(fake_run(directory, narrow, wide, watched, keep, watch, task=task, max_epochs=EPOCHS))
    return watch


def write(
    directory: Path,
    name: str,
    epoch: int,
    sigma_rel: float | None,
    model: Mapping[str, Tensor] | None = None,
    **changed: object,
) -> Path:
    """Write one file by hand, of a run of ten batches an epoch."""
    weights = {"weight": torch.full((2,), float(epoch))} if model is None else dict(model)
    facts = {"sigma_rel": sigma_rel, "updates": 10 * epoch, "names": ["weight"]}
    state = {
        "format": changed.pop("format", 1),
        "progress": {"epoch": epoch, "batch": 0, "step": 10 * epoch},
        "config": {},
        "best": {},
        "model": weights,
        "average": {**facts, **changed},
    }
    (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    path = directory / "checkpoints" / f"{name}_epoch_{epoch:04d}.ckpt"
    files.save(state, path)
    return path


@pytest.mark.parametrize("sigma_rel", [0.07, 0.12])
def test_a_real_run_gives_the_average_that_was_not_kept(
    tmp_path: Path, reconstruct: Callable[..., Answer], sigma_rel: float
) -> None:
    """It is that of an EMA with this width which watched the same run; all else is the newest file's."""
    watch = real_run(tmp_path, sigma_rel)
    answer = reconstruct(tmp_path, sigma_rel, out := tmp_path / "new.ckpt")
    assert (answer.code, answer.err) == (0, "")
    written = files.load(out)
    model, average = cast("dict[str, Tensor]", written["model"]), cast("dict[str, float]", written["average"])
    newest = files.load(tmp_path / "checkpoints" / f"ema_epoch_{EPOCHS:04d}.ckpt")
    other = cast("dict[str, Tensor]", newest["model"])["weight"].item()

    expected = watch.averages[EPOCHS * BATCHES]
    assert abs(model["weight"].item() - expected) < watch.bound(average["error"], sigma_rel)
    assert abs(model["weight"].item() - expected) < 0.05 * abs(other - expected)
    assert model["inner.weight"].item() == model["weight"].item()
    assert model["weight"].dtype == torch.float32
    assert model["seen"].item() == EPOCHS * BATCHES
    assert model["fixed"].tolist() == [EPOCHS * BATCHES] * 2
    Net().load_state_dict(model)
    assert list(written) == list(newest)
    assert {k: v for k, v in written.items() if k not in ("model", "average")} == {
        k: v for k, v in newest.items() if k not in ("model", "average")
    }


def test_what_is_written_says_how_it_came_about(tmp_path: Path, reconstruct: Callable[..., Answer]) -> None:
    """Width, step, names, weights by file and error are in it, and the error is printed."""
    real_run(tmp_path, 0.07)
    answer = reconstruct(tmp_path, 0.07, out := tmp_path / "new.ckpt")
    average = cast("dict[str, object]", files.load(out)["average"])
    steps = range(BATCHES, EPOCHS * BATCHES + 1, BATCHES)
    snapshots = [Profile(step, exponent(width)) for width in (0.05, 0.1) for step in steps]
    weights, error = combination(snapshots, Profile(EPOCHS * BATCHES, exponent(0.07)))
    names = [f"{name}_epoch_{n:04d}.ckpt" for name in ("ema", "ema@wide") for n in range(1, EPOCHS + 1)]
    assert average.pop("combined") == {
        name: pytest.approx(weight, abs=1e-7) for name, weight in zip(names, weights, strict=True)
    }
    assert average.pop("error") == pytest.approx(error, rel=1e-6)
    assert average == {
        "sigma_rel": 0.07,
        "updates": EPOCHS * BATCHES,
        "names": ["weight", "inner.weight"],
        "step": EPOCHS * BATCHES,
    }
    assert answer.out.splitlines() == [
        f"ema: sigma_rel 0.05, {EPOCHS} averages, step {BATCHES} to {EPOCHS * BATCHES}",
        f"ema@wide: sigma_rel 0.1, {EPOCHS} averages, step {BATCHES} to {EPOCHS * BATCHES}",
        f"relative L2 error of the profile: {error:.2g}",
        f"wrote {out}: sigma_rel 0.07 at step {EPOCHS * BATCHES}",
    ]


def test_an_earlier_step_can_be_chosen(tmp_path: Path, reconstruct: Callable[..., Answer]) -> None:
    """The average is that of then, and so are the buffers and the progress of the file."""
    watch = real_run(tmp_path, 0.08)
    answer = reconstruct(tmp_path, 0.08, out := tmp_path / "new.ckpt", "--step", 20 * BATCHES)
    assert answer.code == 0
    written = files.load(out)
    model = cast("dict[str, Tensor]", written["model"])
    expected, last = watch.averages[20 * BATCHES], watch.averages[EPOCHS * BATCHES]
    assert abs(model["weight"].item() - expected) < 0.05 * abs(last - expected)
    assert model["seen"].item() == 20 * BATCHES
    assert written["progress"] == {"epoch": 20, "batch": 0, "step": 20 * BATCHES}


def test_a_kept_average_comes_back_as_it_is(tmp_path: Path, reconstruct: Callable[..., Answer]) -> None:
    """Its own width at its own step."""
    draw = torch.Generator().manual_seed(0)
    kept = {}
    for epoch in range(1, 5):
        for name, sigma_rel in (("ema", 0.05), ("ema@wide", 0.1)):
            kept[name, epoch] = torch.randn(5, generator=draw)
            write(tmp_path, name, epoch, sigma_rel, {"weight": kept[name, epoch]})
    answer = reconstruct(tmp_path, 0.1, out := tmp_path / "new.ckpt", "--step", 30)
    assert answer.code == 0
    model = cast("dict[str, Tensor]", files.load(out)["model"])
    torch.testing.assert_close(model["weight"], kept["ema@wide", 3], rtol=1e-6, atol=1e-6)


def test_half_precision_is_added_up_in_double_precision(
    tmp_path: Path, reconstruct: Callable[..., Answer]
) -> None:
    """What comes out is rounded once: the exact sum of what the files hold, in their type."""
    draw = torch.Generator().manual_seed(0)
    for epoch in range(1, 9):
        for name, sigma_rel in (("ema", 0.05), ("ema@wide", 0.1)):
            weight = 100 + torch.randn(1000, generator=draw)
            write(tmp_path, name, epoch, sigma_rel, {"weight": weight.bfloat16()})
    answer = reconstruct(tmp_path, 0.15, out := tmp_path / "new.ckpt")
    assert answer.code == 0
    written = files.load(out)
    average = cast("dict[str, dict[str, float]]", written["average"])
    exact = torch.zeros(1000, dtype=torch.float64)
    for name, share in average["combined"].items():
        kept = cast("dict[str, Tensor]", files.load(tmp_path / "checkpoints" / name)["model"])
        exact += share * kept["weight"].double()
    found = cast("dict[str, Tensor]", written["model"])["weight"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())


def test_one_file_at_a_time_is_in_memory(
    tmp_path: Path, reconstruct: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the next one is read, the weights of those before are gone."""
    for epoch in range(1, 6):
        write(tmp_path, "ema", epoch, 0.05)
        write(tmp_path, "ema@wide", epoch, 0.1)
    load, read = files.load, cast("list[weakref.ref[Tensor]]", [])

    def watched(path: Path) -> dict[str, object]:
        assert all(weight() is None for weight in read)
        state = load(path)
        read.append(weakref.ref(cast("dict[str, Tensor]", state["model"])["weight"]))
        return state

    monkeypatch.setattr(files, "load", watched)
    assert reconstruct(tmp_path, 0.07, tmp_path / "new.ckpt").code == 0
    assert len(read) == 2 * 10 + 1


def test_a_poor_fit_is_told(tmp_path: Path, reconstruct: Callable[..., Answer]) -> None:
    """It is written all the same, with a warning that says what would help."""
    write(tmp_path, "ema", 10, 0.05)
    write(tmp_path, "ema@wide", 10, 0.1)
    answer = reconstruct(tmp_path, 0.25, out := tmp_path / "new.ckpt")
    assert answer.code == 0
    assert answer.err.startswith("warning: a poor fit, expected at most 0.05; keep more averages")
    error = cast("dict[str, float]", files.load(out)["average"])["error"]
    assert error > 0.05
    assert f"relative L2 error of the profile: {error:.2g}\n" in answer.out


def test_averages_of_other_kinds_are_left_out(tmp_path: Path, reconstruct: Callable[..., Answer]) -> None:
    """Those with a decay, older files that do not say, and reconstructions."""
    for epoch in range(1, 5):
        write(tmp_path, "ema", epoch, 0.05)
        write(tmp_path, "ema@wide", epoch, 0.1)
        write(tmp_path, "ema@fast", epoch, None, {"weight": torch.full((2,), math.nan)})
        write(tmp_path, "ema@made", epoch, 0.07, {"weight": torch.full((2,), math.nan)}, combined={})
    state = files.load(tmp_path / "checkpoints" / "ema_epoch_0001.ckpt")
    del state["average"]
    files.save(state, tmp_path / "checkpoints" / "ema@old_epoch_0001.ckpt")
    answer = reconstruct(tmp_path, 0.07, out := tmp_path / "new.ckpt")
    assert [line.split(":")[0] for line in answer.out.splitlines()[:-2]] == ["ema", "ema@wide"]
    combined = cast("dict[str, dict[str, float]]", files.load(out)["average"])["combined"]
    assert len(combined) == 8


def refusal(answer: Answer, out: Path) -> str:
    """Give the one line of an error, after which nothing was written."""
    assert (answer.code, answer.out) == (2, "")
    assert not out.exists()
    (line,) = answer.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("kept", "counts"),
    [
        ([], "found 0 averages, 0 of them"),
        ([("ema", 1, None), ("ema", 2, None)], "found 2 averages, 0 of them"),
        ([("ema", 1, 0.05), ("ema@fast", 1, None)], "found 2 averages, 1 of them"),
        ([("ema", 1, 0.05), ("ema@same", 1, 0.05)], "found 2 averages, 2 of them"),
    ],
)
def test_too_few_averages_are_refused(
    tmp_path: Path,
    reconstruct: Callable[..., Answer],
    kept: list[tuple[str, int, float | None]],
    counts: str,
) -> None:
    """One, or one twice, can only give itself; it says what to set."""
    for name, epoch, sigma_rel in kept:
        write(tmp_path, name, epoch, sigma_rel)
    line = refusal(reconstruct(tmp_path, 0.07, out := tmp_path / "new.ckpt"), out)
    assert line.startswith(
        f"{tmp_path / 'checkpoints'}: {counts} with a power-function profile, expected two"
    )
    assert "ema.sigma_rel and checkpoint.ema_epochs" in line


@pytest.mark.parametrize(
    ("model", "names", "expected"),
    [
        ({"weight": torch.zeros(3)}, ["weight"], "weight is (3,) there, (2,) in the other"),
        (
            {"other": torch.zeros(2)},
            ["other"],
            "weight is missing; other is not in the other; other is averaged",
        ),
        ({"weight": torch.zeros(2)}, [], "weight is averaged in one only"),
    ],
)
def test_averages_of_different_models_are_refused(
    tmp_path: Path,
    reconstruct: Callable[..., Answer],
    model: dict[str, Tensor],
    names: list[str],
    expected: str,
) -> None:
    """Other shapes, other names, or other weights that are averaged; both files are named."""
    write(tmp_path, "ema", 1, 0.05)
    odd = write(tmp_path, "ema", 2, 0.05, model, names=names)
    line = refusal(reconstruct(tmp_path, 0.07, out := tmp_path / "new.ckpt"), out)
    assert line.startswith(f"{odd}: an average of another model than ema_epoch_0001.ckpt: {expected}")


def test_averages_that_began_at_different_steps_are_refused(
    tmp_path: Path, reconstruct: Callable[..., Answer]
) -> None:
    """One that joined a run later counts its time from there, and the formula from one beginning."""
    write(tmp_path, "ema", 2, 0.05)
    late = write(tmp_path, "ema@late", 2, 0.1, updates=5)
    line = refusal(reconstruct(tmp_path, 0.07, out := tmp_path / "new.ckpt"), out)
    assert line.startswith(
        f"{late}: an average since step 15, expected since step 0 as in ema_epoch_0002.ckpt"
    )


def test_averages_that_began_late_count_from_their_beginning(
    tmp_path: Path, reconstruct: Callable[..., Answer]
) -> None:
    """Where all joined at one step, time is what has passed since."""
    for epoch in (2, 3):
        write(tmp_path, "ema", epoch, 0.05, updates=10 * epoch - 15)
        write(tmp_path, "ema@wide", epoch, 0.1, updates=10 * epoch - 15)
    answer = reconstruct(tmp_path, 0.05, out := tmp_path / "new.ckpt")
    assert answer.code == 0
    average = cast("dict[str, object]", files.load(out)["average"])
    assert (average["step"], average["updates"]) == (30, 15)
    line = refusal(reconstruct(tmp_path, 0.05, out := tmp_path / "b.ckpt", "--step", 15), out)
    assert line == "--step 15: expected 16 to 30, the steps that the averages cover"


@pytest.mark.parametrize("other", [0.1, None])
def test_a_width_that_changed_during_the_run_is_refused(
    tmp_path: Path, reconstruct: Callable[..., Answer], other: float | None
) -> None:
    """What was averaged with one profile and then another has neither."""
    write(tmp_path, "ema", 1, other)
    write(tmp_path, "ema", 2, 0.05)
    write(tmp_path, "ema", 3, 0.05)
    line = refusal(reconstruct(tmp_path, 0.07, out := tmp_path / "new.ckpt"), out)
    assert f"ema: sigma_rel changed during the run: {other}, 0.05; expected one" in line


def test_averages_that_go_on_from_another_run_count_on(
    tmp_path: Path, reconstruct: Callable[..., Answer]
) -> None:
    """With more updates than this run has steps, time began before it, and this run's steps can be chosen."""
    for epoch in (1, 2):
        write(tmp_path, "ema", epoch, 0.05, updates=10 * epoch + 100)
        write(tmp_path, "ema@wide", epoch, 0.1, updates=10 * epoch + 100)
    answer = reconstruct(tmp_path, 0.05, out := tmp_path / "new.ckpt", "--step", 20)
    assert (answer.code, answer.err) == (0, "")
    assert cast("dict[str, object]", files.load(out)["average"])["updates"] == 120
    line = refusal(reconstruct(tmp_path, 0.05, out := tmp_path / "b.ckpt", "--step", 21), out)
    assert line == "--step 21: expected 1 to 20, the steps that the averages cover"


def test_a_step_after_the_last_average_is_refused(tmp_path: Path, reconstruct: Callable[..., Answer]) -> None:
    """Nobody knows what came after."""
    write(tmp_path, "ema", 1, 0.05)
    write(tmp_path, "ema", 4, 0.05)
    line = refusal(reconstruct(tmp_path, 0.07, out := tmp_path / "new.ckpt", "--step", 41), out)
    assert line == "--step 41: expected 1 to 40, the steps that the averages cover"


@pytest.mark.parametrize("sigma_rel", ["0", "-1", "0.3", "nan"])
def test_an_impossible_width_is_refused(
    tmp_path: Path, reconstruct: Callable[..., Answer], sigma_rel: str
) -> None:
    """Before anything is read."""
    line = refusal(reconstruct(tmp_path / "nowhere", sigma_rel, out := tmp_path / "new.ckpt"), out)
    assert line.startswith("--sigma-rel: expected 0 < sigma_rel < 0.2887 (12**-0.5), found ")


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path, reconstruct: Callable[..., Answer]) -> None:
    """It may be somebody's weights."""
    out = write(tmp_path, "ema", 1, 0.05)
    write(tmp_path, "ema", 2, 0.05)
    before = out.read_bytes()
    answer = reconstruct(tmp_path, 0.07, out)
    assert (answer.code, answer.err) == (2, f"--out: {out}: is there already; choose another file\n")
    assert out.read_bytes() == before


def test_a_directory_that_is_not_there_is_told_first(
    tmp_path: Path, reconstruct: Callable[..., Answer]
) -> None:
    """Not after everything was added up."""
    out = tmp_path / "nowhere" / "new.ckpt"
    assert refusal(reconstruct(tmp_path, 0.07, out), out).startswith(
        f"--out: {out.parent}: no such directory"
    )


def test_a_damaged_file_is_told(tmp_path: Path, reconstruct: Callable[..., Answer]) -> None:
    """Its bytes are verified before they count."""
    write(tmp_path, "ema", 1, 0.05)
    path = write(tmp_path, "ema", 2, 0.05)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    line = refusal(reconstruct(tmp_path, 0.07, out := tmp_path / "new.ckpt"), out)
    assert line == f"{path}: its bytes do not match their checksum; move it away"


def test_another_format_is_refused(tmp_path: Path, reconstruct: Callable[..., Answer]) -> None:
    """It may mean anything."""
    path = write(tmp_path, "ema", 1, 0.05, format=0)
    line = refusal(reconstruct(tmp_path, 0.07, out := tmp_path / "new.ckpt"), out)
    assert line == f"{path}: format 0, expected 1; use the hookloop that wrote it"


@pytest.mark.parametrize("arguments", [["ema", "--help"], ["ema", "reconstruct", "--help"]])
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    """Nor for numpy."""
    code = (
        "import sys; from hookloop.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit as end: sys.exit(end.code or ' '.join({'torch', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "reconstruct" in done.stdout
