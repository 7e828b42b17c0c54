"""The main job as a user runs it: real processes, real files, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

SMALL = {
    "run.max_epochs": 2,
    "run.validate_every": "1 epoch",
    "downscaling.train.batch_size": 4,
    "downscaling.model.backbone": "{name: unet, channels: 8, multipliers: [1, 2], blocks: 1, dropout: 0.1}",
    "downscaling.patch.coarse": "[3, 3]",
    "downscaling.sampler.steps": 3,
    "generation.members": 2,
    "generation.windows": 2,
    "generation.epochs": '"::1"',
    "checkpoint.every_n_batches": 3,
    "progress.every_n_batches": 4,
    "wandb": "{mode: offline}",
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}


def hookloop(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hookloop", *arguments]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration that ``init`` writes, for 60 hours of 16x16 fields."""
    directory = tmp_path_factory.mktemp("main") / "data"
    subprocess.run(
        hookloop(
            "init", "downscaling", str(directory), "--size", "16", "--times", "60", "--validation-times", "4"
        ),
        check=True,
        capture_output=True,
    )
    return directory / "cfg.yaml"


def command(config: Path, directory: Path) -> list[str]:
    overrides = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    return hookloop(
        "run", "--plugins", "downscaling,ema,wandb", "--dir", str(directory), *overrides, str(config)
    )


def run(config: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(config, directory), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


@contextmanager
def started(config: Path, directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*command(config, directory), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, f"the run ended early: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "waited two minutes"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    done = run(config, directory)
    assert done.returncode == 0, done.stderr
    return directory


def final(directory: Path) -> dict[str, object]:
    return torch.load(directory / "checkpoints" / "latest.ckpt", weights_only=True)  # type: ignore[no-any-return]


def measured(directory: Path) -> list[dict[str, float]]:
    """Every logged number but those that a clock gives."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            k: v
            for k, v in line.items()
            if k != "time" and not k.endswith("_seconds") and "per_second" not in k
        }
        for line in lines
    ]


def flat(lines: list[dict[str, float]]) -> dict[tuple[float, str], float]:
    return {(line["step"], key): value for line in lines for key, value in line.items()}


def assert_same_end(directory: Path, whole: Path) -> None:
    ours, theirs = final(directory), final(whole)
    for part in ("progress", "model", "optimization", "best"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)
    ema = [state["plugins"]["ema"] for state in (ours, theirs)]  # type: ignore[index]
    torch.testing.assert_close(*ema, rtol=0, atol=0)
    assert flat(measured(directory)) == flat(measured(whole))


def test_a_run_leaves_what_the_readme_says(uninterrupted: Path) -> None:
    """Configuration, environment, metrics, events, checkpoints and figures; the lock is gone."""
    names = {path.name for path in uninterrupted.iterdir()}
    assert {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "log.jsonl",
        "checkpoints",
        "figures",
    } <= names
    assert "run.lock" not in names
    assert {"latest.ckpt", "previous.ckpt", "best.ckpt", "best_inference.ckpt"} <= {
        path.name for path in (uninterrupted / "checkpoints").iterdir()
    }
    assert final(uninterrupted)["progress"] == {"epoch": 2, "batch": 0, "step": 30}


def test_sigterm_in_an_epoch_then_the_same_command(config: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Exit code 143, and the resumed run ends with the same bits and metrics as one never interrupted."""
    directory = tmp_path / "run"
    with started(config, directory) as process:
        wait_for((directory / "checkpoints" / "latest.ckpt").exists, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 143, errors
    stopped = final(directory)["progress"]
    assert isinstance(stopped, dict)
    assert 3 <= stopped["step"] < 30

    done = run(config, directory)

    assert done.returncode == 0, done.stderr
    assert_same_end(directory, uninterrupted)


@pytest.mark.parametrize("files", [1, 4])
def test_kill_9_then_the_same_command(config: Path, uninterrupted: Path, tmp_path: Path, files: int) -> None:
    """Killed after so many checkpoints, the resumed run ends with the same bits and metrics."""
    directory = tmp_path / "run"
    log = directory / "log.jsonl"
    with started(config, directory) as process:
        wait_for(lambda: log.exists() and log.read_text().count("checkpoint.saved") >= files, process)
        process.kill()
        process.communicate()

    done = run(config, directory)

    assert done.returncode == 0, done.stderr
    assert_same_end(directory, uninterrupted)


STREAMED = ("--set", "downscaling.train.cache=none", "--set", "downscaling.train.workers=2")


def readers_of(process: subprocess.Popen[str]) -> list[int]:
    """Processes that the run has started to read its data."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_readers_that_are_killed_change_nothing(config: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Streamed from files by processes that are killed again and again, the run ends with the same bits."""
    directory, killed = tmp_path / "run", 0
    log = directory / "log.jsonl"
    with started(config, directory, *STREAMED) as process:
        wait_for(log.exists, process)
        while process.poll() is None:
            for pid in readers_of(process):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            time.sleep(3)  # long enough for the next to begin
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert killed > 0
    assert "data.reader_died" in log.read_text()
    assert_same_end(directory, uninterrupted)


def test_ctrl_c_reaches_the_run_and_not_its_readers(
    config: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """A signal to the whole group, as a terminal sends it, saves and ends the run; it is resumed bit for bit."""
    directory = tmp_path / "run"
    with started(config, directory, *STREAMED) as process:
        wait_for((directory / "checkpoints" / "latest.ckpt").exists, process)
        readers = readers_of(process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "data.reader_died" not in (directory / "log.jsonl").read_text()
    assert len(readers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in readers)

    done = run(config, directory)  # from memory this time

    assert done.returncode == 0, done.stderr
    assert_same_end(directory, uninterrupted)


def test_a_second_run_in_the_same_directory_is_refused(config: Path, tmp_path: Path) -> None:
    """Exit code 2, naming the holder; nothing of the first run is touched."""
    directory = tmp_path / "run"
    with started(config, directory) as process:
        wait_for((directory / "metrics.jsonl").exists, process)
        second = run(config, directory)
        assert second.returncode == 2
        assert str(process.pid) in second.stderr
        assert "Traceback" not in second.stderr


def test_a_changed_option_is_refused_on_resume(config: Path, uninterrupted: Path) -> None:
    """Exit code 2, naming the option and both values; the record of what was run stays, the log tells."""
    recorded = (uninterrupted / "config.yaml").read_text()
    done = subprocess.run(
        [*command(config, uninterrupted), "--set", "run.seed=1"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "run.seed (0 there, 1 now)" in done.stderr
    assert (uninterrupted / "config.yaml").read_text() == recorded
    assert "run.failed" in (uninterrupted / "log.jsonl").read_text()


def test_a_fresh_start_may_be_tried_again_after_a_mistake(config: Path, tmp_path: Path) -> None:
    """A run that never began leaves nothing that ``--fresh`` would trip over; one that has trained does."""
    fresh = [*command(config, tmp_path / "run"), "--fresh", "--set", "run.max_epochs=1"]
    wrong = ["--set", "downscaling.train.fine=[nowhere.zarr]"]
    codes = [
        subprocess.run([*fresh, *more], env=ENVIRONMENT, capture_output=True, check=False).returncode
        for more in (wrong, [], [])
    ]
    assert codes == [2, 0, 2]
