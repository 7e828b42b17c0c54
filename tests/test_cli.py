"""The command line as people and scripts meet it: what it prints and what it answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import yaml

from hookloop import __version__, cli
from hookloop.cli import main
from hookloop.manager import ALWAYS, listing_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Site

NONE = ",".join(listing_of([]))
"""Leaves out all that is on by default."""

TINY = """
import os
import attrs
from hookloop import hookimpl

@attrs.define(eq=False)
class Tiny:
    ending: str = "none"

    @hookimpl
    def make_task(self, run):
        from hookloop.testing import TinyTask
        return TinyTask()

    @hookimpl
    def after_batch(self, run):
        if self.ending == "crash":
            raise ZeroDivisionError("on purpose")
        if self.ending == "enough":
            run.stop("enough")
        if self.ending == "resume":
            run.stop("later", 75)

    @hookimpl
    def validate(self, run):
        if self.ending == "signal":
            os.kill(os.getpid(), 15)
"""


class Answer:
    """What a command printed and answered."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def process(*arguments: object) -> Answer:
    """Run a real process."""
    command = [sys.executable, "-m", "hookloop", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command in this process, which already has torch."""

    def called(*arguments: object) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, out, err)

    return called


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    """Write a configuration whose run goes to ``run`` beside it."""

    def written(text: str) -> Path:
        path = tmp_path / "cfg.yaml"
        path.write_text(f"run: {{dir: {tmp_path / 'run'}, device: cpu}}\n{text}", encoding="utf-8")
        return path

    return written


@pytest.fixture
def tiny(site: Site) -> str:
    """Install a plugin with a tiny task; give the list that runs it with what it needs and no more."""
    site.install("tiny", TINY, {"hookloop": {"tiny": "tiny:Tiny"}})
    return ",".join(listing_of(["tiny", "optimization", "validation", "jsonl"]))


def test_help_comes_at_once() -> None:
    """In less than a second; the best of three, since other work may be going on."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert "Commands:" in process("--help").out
        times.append(time.perf_counter() - began)
    assert min(times) < 1


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "run --help",
        "evaluate --help",
        "plugins",
        "hooks",
        "hooks --order --plugins downscaling,ema,wandb",
        "config check {config} --plugins downscaling,ema,wandb",
    ],
)
def test_looking_around_never_imports_torch(arguments: str, config: Callable[[str], Path]) -> None:
    """Nor any other library that takes seconds."""
    split, model = "{coarse: [a.nc], fine: [b.nc]}", "{inputs: [t], outputs: [t], backbone: {name: unet}}"
    path = config(f"downscaling:\n  train: {split}\n  model: {model}\n")
    heavy = "{'torch', 'numpy', 'xarray', 'matplotlib', 'wandb', 'rich'}"
    code = (
        "import sys; from hookloop.cli import main\n"
        f"try: main({arguments.format(config=path).split()!r})\n"
        f"except SystemExit as end: sys.exit(end.code or ' '.join({heavy} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_version_is_the_package_s_own() -> None:
    """Also as a module."""
    answer = process("--version")
    assert (answer.code, answer.out) == (0, f"hookloop, version {__version__}\n")


def test_an_unknown_option_is_one_line(config: Callable[[str], Path]) -> None:
    """Exit code 2, the place, a suggestion, no traceback."""
    path = config("ema:\n  deacy: 0.9\n")
    answer = process("run", "--plugins", "ema", path)
    expected = f"{path}:3: ema.deacy: unknown option; did you mean 'decay'?\n"
    assert (answer.code, answer.out, answer.err) == (2, "", expected)


def test_every_problem_is_a_line(config: Callable[[str], Path], call: Callable[..., Answer]) -> None:
    """Of different sections, all at once."""
    path = config("ema: {deacy: 1}\nemma: {}\njsonl: {x: 1}\n")
    answer = call("config", "check", "--plugins", "ema", path)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines() == [
        f"{path}:3: emma: unknown section; did you mean 'ema'?",
        f"{path}:2: ema.deacy: unknown option; did you mean 'decay'?",
        f"{path}:4: jsonl.x: unknown option",
    ]


@pytest.mark.parametrize("command", [("run",), ("config", "check")])
def test_a_missing_file_is_one_line(
    tmp_path: Path, call: Callable[..., Answer], command: tuple[str, ...]
) -> None:
    """With what the system says."""
    answer = call(*command, tmp_path / "none.yaml")
    expected = f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory\n"
    assert (answer.code, answer.out, answer.err) == (2, "", expected)


def test_a_folder_or_a_binary_file_is_no_configuration(tmp_path: Path, call: Callable[..., Answer]) -> None:
    """One line each."""
    (tmp_path / "cfg.yaml").write_bytes(b"\xff\xfe\x00")
    assert call("config", "check", tmp_path).err == f"{tmp_path}: cannot be read: Is a directory\n"
    answer = call("config", "check", tmp_path / "cfg.yaml")
    assert (answer.code, answer.err) == (2, f"{tmp_path / 'cfg.yaml'}: cannot be read: not UTF-8 text\n")


def test_a_sound_configuration_is_said_to_be_sound(
    config: Callable[[str], Path], call: Callable[..., Answer]
) -> None:
    """With the plugins in firing order, and a note for a section that is left alone."""
    path = config("ema: {decay: 0.5}\nwandb: {anything: goes}\n")
    answer = call("config", "check", "--plugins", "ema,no:progress", path)
    names = ", ".join(["ema", *(name for name in ALWAYS if name != "progress")])
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        f"note: {path}:3: wandb: plugin not listed, its section is left alone",
        "note: none of the plugins makes a task, so there is nothing to train",
        f"{path}: sound; plugins in firing order: {names}",
    ]


def test_options_are_overridden_from_the_command_line(
    config: Callable[[str], Path], call: Callable[..., Answer]
) -> None:
    """A mistake there is told with its place there."""
    answer = call(
        "config", "check", config(""), "--plugins", "ema", "--set", "ema.decay=2", "--set", "ema.x=1"
    )
    assert (answer.code, answer.err.splitlines()) == (
        2,
        [
            "--set ema.x: ema.x: unknown option",
            "--set ema.decay: ema.decay: 'decay' must be < 1.0: 2.0",
        ],
    )


def test_an_unknown_plugin_gets_a_suggestion(
    config: Callable[[str], Path], call: Callable[..., Answer]
) -> None:
    """And the list of those there are."""
    answer = call("run", "--plugins", "downscalling", config(""))
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(
        "--plugins: downscalling: not installed; did you mean 'downscaling'?; there are "
    )


@pytest.mark.parametrize(("command", "suggested"), [(["rnu"], "run"), (["config", "chek"], "check")])
def test_an_unknown_command_gets_a_suggestion(
    call: Callable[..., Answer], command: list[str], suggested: str
) -> None:
    """Exit code 2, no traceback."""
    answer = call(*command)
    assert answer.code == 2
    assert f"No such command '{command[-1]}'." in answer.err
    assert suggested in answer.err.rpartition("No such command")[2]


def test_a_missing_argument_is_the_user_s_mistake(call: Callable[..., Answer]) -> None:
    """Exit code 2, no traceback."""
    answer = call("run")
    assert answer.code == 2
    assert "Missing argument 'CONFIG'" in answer.err


def test_a_run_that_finishes_answers_0_and_leaves_its_record(
    config: Callable[[str], Path], tiny: str, tmp_path: Path
) -> None:
    """In a real process: metrics, the resolved configuration, the environment; nothing on stdout."""
    answer = process("run", "--plugins", tiny, config("ema: {}"), "--set", "run.max_epochs=2")
    assert (answer.code, answer.out) == (0, "")
    assert "ema: plugin not listed, its section is left alone" in answer.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines if "val/loss" in line] == [8, 16]
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["run"]["max_epochs"] == 2
    assert resolved["plugins"][:4] == ["tiny", "optimization", "validation", "jsonl"]
    assert (tmp_path / "run" / "environment.json").exists()


def test_the_resolved_configuration_runs_as_it_is(
    config: Callable[[str], Path], tiny: str, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    """It names its plugins itself, and the defaults that were left out are left out again."""
    call("run", "--plugins", tiny, config("tiny: {ending: enough}"))
    assert call("run", tmp_path / "run" / "config.yaml", "--dir", tmp_path / "again").code == 0
    first, again = (
        yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))
        for name in ("run", "again")
    )
    assert again == {**first, "run": {**first["run"], "dir": str(tmp_path / "again")}}


@pytest.mark.parametrize(("ending", "code"), [("none", 0), ("enough", 0), ("resume", 75)])
def test_the_reason_to_stop_is_the_answer(
    config: Callable[[str], Path], tiny: str, call: Callable[..., Answer], ending: str, code: int
) -> None:
    """A success is 0, whatever the reason; 75 asks to be queued again."""
    answer = call("run", "--plugins", tiny, config(f"tiny: {{ending: {ending}}}"))
    assert answer.code == code
    assert ("run.stopped" in answer.err) is (ending != "none")


def test_a_crash_answers_1_with_a_traceback(
    config: Callable[[str], Path], tiny: str, call: Callable[..., Answer]
) -> None:
    """Ours to mend, so all there is to know is printed."""
    answer = call("run", "--plugins", tiny, config("tiny: {ending: crash}"))
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "ZeroDivisionError: on purpose" in answer.err


def test_an_interrupt_within_compiled_code_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while HDF5 reads becomes an error of its own there; the answer is 130 all the same."""

    def interrupted(**_: object) -> None:
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    monkeypatch.setattr(cli.cli, "main", interrupted)
    with pytest.raises(SystemExit) as answer:
        cli.main([])
    assert answer.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_no_task_is_the_user_s_mistake(config: Callable[[str], Path], call: Callable[..., Answer]) -> None:
    """One line that says which option to use."""
    answer = call("run", "--plugins", NONE, config(""))
    assert answer.code == 2
    assert "plugins that make a task: found none" in answer.err
    assert "Traceback" not in answer.err


def test_dir_overrides_the_configuration(
    config: Callable[[str], Path], tiny: str, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    """The directory that was configured is not even made."""
    assert call("run", "--plugins", tiny, config(""), "--dir", tmp_path / "other").code == 0
    assert (tmp_path / "other" / "config.yaml").exists()
    assert not (tmp_path / "run").exists()


def test_dir_is_enough_where_the_run_section_is_empty(
    tmp_path: Path, tiny: str, call: Callable[..., Answer]
) -> None:
    """``run:`` with nothing below it holds nothing."""
    (tmp_path / "cfg.yaml").write_text("run:\n", encoding="utf-8")
    options = "--set", "run.device=cpu"
    assert call("run", "--plugins", tiny, tmp_path / "cfg.yaml", "--dir", tmp_path / "a").code == 0
    (tmp_path / "cfg.yaml").write_text("", encoding="utf-8")
    assert call("run", "--plugins", tiny, tmp_path / "cfg.yaml", "--dir", tmp_path / "b", *options).code == 0


def test_fresh_refuses_a_directory_that_is_not_empty(
    config: Callable[[str], Path], tiny: str, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    """And touches nothing in it; an absent or an empty one is fine."""
    path = config("")
    assert call("run", "--fresh", "--plugins", tiny, path).code == 0
    (tmp_path / "empty").mkdir()
    assert call("run", "--fresh", "--plugins", tiny, path, "--dir", tmp_path / "empty").code == 0
    before = sorted((tmp_path / "run").iterdir())
    answer = call("run", "--fresh", "--plugins", tiny, path)
    expected = f"{tmp_path / 'run'}: not empty, and --fresh expects an empty or absent directory\n"
    assert (answer.code, answer.err) == (2, expected)
    assert sorted((tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_file_is_no_directory_to_run_in(
    config: Callable[[str], Path], tiny: str, tmp_path: Path, call: Callable[..., Answer], fresh: list[str]
) -> None:
    """One line that says what to do."""
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    answer = call("run", *fresh, "--plugins", tiny, config(""))
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == f"{tmp_path / 'run'}: cannot be written: File exists; choose another --dir\n"


@pytest.fixture
def kept(
    config: Callable[[str], Path], tiny: str, tmp_path: Path, call: Callable[..., Answer]
) -> tuple[Path, Path]:
    """A run that has kept its checkpoints: the latest one, and the configuration that was run."""
    listing = tiny.replace("no:checkpoint", "checkpoint").replace("no:signals", "signals")
    answer = call("run", "--plugins", listing, config(""))
    assert answer.code == 0, answer.err
    return tmp_path / "run" / "checkpoints" / "latest.ckpt", tmp_path / "run" / "config.yaml"


def test_an_evaluation_prints_what_the_run_logged(
    kept: tuple[Path, Path], tmp_path: Path, call: Callable[..., Answer]
) -> None:
    """A line a metric, in full; the records are below the run's directory or in the one given."""
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (loss,) = (line["val/loss"] for line in logged if "val/loss" in line)
    default = tmp_path / "run" / "evaluations" / "latest"
    for options, where in (((), default), (("--dir", tmp_path / "other"), tmp_path / "other")):
        answer = call("evaluate", *kept, *options)
        assert answer.code == 0
        lines = dict(line.split(" ") for line in answer.out.splitlines())
        assert lines.keys() == {"val/loss", "epoch/validation_seconds", "epoch"}
        assert (lines["val/loss"], lines["epoch"]) == (repr(loss), "1")
        assert "weights.loaded" in answer.err
        (line,) = (where / "metrics.jsonl").read_text().splitlines()
        assert json.loads(line)["val/loss"] == loss
        assert {"log.jsonl", "config.yaml", "environment.json"} <= {path.name for path in where.iterdir()}
        assert "no:checkpoint" in yaml.safe_load((where / "config.yaml").read_text())["plugins"]


def test_an_evaluation_that_is_stopped_has_no_result(
    kept: tuple[Path, Path], call: Callable[..., Answer]
) -> None:
    """It answers 128 and the signal's number, and prints nothing."""
    answer = call("evaluate", *kept, "--set", "tiny.ending=signal")
    assert (answer.code, answer.out) == (143, "")
    assert "run.stopped why=SIGTERM" in answer.err


def test_an_evaluation_that_cannot_begin_is_one_line(
    kept: tuple[Path, Path], tmp_path: Path, call: Callable[..., Answer]
) -> None:
    """A missing or damaged checkpoint, a mistake in the configuration, a run's own directory."""
    checkpoint, config = kept
    (tmp_path / "damaged.ckpt").write_bytes(checkpoint.read_bytes()[:-5])
    options: dict[str, tuple[object, ...]] = {
        f"{tmp_path / 'none.ckpt'}: cannot be read: No such file or directory": (
            tmp_path / "none.ckpt",
            config,
        ),
        f"{tmp_path / 'damaged.ckpt'}: has no checksum": (tmp_path / "damaged.ckpt", config),
        "--set tiny.x: tiny.x: unknown option": (checkpoint, config, "--set", "tiny.x=1"),
        f"{tmp_path / 'run'}: a run's own directory": (checkpoint, config, "--dir", tmp_path / "run"),
    }
    for message, arguments in options.items():
        answer = call("evaluate", *arguments)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(message)
        assert answer.err.count("\n") == 1
    assert not (tmp_path / "run" / "evaluations").exists()


def test_two_evaluations_of_one_file_do_not_mix(
    kept: tuple[Path, Path], tmp_path: Path, call: Callable[..., Answer]
) -> None:
    """The second one is refused while the first one writes, and a run that goes on disturbs neither."""
    from hookloop import locking, logs

    where = tmp_path / "run" / "evaluations" / "latest"
    where.mkdir(parents=True)
    with locking.lock(tmp_path / "run", logs.events_to(None)):
        assert call("evaluate", *kept).code == 0
    with locking.lock(where, logs.events_to(None)):
        answer = call("evaluate", *kept)
    assert (answer.code, answer.out) == (2, "")
    assert str(where / "run.lock") in answer.err


COMMANDS = """
import click

@click.command("greet")
@click.argument("code", type=int)
@click.pass_context
def greet(context, code):
    click.echo("hello")
    context.exit(code)

number = 1
"""


def test_a_command_of_a_third_party_is_listed_and_runs(site: Site, call: Callable[..., Answer]) -> None:
    """Its exit code is the answer; for the list it is not even imported."""
    site.install(
        "greeter", COMMANDS, {"hookloop.commands": {"greet": "greeter:greet", "init.me": "greeter:greet"}}
    )
    listed = " ".join(call("--help").out.split())
    assert "greeter" not in sys.modules
    assert " greet from a plugin; see its --help" in listed
    assert "init.me" not in listed
    assert [(call("greet", code).code, call("init", "me", code).out) for code in (0, 3)] == [
        (0, "hello\n"),
        (3, "hello\n"),
    ]


def test_commands_of_this_package_are_listed_with_their_help(call: Callable[..., Answer]) -> None:
    """They import nothing heavy; what a third party's does is unknown, so its help is not asked for."""
    listed = " ".join(call("--help").out.split())
    assert " inspect Print what the data of CONFIG are: grids, times" in listed
    assert " compare Print the scores of a run's last inference beside" in listed
    assert " ema Work with the averages of the weights that a run has kept." in listed
    assert "Write sample data and a cfg.yaml" in call("init", "--help").out


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("greeter:number", "found no click command there"),
        ("greeter:nothing", "cannot be imported: module 'greeter' has no attribute 'nothing'"),
        ("nothing_like_this:x", "cannot be imported: No module named 'nothing_like_this'"),
    ],
)
def test_a_command_that_is_none_is_one_line(
    site: Site, call: Callable[..., Answer], value: str, reason: str
) -> None:
    """It names the entry point."""
    site.install("greeter", COMMANDS, {"hookloop.commands": {"greet": value}})
    answer = call("greet")
    assert (answer.code, answer.err) == (2, f"command 'greet' ({value}): {reason}\n")


def test_a_command_that_two_distributions_offer_is_an_error(site: Site, call: Callable[..., Answer]) -> None:
    """It names both."""
    for name in ("first", "second"):
        site.install(name, COMMANDS, {"hookloop.commands": {"greet": f"{name}:greet"}})
    answer = call("greet", 0)
    assert (answer.code, answer.err) == (2, "command 'greet': offered by first and second; uninstall one\n")
