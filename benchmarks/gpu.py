"""One GPU, hookloop and fme: ceilings first, then whether it is right, then how fast, then why it is no faster.

    python benchmarks/gpu.py --out results.jsonl                   # all of it, 9 minutes on an H100
    python benchmarks/gpu.py --only step,sampler --out …       # some of it
    python benchmarks/gpu.py --small --device cpu                  # shows that it works

Every measurement is a line of JSON: what, value, unit, target, bound, peer, and machine, versions, revision. Times are
medians of blocks, contestants in turn, each block from an idle device to an idle device; quartiles are given. The
bound of a network is its operations at the rate of this machine's own large bfloat16 product, of anything else the
bytes it must move at the rate of a large copy. fme is asked where it is installed (fme 2026.10.0 and dacite; packages
that it imports without need may be missing). ``hookloop`` is what hookloop does; graphs, layouts, compilation are
alternatives, told for comparison.

Exits 1 where something is wrong or broke; missing a target is no failure. See benchmarks/gpu.sh for a machine without
network.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from gpu import (
    ceilings,
    correctness,
    inference,
    kernels_of_a_step,
    precision,
    settings,
    single,
    start,
    training,
)
from gpu.bench import Bench
from gpu.clock import Clock
from gpu.records import Book
from gpu.sizes import FULL, SMALL

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS: dict[str, Callable[[Bench], None]] = {
    "ceilings": ceilings.measure,
    "correct": correctness.measure,
    "step": training.measure,
    "forward": inference.forwards,
    "sampler": inference.generation,
    "norm": single.norms,
    "ema": single.averages,
    "hiro": training.hiro,
    "checkpoint": single.checkpoints,
    "start": start.measure,
    "precision": precision.measure,
    "profile": kernels_of_a_step.measure,
    "settings": settings.measure,
}
"""In the order in which they are measured: where time runs out, what matters least is left."""


def part(name: str) -> Callable[[Bench], None]:
    """Find the part called *name*, or a setting alone."""
    if name.startswith("setting:"):
        return partial(settings.one, name=name.removeprefix("setting:"))
    if name not in PARTS:
        raise SystemExit(f"--only: {name}: expected some of {', '.join(PARTS)}")
    return PARTS[name]


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--small", action="store_true", help="sizes that show that it works, also on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="where the lines go; the screen if not given")
    parser.add_argument("--minutes", type=float, default=8.5, help="no part is begun after that")
    options = parser.parse_args()
    began = time.monotonic()
    device = torch.device(options.device)
    if device.type != "cuda" and not options.small:
        raise SystemExit("the full sizes need a GPU; give --small")
    parts = {name: part(name) for name in options.only.split(",")} if options.only else PARTS
    with ExitStack() as cleanup:
        file = cleanup.enter_context(
            options.out.open("w", encoding="utf-8") if options.out else nullcontext(sys.stdout)
        )
        book = Book(device, file)
        clock = Clock(device, began + 60 * options.minutes)
        scratch = Path(cleanup.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
        bench = Bench(book, clock, SMALL if options.small else FULL, scratch, cleanup)
        for name, measure in parts.items():
            if clock.late:
                book.skip(name, "no time left")
                continue
            with book.attempt(name):
                measure(bench)
            clock.release()
            book.add(f"time until {name} was done", time.monotonic() - began, "s")
        print(book.table(), file=sys.stderr)
        sys.exit(bool(book.failed))


if __name__ == "__main__":
    main()
