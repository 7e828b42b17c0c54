"""The section about a profile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from written_run import WrittenRun, whole_run

from hookloop.core import train
from hookloop.plugins.jsonl import Jsonl
from hookloop.plugins.profile import Profile
from hookloop.report.page import write
from hookloop.report.profiled import profile_of
from hookloop.testing import fake_run

if TYPE_CHECKING:
    from pathlib import Path


def test_a_profiled_run_has_a_section(tmp_path: Path) -> None:
    """What the plugin has written is what the page tells."""
    train(fake_run(tmp_path, Profile(skip=0), Jsonl()))
    found = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    page = write(tmp_path).read_text(encoding="utf-8")
    assert 'href="#profile"' in page
    for name, value in found["facts"].items():
        assert f'<th scope="row">{name}</th><td>{value}</td>' in page
    assert "train_step of optimizationplugin" in page


def test_others_have_none(tmp_path: Path) -> None:
    """Nor a link to it."""
    page = write(whole_run(WrittenRun(tmp_path / "run")).directory).read_text(encoding="utf-8")
    assert "#profile" not in page


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "\udcff",
        '{"facts": {}}',
        '{"facts": [], "hooks": []}',
        '{"facts": {}, "hooks": [3]}',
        '{"facts": {}, "hooks": [{"hook": "log", "plugin": "x", "calls": "many"}]}',
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, text: str) -> None:
    """In its place; the rest of the page is there."""
    (tmp_path / "profile.json").write_bytes(text.encode(errors="surrogateescape"))
    ((_, _, content),) = profile_of(tmp_path)
    assert "profile.json could not be read" in content


def test_names_are_text(tmp_path: Path) -> None:
    """Whatever a plugin calls itself."""
    hook = {
        "hook": "log",
        "plugin": "<b>",
        "calls": 1,
        "total": 1.0,
        "own": 1.0,
        "longest": 1.0,
        "share": 0.5,
    }
    content = {"facts": {"<i>": "<u>"}, "hooks": [hook]}
    (tmp_path / "profile.json").write_text(json.dumps(content), encoding="utf-8")
    ((_, _, html),) = profile_of(tmp_path)
    assert "log of &lt;b&gt;" in html
    assert "<i>" not in html
    assert "<u>" not in html
