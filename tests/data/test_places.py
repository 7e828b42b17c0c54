"""Where splits live, by what they take and what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attrs import frozen

from hookloop.data import reading
from hookloop.data.options import SplitOptions
from hookloop.data.places import AT_ONCE, at_once, fitting, places

SIZE = 1000


@frozen
class Fields:
    nbytes: int = SIZE


def test_auto_holds_what_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits are held in memory as long as all that are take less than a quarter of it; others as they are told."""
    auto = SplitOptions()
    splits = {"train": auto, "validation": auto, "files": SplitOptions(cache="none"), "more": auto}

    def chosen(memory: int, **others: SplitOptions) -> list[str]:
        monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}.__getitem__)
        asked = splits | others
        return list(places(asked, dict.fromkeys(asked, Fields()), torch.device("cpu")).values())

    assert chosen(4 * SIZE) == ["none", "none", "none", "none"]
    assert chosen(4 * SIZE + 1) == ["ram", "none", "none", "none"]
    assert chosen(8 * SIZE + 1) == ["ram", "ram", "none", "none"]
    assert chosen(12 * SIZE + 1) == ["ram", "ram", "none", "ram"]
    assert chosen(4 * SIZE, told=SplitOptions(cache="ram")) == ["none"] * 4 + ["ram"]
    (tmp_path / "memory.max").write_text(f"{8 * SIZE + 1}\n")
    monkeypatch.setattr(reading, "_LIMIT", tmp_path / "memory.max")
    assert chosen(12 * SIZE + 1) == ["ram", "ram", "none", "none"]
    (tmp_path / "memory.max").write_text("max\n")
    assert chosen(12 * SIZE + 1) == ["ram", "ram", "none", "ram"]


def test_ranks_share_the_memory_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a split of its own: of two, one split less than an eighth of the memory."""
    auto = {"train": SplitOptions(), "validation": SplitOptions()}
    sizes = dict.fromkeys(auto, Fields())
    for memory, expected in (
        (8 * SIZE, ["none", "none"]),
        (8 * SIZE + 1, ["ram", "none"]),
        (16 * SIZE + 1, ["ram", "ram"]),
    ):
        monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}.__getitem__)
        assert list(places(auto, sizes, torch.device("cpu"), 2).values()) == expected


def test_what_is_read_together_is_small() -> None:
    """64 MiB, at most so many times, and one at least."""
    assert (fitting(2**26), fitting(2**26 + 1), fitting(2**24)) == (1, 1, 4)
    assert (at_once(2**24), at_once(1), at_once(2**30)) == (4, AT_ONCE, 1)
