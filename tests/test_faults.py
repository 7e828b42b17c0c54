"""A small, fixed sample of ``make faults``, and whether what it stands on can be trusted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from faults import shim
from faults.bench import JOBS, Bench, Server
from faults.comparison import Whole, differences, read_metrics
from faults.disk import Disk
from faults.runner import SCENARIOS, examine
from faults.shim import Operation, Record

from hookloop import files

pytestmark = pytest.mark.xdist_group("faults")  # what is not disturbed is run once

SAMPLES = {
    "random kills": 4,
    "named points": 5,
    "every operation": 3,
    "failing writes": 4,
    "read-only": 1,
    "full disk": 1,
    "damaged": 3,
    "two at once": 1,
    "random kills of ranks": 3,
    "ranks at named points": 3,
    "every operation of rank 0": 1,
}
"""Runs of each scenario: about a minute and a half in all."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(tmp_path_factory.mktemp("faults"), tmp_path_factory.mktemp("tools"))
    try:
        made.prepare()
    except shim.NoCompilerError as error:
        pytest.skip(str(error))
    return made


@pytest.fixture(scope="module")
def server(bench: Bench) -> Iterator[Server]:
    with bench.server() as started:
        bench.run_undisturbed(started)
        yield started


@pytest.fixture(scope="module")
def wholes(bench: Bench, server: Server) -> dict[str, Whole]:  # noqa: ARG001 - it has run them
    return bench.wholes


def test_every_scenario_is_sampled() -> None:
    """None is left to ``make faults`` alone."""
    assert SAMPLES.keys() == SCENARIOS.keys()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if "rank" in name else ()) for name in SAMPLES]
)
def test_a_disturbed_run_ends_like_one_that_was_not(bench: Bench, server: Server, name: str) -> None:
    """Nothing is lost, nothing is done twice beyond the promise, every answer is the right one."""
    plans = SCENARIOS[name](bench, Random(f"test/{name}"))  # noqa: S311
    tally = examine(name, plans, bench, [server], lambda tally: tally.runs >= SAMPLES[name])
    if name == "full disk" and not tally.runs:
        pytest.skip("no file system can be mounted here")
    assert tally.runs >= 1
    assert not tally.broken


@pytest.mark.parametrize("job", JOBS)
def test_the_record_explains_the_disk(wholes: dict[str, Whole], job: str) -> None:
    """What was recorded, done again, gives every file of the undisturbed run: no operation has been missed."""
    whole = wholes[job]
    top = whole.directory.parent
    found = {
        str(path.relative_to(top)): None if path.is_dir() else path.read_bytes() for path in top.rglob("*")
    }
    records = shim.read_all(top.parent / "operations.1")
    assert Disk.replay(top, records).after("all") == found


def test_the_comparison_sees_a_changed_run(wholes: dict[str, Whole], tmp_path: Path) -> None:
    """A flipped bit, a line that is missing, twice or torn, a file too many or too few: each is told."""
    whole = wholes["workers"]
    at = shutil.copytree(whole.directory, tmp_path / "run")
    assert whole.compare(at) == []
    changes: list[tuple[str, Callable[[bytes], bytes]]] = [
        ("metrics.jsonl", lambda content: content + content.splitlines(keepends=True)[3]),
        ("metrics.jsonl", lambda content: b"".join(content.splitlines(keepends=True)[1:])),
        ("metrics.jsonl", lambda content: content + b'{"step": 12, "tor'),
        ("metrics.jsonl", lambda content: content.replace(b'"val/loss": ', b'"val/loss": 1')),
        ("config.yaml", lambda content: content + b"#"),
        ("checkpoints/latest.ckpt", lambda content: content[:-1]),
    ]
    for name, change in changes:
        before = (at / name).read_bytes()
        (at / name).write_bytes(change(before))
        assert [problem for problem in whole.compare(at) if problem.startswith(name)], name
        (at / name).write_bytes(before)
    best = at / "checkpoints/best.ckpt"
    state = files.load(best)
    next(iter(state["model"].values())).view(torch.int32)[-1] ^= 1  # type: ignore[attr-defined]
    files.save(state, best)
    assert len(whole.compare(at)) == 1
    shutil.copy(whole.directory / "checkpoints/best.ckpt", best)
    (at / ".left.tmp").touch()
    assert whole.compare(at) == [".left.tmp is left over"]
    (at / ".left.tmp").unlink()
    (at / "config.yaml").unlink()
    assert whole.compare(at) == ["config.yaml is missing"]


def test_states_differ_by_a_bit() -> None:
    """Bits count, not values: -0.0 is not 0.0; what is ignored is ignored."""
    one, other = torch.zeros(2), torch.tensor([0.0, -0.0])
    assert list(differences({"a": one}, {"a": other}, "", set())) == ["a differs"]
    assert list(differences({"a": [1.0]}, {"a": [1]}, "", set())) == ["a.0: 1 for 1.0"]
    assert list(differences({"a": 1}, {"b": 1}, "", {"a", "b"})) == ["a is missing", "b is new"]
    assert list(differences({"a": {"b": one}}, {"a": {"b": other}}, "", {"a.b"})) == []


def test_a_metric_that_is_written_twice_is_a_problem(tmp_path: Path) -> None:
    """Also where the value is the same."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 1, "a": 1}\n{"step": 1, "b": NaN}\nnothing\n')
    _, problems = read_metrics(path)
    assert problems == ["metrics.jsonl:2: a of step 1 twice", "metrics.jsonl:4: corrupt: b'nothing'"]


TOP = Path("/top")


def after(*operations: tuple[object, ...]) -> Disk:
    """Do operations on an empty disk; descriptor 3 is the only one."""
    records = []
    for kind, *rest in operations:
        first, second, number, data = "", "", 0, b""
        match kind:
            case Operation.WRITE:
                number, data = rest
            case Operation.TRUNCATE:
                (number,) = rest
            case Operation.RENAME | Operation.LINK:
                first, second = (str(TOP / name) for name in rest)
            case Operation.OPEN:
                first, number = str(TOP / rest[0]), rest[1] if len(rest) > 1 else os.O_CREAT
            case Operation.LOOK | Operation.UNLINK | Operation.MKDIR:
                first = str(TOP / rest[0])
        records.append(Record(kind, 3, number, first, second, data))
    return Disk.replay(TOP, records)


SYNCED = [(Operation.OPEN, "a"), (Operation.WRITE, 0, b"old"), (Operation.SYNC,)]
LISTED = [(Operation.LOOK, "."), (Operation.SYNC,)]


def test_a_power_cut_takes_what_was_not_synced() -> None:
    """The tail of a file, whose length may be kept with zeros in it."""
    disk = after(*SYNCED, (Operation.WRITE, 3, b"new"), *LISTED)
    found = [disk.after(kind)["a"] for kind in ("all", "lost", "kept", "zeroed")]
    assert found == [b"oldnew", b"old", b"old", b"old\0\0\0"]


def test_a_power_cut_takes_names_whose_directory_was_not_synced() -> None:
    """Even of a file that was."""
    disk = after(*SYNCED)
    assert [disk.after(kind) for kind in ("lost", "kept")] == [{}, {"a": b"old"}]


def test_a_file_that_was_opened_anew_may_be_old_or_empty() -> None:
    """Truncation is a change of its own, and may survive without what was written after it."""
    disk = after(*SYNCED, *LISTED, (Operation.OPEN, "a", os.O_TRUNC), (Operation.WRITE, 0, b"newest"))
    assert [disk.after(kind)["a"] for kind in ("lost", "kept", "zeroed")] == [b"old", b"", b"\0" * 6]


def test_a_rename_without_a_sync_may_be_undone() -> None:
    """With it, only the new name is there; a file that was removed is there again where that was not synced."""
    done = after(*SYNCED, *LISTED, (Operation.RENAME, "a", "b"))
    assert [done.after(kind) for kind in ("lost", "kept")] == [{"a": b"old"}, {"b": b"old"}]
    sure = after(*SYNCED, (Operation.RENAME, "a", "b"), *LISTED, (Operation.UNLINK, "b"))
    assert [sure.after(kind) for kind in ("lost", "kept")] == [{"b": b"old"}, {}]


def test_what_is_in_a_directory_that_was_not_synced_goes_with_it() -> None:
    """However often the file itself was."""
    inside = [(Operation.OPEN, "d/a"), (Operation.SYNC,), (Operation.LOOK, "d"), (Operation.SYNC,)]
    disk = after((Operation.MKDIR, "d"), *inside)
    assert [disk.after(kind) for kind in ("lost", "kept")] == [{}, {"d": None, "d/a": b""}]


def test_two_names_of_one_file_are_one_file() -> None:
    """A link shares contents; renaming one onto the other does nothing, says POSIX."""
    disk = after(
        *SYNCED, (Operation.LINK, "a", "b"), (Operation.WRITE, 0, b"O"), (Operation.RENAME, "a", "b")
    )
    assert disk.after("all") == {"a": b"Old", "b": b"Old"}
