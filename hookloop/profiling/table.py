"""What was found out, as people read it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hookloop.profiling.findings import awaited, slowest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hookloop.profiling.device_times import DeviceSummary
    from hookloop.profiling.findings import Findings, RankSteps, Speed

_MOST_ROWS = 20
_MINUTES = 600.0
_LEAST = 1e-4
"""Smaller shares are not told apart."""
_HEADERS = ("hook", "plugin", "calls", "total", "own", "own a call", "longest", "of wall")
_WORDS = 2
"""So many columns hold words; the others hold numbers."""


def facts(found: Findings) -> list[tuple[str, str]]:
    """Everything but the hooks: what it is, and how much."""
    return [*_of_steps(found), *_of_the_device(found), *_of_the_run(found)]


def _of_steps(found: Findings) -> Iterator[tuple[str, str]]:
    if found.speed is None:
        left_out = f"{found.seen} batches, all of which profile.skip or a trace leaves out"
        yield "steps", left_out if found.seen else "none"
        return
    steps = found.speed.steps
    yield (
        "verdict",
        f"{found.speed.verdict}: {_reason(found.speed, found.device_steps, awaited(found.ranks))}",
    )
    times = f"median {duration(steps.median)}, 90 % below {duration(steps.p90)}, mean {duration(steps.mean)}"
    left_out = f"{found.seen - steps.steps:,} at the start or in a trace left out"
    yield "step", f"{times} ({steps.steps:,} steps, {left_out})"
    yield "samples", f"{found.speed.samples_per_second:,.4g} a second"
    yield "data wait", f"{duration(steps.wait)} a step, {percent(steps.wait_share)} of it"
    if (slow := slowest(found.ranks)) is not None and slow.median is not None:
        yield "slowest rank", f"{slow.rank} of {len(found.ranks)}: median {duration(slow.median)}"


def _reason(speed: Speed, device: DeviceSummary | None, slow: RankSteps | None) -> str:
    """What the verdict rests on."""
    if speed.verdict == "data-bound":
        reason = f"{percent(speed.steps.wait_share)} of a step waits for its batch"
        if slow is None:
            return reason
        return f"{reason}, or for rank {slow.rank}, which waits for {percent(slow.wait_share or 0.0)}: it is slower"
    if device is not None and device.starved_share is not None:
        return f"the GPU has nothing left to do when {percent(device.starved_share)} of the steps begin"
    others = max(0.0, 1.0 - speed.compute_share - speed.steps.wait_share)
    return f"train_step is {percent(speed.compute_share)} of a step, the other hooks are {percent(others)}"


def _of_the_device(found: Findings) -> Iterator[tuple[str, str]]:
    device, arithmetic = found.device_steps, found.arithmetic
    yield "device", f"{found.device}, {found.precision}"
    if device is not None:
        idle = "" if device.idle_share is None else f", idle {percent(device.idle_share)} between steps"
        yield "device time", f"{duration(device.mean)} a step{idle}"
    if arithmetic.flops_per_step:
        yield "arithmetic", f"{_scaled(arithmetic.flops_per_step)}FLOP a step, forward and backward"
    mfu = found.speed.mfu if found.speed else None
    if mfu is None or arithmetic.peak is None:
        yield "MFU", arithmetic.note
    else:
        yield "MFU", f"{percent(mfu)} of {_scaled(arithmetic.peak)}FLOP/s, {arithmetic.note}"
    told = {"host": "resident", "allocated": "allocated on the GPU", "reserved": "reserved on the GPU"}
    sizes = (f"{size / 2**30:.2f} GiB {told[kind]}" for kind, size in found.memory.items())
    yield "most memory", ", ".join(sizes)


def _of_the_run(found: Findings) -> Iterator[tuple[str, str]]:
    if found.to_first_batch is not None:
        yield "to the first batch", duration(found.to_first_batch)
    parts = (
        f"{name} {duration(seconds)} ({percent(seconds / found.wall)})"
        for name, seconds in found.phases.items()
        if seconds
    )
    yield "wall time", f"{duration(found.wall)}: {', '.join(parts)}"
    if found.checkpoint_stalls:
        longest = duration(found.longest_checkpoint_stall)
        yield "checkpoints", f"training waited {duration(found.checkpoint_stalls)}, {longest} at most at once"
    cost = f"{duration(found.timing_cost)} ({percent(found.timing_cost / found.wall)})"
    yield "this profile", f"about {cost} while the run went on, {duration(found.at_end)} after it"


def rows(found: Findings) -> list[tuple[str, ...]]:
    """The hooks that take the most, and how much all others do together."""
    shown: list[tuple[str, ...]] = [
        (
            row.hook,
            row.plugin,
            f"{row.calls:,}",
            duration(row.total),
            duration(row.own),
            duration(row.own / row.calls),
            duration(row.longest),
            percent(row.share),
        )
        for row in found.hooks[:_MOST_ROWS]
    ]
    if others := found.hooks[_MOST_ROWS:]:
        own = sum(row.own for row in others)
        share = percent(sum(row.share for row in others))
        shown.append((f"{len(others)} others", "", "", "", duration(own), "", "", share))
    return shown


def plugin_rows(found: Findings) -> list[tuple[str, str, str]]:
    """Every plugin, its own time in all its hooks, and its share of the wall time."""
    spent: dict[str, float] = {}
    for row in found.hooks:
        spent[row.plugin] = spent.get(row.plugin, 0.0) + row.own
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return [(plugin, duration(own), percent(own / found.wall)) for plugin, own in ordered]


def show(found: Findings) -> None:
    """Put it on the terminal, or into whatever stands in for one, on standard error."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        _show_tables(found, console)
    else:
        sys.stderr.write(plain(found))


def plain(found: Findings) -> str:
    """It all as text, in columns."""
    own = "\n".join(_aligned([("plugin", "own", "of wall"), *plugin_rows(found)], 1))
    hooks = "\n".join(_aligned([_HEADERS, *rows(found)], _WORDS))
    told = "\n".join(_aligned(facts(found), _WORDS))
    return f"profile of steps up to {found.step}\n{told}\n\n{own}\n\n{hooks}\n"


def _aligned(lines: Sequence[tuple[str, ...]], words: int) -> list[str]:
    """Columns, the first few of *words*, which begin together; the others are numbers, which end together."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if n < words else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _show_tables(found: Findings, console: object) -> None:
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
    told = Table(title=f"Profile of steps up to {found.step}", show_header=False)
    for line in facts(found):
        told.add_row(*line)
    own = Table()
    for n, header in enumerate(("plugin", "own", "of wall")):
        own.add_column(header, justify="right" if n else "left")
    for plugin in plugin_rows(found):
        own.add_row(*plugin)
    hooks = Table()
    for n, header in enumerate(_HEADERS):
        hooks.add_column(header, justify="left" if n < _WORDS else "right")
    for row in rows(found):
        hooks.add_row(*row)
    for table in (told, own, hooks):
        console.print(table)


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds >= _MINUTES:
        return f"{seconds / 60:.1f} min"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def percent(share: float) -> str:
    """A share with as many digits as it needs."""
    if 0 < share < _LEAST:
        return f"<{100 * _LEAST:g} %"
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"  # noqa: PLR2004 - 10 %


def _scaled(number: float) -> str:
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "
