"""What ``hookloop inspect`` prints: plain tables, a split or a variable to a column or a line."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
from attrs import evolve

from hookloop.data.calendars import calendar_of, labels, minutes_since
from hookloop.plugins.downscaling.data_options import RegionConfig
from hookloop.plugins.downscaling.patches import position_weights, tiles
from hookloop.plugins.downscaling.stores import HALO

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hookloop.data.calendars import Times
    from hookloop.data.fields import Fields
    from hookloop.plugins.downscaling.inspection import Inspection, Split
    from hookloop.plugins.downscaling.inspection_statistics import Statistics, Summary

    Row = Sequence[str]

_NOTHING = "-"
_PLACES = {"device": "GPU", "ram": "RAM", "none": "files"}
_LONGEST = 40
"""Characters of a file's name."""


def opening(found: Inspection) -> str:
    """Write everything but the statistics."""
    sections = [
        _table(_grids(found)),
        _table(_splits(found)),
        _table(_patches(found)),
        bullets("notes", _notes(found)),
        bullets("hints", found.hints),
    ]
    return "\n\n".join(section for section in sections if section)


def variables(found: Inspection, measured: Sequence[Statistics] | None) -> str:
    """Write a line for each variable of the training split, with its statistics where it was *measured*."""
    pair, options = found.train.pair, found.options
    rows = [["variables", "", "units", "missing are", "transform"]]
    for side, fields in (("coarse", pair.coarse), ("fine", pair.fine)):
        for name in fields.parts:
            transform = options.transforms.get(name)
            rows.append(
                [
                    _variable(fields, name),
                    side,
                    fields.units.get(name) or _NOTHING,
                    f"{fields.fill[name]:g}" if name in fields.fill else "refused",
                    transform.name if transform else _NOTHING,
                ]
            )
    if measured is None:
        return _table(rows)
    rows[0] += ["mean", "std", "min", "max", "missing"]
    shown = rows[:1]
    for row, one in zip(rows[1:], measured, strict=True):
        shown.append([*row, *_numbers(one.values), f"{one.missing / one.seen:.3%}" if one.missing else "0"])
        if one.is_transformed:
            shown.append([f"  after {row[-1]}", one.side, "", "", "", *_numbers(one.transformed), ""])
    return _table(shown, right=range(5, 10))


def _variable(fields: Fields, name: str) -> str:
    """Name a variable, with what it is in the files where that is something else."""
    source = ", ".join(dict.fromkeys(part.name for part in fields.parts[name]))
    if name in fields.levels:
        source = f"{source} at {fields.levels[name]}"
    return name if source == name else f"{name} ({source})"


def _numbers(one: Summary) -> list[str]:
    """Mean, standard deviation, least and most."""
    known = one.moments
    numbers = (known.mean, known.std, one.least, one.most) if known.count else (math.nan,) * 4
    return [f"{number:.5g}" for number in numbers]


def _grids(found: Inspection) -> Iterator[Row]:
    pair, files = found.train.pair, found.train.files
    sides = (pair.coarse, files[0]), (pair.fine, files[1])
    yield ["grids", "coarse", "fine"]
    yield ["cells (lat x lon)", *(product(used.shape) for used, _ in sides)]
    if any(used.shape != there.shape for used, there in sides):
        yield ["  of the files'", *(product(there.shape) for _, there in sides)]
    if pair.coarse.gridded and pair.fine.gridded:
        yield ["latitude", *(_extent(used.latitude.edges, "NS") for used, _ in sides)]
        yield ["longitude", *(_extent(used.longitude.edges, "EW") for used, _ in sides)]
        yield ["spacing", *(spacing(used) for used, _ in sides)]
        yield ["round the globe", *(["yes" if pair.periodic else "no"] * 2)]
    else:
        yield [
            "coordinates",
            *("latitude, longitude" if used.gridded else "rows, columns" for used, _ in sides),
        ]
    yield ["factor", f"{pair.factor}", f"{pair.factor**2} fine cells to a coarse one"]
    for static in found.options.statics:
        yield ["static", "", f"{static.variable} ({_name(static.path)})"]


def _splits(found: Inspection) -> Iterator[Row]:
    splits = found.splits
    yield ["splits", *(split.name for split in splits)]
    for n, side in enumerate(("coarse", "fine")):
        yield [f"{side} files", *(_files((split.pair.coarse, split.pair.fine)[n]) for split in splits)]
    yield ["members", *(f"{split.pair.members}" for split in splits)]
    yield ["times", *(f"{len(split.pair.times):,} of {split.there:,}" for split in splits)]
    for option in ("time", "every", "repeat", "gap"):
        cells = [_count(split.left_out[option]) for split in splits]
        if option == "gap" and found.options.gap is not None:
            cells[0] = f"{splits[0].left_out[option]:,}"
        if any(cell != _NOTHING for cell in cells):
            yield [f"  left out by {option}", *cells]
    yield ["  first", *(labels(split.pair.times[:1])[0] for split in splits)]
    yield ["  last", *(labels(split.pair.times[-1:])[0] for split in splits)]
    yield ["  step", *(_step(split.pair.times) for split in splits)]
    yield ["  calendar", *(calendar_of(split.pair.times) for split in splits)]
    yield ["  also learnt", *(_count(split.learnt_too) for split in splits)]
    yield ["samples an epoch", *(f"{split.data.n_samples:,}" for split in splits)]
    yield ["batches an epoch", *(f"{split.data.n_batches:,} of {split.data.batch_size}" for split in splits)]
    a_sample = _bytes_a_sample(found)
    yield ["bytes an epoch", *(_bytes(a_sample * split.data.n_samples) for split in splits)]
    if not all(split.stream for split in splits):
        held = [_NOTHING if split.stream else _bytes(split.pair.nbytes) for split in splits]
        yield ["bytes in memory", *held]
    yield ["served from", *(_place(split) for split in splits)]
    if any(split.stream for split in splits):
        yield from _streams(splits)


def _streams(splits: Sequence[Split]) -> Iterator[Row]:
    streams = [split.stream for split in splits]
    yield ["  workers", *(f"{stream.workers}" if stream else _NOTHING for stream in streams)]
    yield ["  shuffle buffer", *(_bytes(stream.buffer) if stream else _NOTHING for stream in streams)]
    yield ["  decoded a sample", *(_bytes(s.cost.bytes_a_patch) if s else _NOTHING for s in streams)]
    yield ["  decoded / used", *(f"{s.cost.ratio:.3g}" if s else _NOTHING for s in streams)]


def _patches(found: Inspection) -> Iterator[Row]:
    pair, config, (height, width) = found.train.pair, found.options.patch, found.patch
    grid, batch = pair.coarse_grid.shape, found.train.data.batch_size
    size = _bytes_a_sample(found)
    fine = f"{height * pair.factor} x {width * pair.factor} fine cells"
    whole = ", the whole field" if found.patch == grid else ""
    yield ["patches", ""]
    yield ["size", f"{height} x {width} coarse, {fine}{whole}"]
    if not whole:
        room = len(tiles(grid, found.patch, config.overlap, wraps=pair.periodic))
        around = pair.periodic and width < grid[1]
        places = (grid[0] - height + 1) * (grid[1] if around else grid[1] - width + 1)
        share = config.per_sample * height * width / math.prod(grid)
        yield ["room in a field", f"{room:,} tiles, {places:,} places"]
        where = (
            f"at random, {share:.3g} times its area" if config.random_offset else f"of {room:,} tiles in turn"
        )
        yield ["of a field an epoch", f"{config.per_sample:,} {where}"]
    else:
        yield ["of a field an epoch", f"{config.per_sample:,}"]
    yield from _regions(found)
    yield ["bytes a sample", f"{_bytes(size)} (float32, coarse with a halo of {HALO} cells)"]
    yield ["bytes a batch", f"{_bytes(size * batch)} ({batch} samples)"]


def _regions(found: Inspection) -> Iterator[Row]:
    """Say of each box how much it weighs, and which share of the patches have their centre in it and in none before."""
    pair, config = found.train.pair, found.options.patch
    weigh = partial(position_weights, grid=pair.coarse_grid, patch=found.patch, wraps=pair.periodic)
    weights = weigh(config)
    if weights is None:
        return
    regions = [config.region] if isinstance(config.region, RegionConfig) else config.region or []
    alike = [evolve(region, weight=1.0) for region in regions]
    rest = 1.0
    for n, region in enumerate(regions):
        told = weigh(evolve(config, region=[*alike[:n], evolve(region, weight=2.0), *alike[n + 1 :]]))
        assert told is not None
        share = (weights[told > 1].sum() / weights.sum()).item()
        rest -= share
        box = f"{_extent((min(region.lat), max(region.lat)), 'NS')}, {_extent(region.lon, 'EW')}"
        yield [f"region {n + 1}", f"{box}: weight {region.weight:g}, {share:.3g} of the patches"]
    yield ["outside", f"weight 1, {max(rest, 0.0):.3g} of the patches"]


def _notes(found: Inspection) -> list[str]:
    """What the pairs have to say, once where several say the same."""
    said: dict[str, list[str]] = {}
    for split in found.splits:
        for note in split.pair.notes:
            said.setdefault(note, []).append(split.name)
    notes = [f"{', '.join(names)}: {note}" for note, names in said.items()]
    notes += [
        f"{split.name}: {split.learnt_too:,} of its {len(split.pair.times):,} times are also learnt, so its scores "
        "say little about other times; downscaling.gap leaves them out of training"
        for split in found.splits
        if split.learnt_too
    ]
    return notes


def _bytes_a_sample(found: Inspection) -> int:
    pair, (height, width) = found.train.pair, found.patch
    coarse = len(pair.inputs) * (height + 2 * HALO) * (width + 2 * HALO)
    return 4 * (coarse + len(pair.outputs) * height * width * pair.factor**2)


def _files(fields: Fields) -> str:
    paths = list(dict.fromkeys(part.path for parts in fields.parts.values() for part in parts))
    return f"{len(paths):,}: {_name(paths[0])}" + (", …" if len(paths) > 1 else "")


def _name(path: str) -> str:
    name = PurePath(path).name
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _step(times: Times) -> str:
    """Say how far times lie apart: the usual distance, and how often it is more or less."""
    if len(times) == 1:
        return _NOTHING
    steps = np.diff(minutes_since(times, times[0]))
    ((usual, often),) = Counter(steps.tolist()).most_common(1)
    others = len(steps) - often
    return _duration(usual) + (f", {others:,} up to {_duration(int(steps.max()))}" if others else "")


def _duration(minutes: int) -> str:
    for unit, length in (("d", 1440), ("h", 60)):
        if minutes >= length and minutes % length == 0:
            return f"{minutes // length} {unit}"
    return f"{minutes} min"


def _place(split: Split) -> str:
    chosen = " (auto)" if split.config.cache == "auto" else ""
    return f"{_PLACES[split.place]}{chosen}"


def spacing(fields: Fields) -> str:
    """Say how wide cells are, in degrees."""
    steps = [f"{axis.step:.4g}°" for axis in (fields.latitude, fields.longitude)]
    return steps[0] if steps[0] == steps[1] else " x ".join(steps)


def _extent(edges: tuple[float, float], signs: str) -> str:
    return " to ".join(_degrees(edge, signs) for edge in edges)


def _degrees(value: float, signs: str) -> str:
    shown = round(value, 4)
    return f"{abs(shown):.5g}°{signs[0] if shown > 0 else signs[1] if shown < 0 else ''}"


def product(shape: tuple[int, int]) -> str:
    """Say how many cells there are in latitude and longitude."""
    return f"{shape[0]:,} x {shape[1]:,}"


def _count(n: int) -> str:
    return f"{n:,}" if n else _NOTHING


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1000:  # noqa: PLR2004 - three digits
            return f"{n:.3g} {unit}"
        n /= 1024
    return f"{n:,.3g} TiB"


def _table(rows: Sequence[Row] | Iterator[Row], right: range = range(0)) -> str:
    """Align columns; the first row is the head."""
    head, *body = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *body)
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def bullets(head: str, lines: Sequence[str]) -> str:
    """Write *lines* below *head*, or nothing where there are none."""
    return "\n".join([head, *(f"- {line}" for line in lines)]) if lines else ""
