"""Copies that stay as they are whatever happens to the original."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hookloop import files
from hookloop.snapshot import Snapshots, copied

if TYPE_CHECKING:
    from pathlib import Path


def copy_of(state: dict[str, object], snapshots: Snapshots | None = None) -> dict[str, object]:
    """A complete snapshot."""
    copy, ready = (snapshots or Snapshots()).take(state)
    ready()
    return copy


def tensor(copy: dict[str, object], name: str) -> torch.Tensor:
    """One of its tensors."""
    found = copy[name]
    assert isinstance(found, torch.Tensor)
    return found


def test_a_plain_copy_knows_nothing_of_what_changes_afterwards() -> None:
    """Containers and tensors within containers, with their strides."""
    weights, names = torch.arange(6.0).view(2, 3).T, ["a"]
    copy = copied({"deep": [{"weights": weights}], "names": names, "none": None})
    weights.zero_()
    names.append("b")
    found = cast("list[dict[str, torch.Tensor]]", copy["deep"])[0]["weights"]
    assert (found.tolist(), found.stride()) == ([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], (1, 3))
    assert (copy["names"], copy["none"]) == (["a"], None)


def test_what_changes_afterwards_is_not_in_it() -> None:
    """Neither numbers nor containers."""
    weights, names = torch.arange(4.0), ["a"]
    copy = copy_of({"weights": weights, "names": names})
    weights.zero_()
    names.append("b")
    assert tensor(copy, "weights").tolist() == [0.0, 1.0, 2.0, 3.0]
    assert copy["names"] == ["a"]


def test_containers_keep_their_kind() -> None:
    """Lists, tuples, sets, mappings and what is no container come back as they are."""
    state: dict[str, object] = {
        "nested": [1, (2.5, "x", None), {True}],
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        3: torch.float32,  # type: ignore[dict-item]
    }
    copy = copy_of(state)
    assert copy == state
    assert type(copy["ordered"]) is OrderedDict


def test_versions_of_modules_are_kept(tmp_path: Path) -> None:
    """A module upgrades weights of an older version; without the version it would upgrade them again and again."""
    state = torch.nn.BatchNorm1d(3).state_dict()
    assert state._metadata[""]["version"] == 2  # type: ignore[attr-defined]
    files.save(copy_of({"model": state}), path := tmp_path / "x.ckpt")
    assert files.load(path)["model"]._metadata == state._metadata  # type: ignore[attr-defined]


def test_parameters_become_plain_numbers() -> None:
    """A copy remembers nothing of how a plugin's parameter came about."""
    found = tensor(copy_of({"x": torch.nn.Parameter(torch.ones(2))}), "x")
    assert not found.requires_grad


def test_one_tensor_under_two_names_is_copied_once() -> None:
    """Averages that stand in two files of one moment take memory once."""
    shared = torch.arange(3.0)
    copy = copy_of({"one": shared, "other": {"again": shared.detach()}, "part": shared[:2]})
    other = cast("dict[str, object]", copy["other"])
    assert copy["one"] is other["again"]
    assert tensor(copy, "part").tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "original",
    [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, 6).t(),
        torch.randn(()),
        torch.randn(0, 3),
        torch.randn(3, dtype=torch.float64).to(torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor(7),
        torch.randn(2, 2, dtype=torch.complex64),
    ],
    ids=["channels-last", "transposed", "scalar", "empty", "bfloat16", "bool", "integer", "complex"],
)
def test_numbers_types_and_strides_are_kept(original: torch.Tensor) -> None:
    """An optimizer's kernels follow the strides, so a resumed run would round differently without them."""
    found = tensor(copy_of({"x": original}), "x")
    assert found.dtype == original.dtype
    assert found.stride() == original.stride()
    assert torch.equal(found, original)


def test_gaps_are_not_copied(tmp_path: Path) -> None:
    """A column of a matrix is written as a column, not as the matrix."""
    column = torch.arange(1_000_000.0).reshape(1000, 1000)[:, 7]
    files.save(copy_of({"column": column, "other": torch.zeros(1000)}), path := tmp_path / "x.ckpt")
    assert path.stat().st_size < 20_000
    assert torch.equal(tensor(files.load(path), "column"), column)


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=5))
def test_the_memory_is_used_again_for_any_shapes(shapes: list[list[int]]) -> None:
    """Larger, smaller or other tensors: each snapshot is right, and there is one block of memory."""
    snapshots = Snapshots()
    for shape in shapes:
        states = {str(i): torch.randn(shape) for i in range(3)}
        copy = copy_of({**states}, snapshots)
        assert all(torch.equal(tensor(copy, name), state) for name, state in states.items())


def test_the_next_one_takes_the_place_of_the_last() -> None:
    """Memory is bounded to one snapshot: the same state is copied to the same place."""
    snapshots = Snapshots()
    x = torch.zeros(1000)
    first = tensor(copy_of({"x": x}, snapshots), "x")
    x += 1
    second = tensor(copy_of({"x": x}, snapshots), "x")
    assert first.data_ptr() == second.data_ptr()
    assert float(first[0]) == 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_from_a_gpu_it_is_queued_before_what_changes_the_state() -> None:
    """The copy is of the moment it was asked for, although nobody has waited for it."""
    x = torch.zeros(50_000_000, device="cuda")
    snapshots = Snapshots()
    snapshots.reserve({"x": x})
    for value in range(1, 4):
        x.fill_(value)
        copy, ready = snapshots.take({"x": x})
        x.fill_(-1.0)
        ready()
        found = tensor(copy, "x")
        assert found.is_pinned()
        assert bool((found == value).all())
