from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from hookloop.data.fields import Fields, Part
from hookloop.data.grids import Axis
from hookloop.data.readers import DEATHS, Inline, Readers, default_workers
from hookloop.data.reading import Cut, Job, Slab, neighbours
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.patches import cells

if TYPE_CHECKING:
    from collections.abc import Iterator

T, N = 5, 4
SHAPES = (3, 1, 4, 4), (3, 1, 8, 8)
NUMBERS = count()


def side(path: Path, n: int) -> Fields:
    """Fields of n × n cells that tell their time, row and column."""
    values = np.arange(T * n * n, dtype=np.float32).reshape(T, n, n)
    zarr.create_array(str(path), name="x", shape=values.shape, chunks=(1, n, n), dtype="f4")[:] = values
    own = Part(str(path), "x", "zarr", ("time", "latitude", "longitude"), np.arange(T), chunks={"time": 1})
    axis = Axis(np.arange(n) * 1.0, np.arange(n), 1.0)
    return Fields(path.name, {"x": [own]}, np.arange(T).astype("M8[ns]"), axis, axis)


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Fields, Fields]:
    """A coarse and a fine side, written to disk."""
    return side(tmp_path / "coarse", N), side(tmp_path / "fine", 2 * N)


def job(slab: Slab, *times: int) -> Job:
    """Whole fields of these times."""
    t = np.array(times)
    zero = np.zeros_like(t)
    cuts = [
        Cut(np.arange(len(t)), t, zero, np.zeros((len(t), 2), np.int64), (n, n), 0, wraps=False)
        for n in (N, 2 * N)
    ]
    return Job(next(NUMBERS), slab.number, (cuts[0], cuts[1]))


class Told(list[tuple[str, dict[str, Any]]]):
    """What a run was told."""

    def __call__(self, event: str, **values: object) -> None:
        self.append((event, values))


@contextmanager
def reading(sides: Any, workers: int, told: Told | None = None) -> Iterator[Readers]:
    """Processes for a while."""
    with closing(Readers(sides, workers, told if told is not None else Told())) as readers:
        assert not pids(readers)  # a split that is never served needs none
        readers.give_back(readers.borrow(SHAPES))
        yield readers


def pids(readers: Readers) -> list[int]:
    """Number the processes."""
    return [reader.process.pid or 0 for reader in readers._readers]


def is_there(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether a process ends."""
    end = time.monotonic() + seconds
    while is_there(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_there(pid)


def assert_read(slab: Slab, *times: int) -> None:
    """The slab holds whole fields of these times."""
    for found, n in zip(slab.sides(), (N, 2 * N), strict=True):
        expected = np.arange(T * n * n, dtype=np.float32).reshape(T, n, n)[list(times)]
        np.testing.assert_array_equal(found[: len(times), 0], expected)


@pytest.mark.parametrize(
    ("count", "halo", "size", "wraps"), [(3, 2, 8, False), (8, 2, 8, True), (2, 0, 5, True), (1, 3, 1, False)]
)
def test_the_cells_of_a_patch_are_those_of_the_plan(count: int, halo: int, size: int, *, wraps: bool) -> None:
    """Processes without torch work out the same cells as the plan does with it."""
    import torch

    start = torch.arange(size if wraps else size - count + 1)
    expected = cells(start, count, halo, size, wraps=wraps)
    np.testing.assert_array_equal(neighbours(start.numpy(), count, halo, size, wraps=wraps), expected)


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside each that trains up to eight, and one at least, whatever there is."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(20), raising=False)
    assert [default_workers(n) for n in (1, 2, 4, 10, 40)] == [8, 8, 4, 1, 1]


def test_jobs_are_done(sides: tuple[Fields, Fields]) -> None:
    """Jobs on two slabs, waited for in another order than they were given, are all done."""
    with reading(sides, 2) as readers:
        one, two = readers.borrow(SHAPES), readers.borrow(SHAPES)
        jobs = [job(one, 3, 0, 4), job(two, 1, 1)]
        for each in jobs:
            readers.submit(each)
        for each in reversed(jobs):
            readers.wait(each.number)
        assert_read(one, 3, 0, 4)
        assert_read(two, 1, 1)


def test_in_this_process_jobs_are_done_when_they_are_waited_for(sides: tuple[Fields, Fields]) -> None:
    """Nothing is read that nobody waits for."""
    inline = Inline(sides, Told())
    slab = inline.borrow(SHAPES)
    first, second = job(slab, 2), job(slab, 3, 0, 4)
    inline.submit(first)
    inline.submit(second)
    inline.wait(second.number)
    assert_read(slab, 3, 0, 4)
    inline.wait(first.number)
    assert_read(slab, 2)
    inline.give_back(slab)
    assert inline.borrow(SHAPES) is slab


def test_they_start_without_torch(sides: tuple[Fields, Fields]) -> None:
    """A process that reads does not load torch: it would take seconds and hundreds of megabytes."""
    with reading(sides, 1) as readers:
        slab = readers.borrow(SHAPES)
        readers.submit(one := job(slab, 0))
        readers.wait(one.number)
        maps = Path(f"/proc/{pids(readers)[0]}/maps").read_text()
        assert "numpy" in maps
        assert "libtorch" not in maps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signals_for_the_run_do_not_touch_them(sides: tuple[Fields, Fields], number: signal.Signals) -> None:
    """Ctrl-C and schedulers signal the whole group; readers go on until the run ends them."""
    told = Told()
    with reading(sides, 1, told) as readers:
        (pid,) = pids(readers)
        os.kill(pid, number)  # while it is starting
        slab = readers.borrow(SHAPES)
        readers.submit(one := job(slab, 1, 2))
        readers.wait(one.number)
        os.kill(pid, number)
        readers.submit(two := job(slab, 3, 4))
        readers.wait(two.number)
        assert_read(slab, 3, 4)
        assert pids(readers) == [pid]
    assert not told
    assert not is_there(pid)


def test_the_run_still_gets_its_signals(sides: tuple[Fields, Fields]) -> None:
    """Starting readers leaves this process's own signal mask as it was."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with reading(sides, 1):
        assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before


def test_one_that_dies_is_replaced(sides: tuple[Fields, Fields]) -> None:
    """Killed at any time, before and after its work, a reader is replaced and all jobs are done."""
    told = Told()
    with reading(sides, 2, told) as readers:
        for _ in range(3):
            slab = readers.borrow(SHAPES)
            os.kill(pids(readers)[0], signal.SIGKILL)
            jobs = [job(slab, 4, 1, 0), job(readers.borrow(SHAPES), 2)]
            for each in jobs:
                readers.submit(each)
            for each in jobs:
                readers.wait(each.number)
            assert_read(slab, 4, 1, 0)
    assert told
    assert {event for event, _ in told} == {"data.reader_died"}
    assert {values["code"] for _, values in told} == {-signal.SIGKILL}


class Deadly:
    """Ends whatever process it is sent to."""

    where = "a deadly file"
    shape = N, N

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (7,)


def test_where_all_die_again_and_again_the_run_is_told(sides: tuple[Fields, Fields]) -> None:
    """Readers that cannot even start are no endless loop."""
    told = Told()
    with reading((Deadly(), sides[1]), 1, told) as readers:
        slab = readers.borrow(SHAPES)
        readers.submit(one := job(slab, 0))
        with pytest.raises(HookloopError, match=r"have died 4 times .* exit code 7.*workers: 0"):
            readers.wait(one.number)
    assert len(told) == DEATHS


def test_a_users_error_is_told_as_one(sides: tuple[Fields, Fields], tmp_path: Path) -> None:
    """A value that is not finite is the same error as in this process; the reader goes on."""
    zarr.open_array(str(tmp_path / "fine"), path="x")[2, 0, 0] = np.nan
    with reading(sides, 1) as readers:
        slab = readers.borrow(SHAPES)
        bad, good = job(slab, 2), job(slab, 3)
        readers.submit(bad)
        readers.submit(good)
        with pytest.raises(HookloopError, match="variable x: 1 of 64 values"):
            readers.wait(bad.number)
        readers.wait(good.number)
        assert_read(slab, 3)


def test_a_bug_is_told_with_its_traceback(sides: tuple[Fields, Fields]) -> None:
    """What is nobody's mistake but ours comes with where it happened."""
    with reading(sides, 1) as readers:
        slab = readers.borrow(SHAPES)
        readers.submit(one := job(slab, T))  # there is no such time
        with pytest.raises(RuntimeError, match=r"(?s)Traceback .*IndexError") as error:
            readers.wait(one.number)
        assert "fields.py" in str(error.value)


def test_a_slab_is_not_lent_while_it_is_written_to(sides: tuple[Fields, Fields]) -> None:
    """Given back with a job on it, a slab is not used again before that job is answered."""
    with reading(sides, 1) as readers:
        slab = readers.borrow(SHAPES)
        readers.submit(job(slab, 0, 1, 2))
        readers.give_back(slab)
        other = readers.borrow(SHAPES)
        assert other is not slab
        readers.submit(last := job(other, 3))
        readers.wait(last.number)  # a reader answers in order
        assert readers.borrow(SHAPES) is slab


def test_too_large_a_slab_is_told(sides: tuple[Fields, Fields]) -> None:
    """Memory that cannot be had is a user's error before anything is read."""
    with pytest.raises(HookloopError, match=r"1073741824 samples .* GiB of the .*batch_size.*patch.shuffle"):
        Inline(sides, Told()).borrow(((2**30, 1, 1024, 1024), (2**30, 1, 1024, 1024)))


def test_a_thousand_jobs_at_once(tmp_path: Path) -> None:
    """However many jobs are submitted before the first is waited for, neither side blocks the other."""
    rows = 1000
    shapes = (rows, 1, 1, 1), (rows, 1, 1, 1)
    pixel = side(tmp_path / "pixel", 1)
    with reading((pixel, pixel), 1) as readers:
        slab = readers.borrow(shapes)
        jobs = []
        for row in range(rows):
            cut = Cut(
                np.array([row]),
                np.array([row % T]),
                np.array([0]),
                np.zeros((1, 2), np.int64),
                (1, 1),
                0,
                wraps=False,
            )
            jobs.append(Job(next(NUMBERS), slab.number, (cut, cut)))
            readers.submit(jobs[-1])
        for each in jobs:
            readers.wait(each.number)
        np.testing.assert_array_equal(slab.sides()[0].ravel(), np.arange(rows) % T)


def test_jobs_on_a_slab_that_is_given_back_are_dropped(sides: tuple[Fields, Fields]) -> None:
    """What nobody waits for any more is not read, so that an iterator left early holds up nobody."""
    with reading(sides, 1) as readers:
        slab, other = readers.borrow(SHAPES), readers.borrow(SHAPES)
        for _ in range(500):
            readers.submit(job(slab, 0))
        readers.give_back(slab)
        readers.submit(last := job(other, 4))
        assert len(readers._waiting) == 1
        readers.wait(last.number)
        assert_read(other, 4)
        assert not readers._answers


MAIN = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_readers import Readers, Told, pids, side
if __name__ == "__main__":
    directory = Path({directory!r})
    readers = Readers((side(directory / "a", 4), side(directory / "b", 8)), 2, Told())
    readers.borrow(((1, 1, 4, 4), (1, 1, 8, 8)))
    print(*pids(readers), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_they_do_not_outlive_the_run(tmp_path: Path, number: signal.Signals) -> None:
    """Whatever ends the run, its readers end too, and the run does not wait for anything else."""
    script = tmp_path / "main.py"
    script.write_text(MAIN.format(tests=str(Path(__file__).parent), directory=str(tmp_path)))
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        readers = [int(pid) for pid in run.stdout.readline().split()]
        assert len(readers) == 2
        run.send_signal(number)
        run.communicate(timeout=30)
    assert run.returncode in (-number, 1)
    assert all(gone(pid) for pid in readers)
