"""What was run is written down."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hookloop import yamlfile
from hookloop.errors import HookloopError
from hookloop.records import mask_command, masked, write_config, write_environment


@pytest.mark.parametrize(
    "key",
    [
        "key",
        "api_key",
        "apiKey",
        "WANDB_API_KEY",
        "access-token",
        "api_keys",
        "passwords",
        "Secret",
        "db.password",
        "Authorization",
    ],
)
def test_keys_that_look_secret_are_masked(key: str) -> None:
    """One of the key's words decides, whatever its case."""
    assert masked({"a": [{key: "hunter2"}]}) == {"a": [{key: "***"}]}


@pytest.mark.parametrize("key", ["monkey", "keyboard", "tokenizer", "max_tokens", "secretary"])
def test_words_that_only_contain_a_secret_word_are_not(key: str) -> None:
    """Part of a word is not enough."""
    assert masked({key: "x"}) == {key: "x"}


def test_masking_copies_and_keeps_what_gives_nothing_away() -> None:
    """Nulls and booleans stay, paths become text, the original is untouched."""
    data = {"token": None, "use_key": True, "where": Path("a/b"), "pair": (1, 2), "secret": {"x": 1}}
    assert masked(data) == {"token": None, "use_key": True, "where": "a/b", "pair": [1, 2], "secret": "***"}
    assert data["secret"] == {"x": 1}


def test_the_written_config_reads_back_as_it_was(tmp_path: Path) -> None:
    """Every scalar keeps its type in the project's own YAML, where 1e-4 is a number."""
    document = {
        "run": {"dir": "runs/uk", "max_epochs": 3, "time_limit": None},
        "optimization": {"lr": 1e-5, "betas": [0.9, 0.999]},
        "odd": {
            "a": "1e-4",
            "b": "no",
            "c": "007",
            "d": "",
            "e": "null",
            "f": True,
            "g": "::1",
            "h": "ü: *x",
        },
    }
    write_config(tmp_path, document, ["downscaling", "ema"])
    read = yamlfile.read((tmp_path / "config.yaml").read_text(), "config.yaml").data
    assert read == {"plugins": ["downscaling", "ema"], **document}


def test_what_is_shared_is_written_twice(tmp_path: Path) -> None:
    """No anchors and aliases, which a configuration may not have."""
    shared = [1, 2]
    write_config(tmp_path, {"a": {"x": shared, "y": shared}}, [])
    assert "&" not in (tmp_path / "config.yaml").read_text()


def test_the_written_config_has_no_secrets(tmp_path: Path) -> None:
    """They must be given again."""
    write_config(tmp_path, {"wandb": {"api_key": "hunter2"}}, ["wandb"])
    assert "hunter2" not in (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["wandb"] == {"api_key": "***"}


def test_a_config_that_cannot_be_written_is_the_users_to_know(tmp_path: Path) -> None:
    """One line names the file."""
    with pytest.raises(HookloopError, match=r"config\.yaml: cannot be written"):
        write_config(tmp_path / "missing", {}, [])


def test_the_environment_tells_versions_and_hardware(tmp_path: Path) -> None:
    """And leaves no temporary file behind."""
    write_environment(tmp_path)
    (start,) = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert start["python"] == platform.python_version()
    assert start["hardware"]["host"] == platform.node()
    assert start["hardware"]["cpus"] == os.cpu_count()
    assert start["hookloop"] == start["plugins"]["hookloop"]
    assert start["torch"]
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


def test_earlier_starts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run tells each of its starts, in order."""
    for number in range(3):
        monkeypatch.setattr(sys, "argv", ["hookloop", str(number)])
        write_environment(tmp_path)
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [start["command"][1] for start in starts] == ["0", "1", "2"]


def test_several_processes_are_told_with_their_hosts(tmp_path: Path) -> None:
    """By rank; one process alone needs no mention."""
    write_environment(tmp_path, ["a", "a", "b"])
    write_environment(tmp_path, ["a"])
    several, alone = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert (several["ranks"], several["hosts"]) == (3, ["a", "a", "b"])
    assert not {"ranks", "hosts"} & alone.keys()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"starts": 3}'])
def test_a_damaged_environment_is_set_aside(tmp_path: Path, content: str) -> None:
    """It neither stops the run nor is it lost."""
    (tmp_path / "environment.json").write_text(content)
    write_environment(tmp_path)
    assert len(json.loads((tmp_path / "environment.json").read_text())["starts"]) == 1
    assert (tmp_path / "environment.json.damaged").read_text() == content


def test_no_environment_variable_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold secrets under any name."""
    monkeypatch.setenv("SOMETHING_PRIVATE", "hunter2")
    write_environment(tmp_path)
    assert "hunter2" not in (tmp_path / "environment.json").read_text()


def test_the_revision_of_the_working_directory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With whether tracked files were changed since."""
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    for key, value in {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CEILING_DIRECTORIES": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout

    def told() -> object:
        write_environment(tmp_path)
        return json.loads((tmp_path / "environment.json").read_text())["starts"][-1]["git"]

    assert told() is None
    git("init", "-q")
    Path("a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    revision = git("rev-parse", "HEAD").strip()
    assert told() == {"revision": revision, "dirty": False}
    Path("a").write_text("2")
    assert told() == {"revision": revision, "dirty": True}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--set", "wandb.api_key=hunter2"], ["--set", "wandb.api_key=***"]),
        (["--set=wandb.token=hunter2"], ["--set=wandb.token=***"]),
        (["--token", "hunter2", "x"], ["--token", "***", "x"]),
        (["--token=hunter2"], ["--token=***"]),
        (["--set", "wandb={key: hunter2, a: 1}"], ["--set", 'wandb={"key": "***", "a": 1}']),
        (["--set", "optimization.lr=1e-4", "cfg.yaml"], ["--set", "optimization.lr=1e-4", "cfg.yaml"]),
        (["--set", "a.b={broken"], ["--set", "a.b={broken"]),
    ],
)
def test_secrets_on_the_command_line_are_masked(given: list[str], shown: list[str]) -> None:
    """However they are given, and nothing else is changed."""
    assert mask_command(given) == shown


def test_reading_this_module_needs_no_torch() -> None:
    """The wandb plugin reads it, and plugins are listed without torch."""
    code = "import hookloop.records, hookloop.plugins.wandb, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
