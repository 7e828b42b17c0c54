"""Checkpoints that are damaged between two starts, and two starts at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from signal import SIGKILL
from typing import TYPE_CHECKING, TypeAlias

from faults.plans import Plan
from faults.points import Point

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from faults.bench import Bench, Trial

_PAGE = 4096
_EACH = 8


def _truncated(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))]


def _flipped(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _zeroed(content: bytes, random: Random) -> bytes:
    while True:
        page = random.randrange(len(content) // _PAGE + 1) * _PAGE
        end = min(page + _PAGE, len(content))
        if any(content[page:end]):
            return content[:page] + bytes(end - page) + content[end:]


Damage: TypeAlias = Callable[[bytes, Random], bytes]


def checkpoints(_: Bench, random: Random) -> Iterator[Plan]:
    """Damage the latest checkpoint, which costs an interval, or both, which is for people to look at."""
    for number in range(_EACH):
        for damage in (_truncated, _flipped, _zeroed):
            seed = random.getrandbits(32)
            yield Plan(
                f"damaged{damage.__name__}-{number}",
                "downscaling",
                partial(_damage_latest, damage=damage, seed=seed),
            )
            if number == 0:
                yield Plan(
                    f"damaged-both{damage.__name__}",
                    "downscaling",
                    partial(_damage_both, damage=damage, seed=seed),
                )


def _begin(trial: Trial) -> tuple[Path, Path]:
    """Leave a run with two checkpoints."""
    trial.died(trial.start(point=Point("before_batch", 10, SIGKILL)), {-SIGKILL}, at_once=True)
    return trial.run / "checkpoints/latest.ckpt", trial.run / "checkpoints/previous.ckpt"


def _change(path: Path, damage: Damage, seed: int) -> None:
    content = damage(path.read_bytes(), Random(seed))  # noqa: S311 - to be drawn again
    path.unlink()  # the same file may have another name
    path.write_bytes(content)


def _damage_latest(trial: Trial, damage: Damage, seed: int) -> None:
    latest, _ = _begin(trial)
    trial.bound = None
    _change(latest, damage, seed)
    trial.excused = {"checkpoints/damaged.ckpt"}
    trial.finish()
    text = (trial.place / f"console.{trial.starts}").read_text()
    trial.expect("WARNING checkpoint.damaged" in text, "nobody said that the latest checkpoint is damaged")
    trial.expect(
        "run.resumed path=run/checkpoints/previous.ckpt" in text, "did not go on from the one before"
    )


def _damage_both(trial: Trial, damage: Damage, seed: int) -> None:
    """Ends with 2 and leaves the files alone; put back, the run goes on."""
    both = _begin(trial)
    before = [path.read_bytes() for path in both]
    for path in both:
        _change(path, damage, seed)
    changed = [path.read_bytes() for path in both]
    end = trial.start()
    trial.expect(end.code == 2, f"ended with {end.code} where no checkpoint can be read, expected 2")
    trial.expect("no checkpoint can be read" in end.text, f"did not say why: {end.last}")
    trial.expect("Traceback" not in end.text, "answered with a traceback")
    trial.expect([path.read_bytes() for path in both] == changed, "damaged files were touched")
    for path, content in zip(both, before, strict=True):
        path.write_bytes(content)
    trial.finish()


def two_at_once(_bench: Bench, _random: Random) -> Iterator[Plan]:
    """Start twice in one directory, new or left by a kill: exactly one trains."""
    for number in range(_EACH):
        yield Plan(f"twins-new-{number}", "downscaling", partial(_start_twice, killed=False))
        yield Plan(f"twins-resumed-{number}", "downscaling", partial(_start_twice, killed=True))


def _start_twice(trial: Trial, *, killed: bool) -> None:
    if killed:
        _begin(trial)
    ends = trial.start_together(2)
    done = trial.bench.wholes[trial.job].steps
    idle = [
        end
        for end in ends
        if (end.code == 2 and "another run writes here" in end.text)
        or (end.code == 0 and end.resumed == done)  # it looked at the lock when the other had finished
    ]
    trial.expect(len(idle) == 1, f"of two starts {2 - len(idle)} trained, expected one: {ends}")
    trial.expect(sum(end.code == 0 for end in ends) >= 1, f"none of two starts finished: {ends}")
    trial.finish()
