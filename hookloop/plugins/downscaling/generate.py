"""Generating fine fields from coarse data without a fine truth, into a store that survives any interruption."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
import torch
from attrs import define, evolve, field, frozen

from hookloop import locking, yamlfile
from hookloop.config import build, options_of
from hookloop.data import statistics_cache
from hookloop.data.bars import bar
from hookloop.data.calendars import day_of_year, hour_of_day, labels
from hookloop.data.fields import Gaps
from hookloop.data.files import compact_units, open_fields, select
from hookloop.data.opening import is_url
from hookloop.data.options import SourceConfig
from hookloop.data.reading import Cut
from hookloop.data.selection import chosen, in_ranges
from hookloop.errors import Diverged, HookloopError
from hookloop.plugins.downscaling.coarse_region import trained_region
from hookloop.plugins.downscaling.dataset import HALO, PairBatch
from hookloop.plugins.downscaling.generated_store import Contents, Item, make_place, open_store
from hookloop.plugins.downscaling.sampling import Networks, digest
from hookloop.plugins.downscaling.trained import as_sources, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    import numpy.typing as npt
    from structlog.typing import FilteringBoundLogger
    from torch import Tensor

    from hookloop.data.fields import Fields
    from hookloop.data.statistics_cache import Plain
    from hookloop.plugins.downscaling.coarse_region import Region
    from hookloop.plugins.downscaling.trained import Trained

    Floats = npt.NDArray[np.float32]

_SHARD_BYTES = 2**25
_LEARNT_FROM = ("train", "validation", "validation_sets", "statics", "patch", "gap")
"""Options that say what was learnt from: what matters of it is in the weights. All others may change a field."""
_SHARD_BATCHES = 2
"""Of a shard, which is in memory until it is written: that of one variable, and all, at most."""
_LINE_SECONDS, _MOST_SECONDS = 10.0, 600.0
"""Least time between two lines about progress at the beginning, and after hours."""
_OTHER_FORMATS = re.compile(
    r"\.(nc\d?|cdf|netcdf|h5|hdf\d?|gri?b\d?|zip|tar|gz|tiff?|np[yz]|csv|parquet|pt|ckpt)", re.IGNORECASE
)


@frozen
class Request:
    """What to generate, and how much at once."""

    data: Sequence[str]
    """Paths, patterns, URLs, or options such as ``{path: x.nc, rename: {u850: u@850}}``."""
    out: Path
    members: int = 8
    times: Sequence[tuple[str, str]] = ()
    """First and last, both included; all where there are none."""
    batch: int = 32
    seed: int = 0
    device: str = "auto"
    overrides: Sequence[str] = ()


@frozen(eq=False)
class Generator:
    """Makes the fields of some times and members, each a function of its seed alone."""

    trained: Trained
    region: Region
    request: Request
    device: torch.device
    precision: torch.dtype
    networks: Networks

    @torch.no_grad()
    def fields(self, item: Item, advance: Callable[[int], object]) -> Floats:
        """Generate all fields of *item*, ``[variable, time, member, lat, lon]``.

        :param advance: told how many more are done.
        :raises Diverged: where one is not finite.
        :raises HookloopError: where the input cannot be read or is not finite.
        """
        outputs = self.trained.options.model.outputs
        shape = len(self.trained.model.latitude), len(self.trained.model.longitude)
        made = np.empty((len(outputs), len(item.times), len(item.members), *shape), np.float32)
        group, first = divmod(item.members.start, self.request.members)
        inputs = self._inputs(item.times, group)
        for times, members in parts(len(item.times), len(item.members), self.request.batch):
            seeds = [
                [member_seed(self.request.seed, stamp, group, first + member) for member in members]
                for stamp in self._stamps(item.times)[times]
            ]
            batch = _rows(inputs, times)
            generated = self._generated(batch, seeds, first + members.start)
            made[:, times, members.start : members.stop] = generated.movedim(2, 0).float().numpy(force=True)
            advance(len(seeds) * len(members))
        self._expect_finite(made, item)
        return made

    def _generated(self, batch: PairBatch, seeds: Sequence[Sequence[int]], first: int) -> Tensor:
        model = self.trained.model
        with self._autocast():
            upsampled = model.interpolated(batch.coarse, self.region.factor)
            drawn = self.networks.draw(batch, upsampled, seeds, first)
            fields = model.fields(drawn, upsampled)
        return fields.view(len(seeds), -1, *fields.shape[1:])

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def _inputs(self, times: range, group: int) -> PairBatch:
        """Read whole coarse fields of one member at some times, with their halo."""
        coarse = self.region.coarse
        numbers = np.arange(times.start, times.stop)
        corner = np.zeros((len(numbers), 2), np.int64)
        own = np.full_like(numbers, group)
        cut = Cut(numbers, numbers, own, corner, coarse.shape, HALO, self.region.periodic)
        gaps = Gaps()
        values = coarse.read(cut.wanted(coarse.shape), gaps=gaps)
        gaps.refuse("--set downscaling.fill.{name}=VALUE")
        here = coarse.times[numbers]
        return PairBatch(
            coarse=torch.from_numpy(values).to(self.device),
            fine=torch.empty(len(numbers), 0, device=self.device),
            corner=torch.from_numpy(corner).to(self.device),
            hour=torch.from_numpy(hour_of_day(here)).to(self.device),
            day=torch.from_numpy(day_of_year(here)).to(self.device),
            times=here,
        )

    def _stamps(self, times: range) -> list[str]:
        return [_stamp(time) for time in self.region.coarse.times[times.start : times.stop]]

    def _expect_finite(self, made: Floats, item: Item) -> None:
        if np.isfinite(made).all():
            return
        bad = ~np.isfinite(made)
        variable, time, member = np.argwhere(bad.any((-2, -1)))[0]
        name = self.trained.options.model.outputs[variable]
        label = labels(self.region.coarse.times[[item.times.start + time]])[0]
        share = bad[variable, time, member].mean()
        raise Diverged(
            f"{name} at {label}, member {item.members.start + member}: {share:.2%} of the generated field is not "
            "finite, expected all; choose another checkpoint, or --set optimization.precision=fp32"
        )


def parts(times: int, members: int, batch: int) -> Iterator[tuple[slice, range]]:
    """Divide *times* by *members* fields into batches: all members of some times, or some of one time."""
    together = max(1, batch // members)
    for time in range(0, times, together):
        for member in range(0, members, batch):
            yield slice(time, min(time + together, times)), range(member, min(member + batch, members))


def _rows(batch: PairBatch, times: slice) -> PairBatch:
    return PairBatch(
        batch.coarse[times],
        batch.fine[times],
        batch.corner[times],
        batch.hour[times],
        batch.day[times],
        batch.times[times],
    )


def member_seed(seed: int, stamp: str, group: int, member: int) -> int:
    """Seed a member by the time itself, so that a longer request repeats its field.

    :param stamp: the time, see :func:`hookloop.data.calendars.labels` but to the millisecond.
    :param group: the ensemble member of the coarse input, 0 where there is one.
    :returns: a non-negative integer of 63 bits.
    """
    key = f"{seed}/generate/{stamp}/{group}/{member}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def _stamp(time: object) -> str:
    """Write a time to the millisecond, the same whether numpy or cftime has it."""
    if isinstance(time, np.datetime64):
        return str(np.datetime_as_string(time, unit="ms"))
    return str(time.isoformat(timespec="milliseconds"))  # type: ignore[attr-defined]  # cftime has no types


def generate(checkpoint: Path, request: Request, events: FilteringBoundLogger) -> None:
    """Generate what is missing of the store that *request* describes.

    :raises HookloopError: for the user's mistakes.
    :raises Diverged: where a generated field is not finite.
    """
    _expect_zarr(request.out)
    device = _device(request.device)
    trained = load(checkpoint, request.overrides)
    sources = data_sources(request.data, trained.options.train.coarse)
    coarse = _opened(sources, request, trained)
    region = trained_region(coarse, trained.grid, trained.options.pairing)
    _expect_trained_factor(region, trained, checkpoint, events)
    for note in [*coarse.notes, *_units_unlike(coarse, trained)]:
        events.info("data.note", note=note)
    precision = _precision(trained, device)
    networks = Networks(trained.model, trained.options.sampler, events)
    made_with = {**_known(coarse), **_made_with(request, trained, networks.digests(), precision)}
    contents = _contents(made_with, request, trained, region, checkpoint)
    shard = _shard(contents, request)
    make_place(request.out, list(contents.variables))
    with locking.lock(request.out, events, option="--out"):
        store = open_store(request.out, contents, shard)
        items = store.items()
        missing = [item for item in items if not store.has(item)]
        count = sum(len(item.times) * len(item.members) for item in missing)
        for path in [path for item in missing for path in store.damaged(item)]:
            events.warning(
                "shard.damaged", path=str(path), hint="it is not as long as its index says, and made again"
            )
        if missing:
            networks.to(device)
            events.info("generation.begun", fields=count, weights=trained.weights, device=str(device))
            generator = Generator(trained, region, request, device, precision, networks)
            told = Told(events, count)
            with bar("generating", count) as advance, _writing(store.write) as write:
                for item in missing:
                    write(item, generator.fields(item, advance if sys.stderr.isatty() else told.advance))


@define(eq=False)
class Told:
    """Tells now and then, where there is no terminal, how many fields there are; more rarely the longer it takes."""

    events: FilteringBoundLogger
    fields: int
    clock: Callable[[], float] = monotonic
    done: int = field(init=False, default=0)
    _began: float = field(init=False)
    _last: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Begin."""
        self._began = self._last = self.clock()

    def advance(self, more: int) -> None:
        """Count *more* fields, and tell unless that was done just now."""
        self.done += more
        now = self.clock()
        spent = now - self._began
        if now - self._last >= min(max(_LINE_SECONDS, spent / 10), _MOST_SECONDS):
            self._last = now
            left = timedelta(seconds=round(spent / self.done * (self.fields - self.done)))
            self.events.info("generation.going_on", done=self.done, fields=self.fields, left=str(left))


@contextmanager
def _writing(write: Callable[[Item, Floats], None]) -> Iterator[Callable[[Item, Floats], None]]:
    """Write in a thread while the next fields are made; at most one item waits and what fails is raised soon."""
    asked: deque[Future[None]] = deque()

    def submit(item: Item, values: Floats) -> None:
        if len(asked) > 1:
            asked.popleft().result()
        asked.append(thread.submit(write, item, values))

    with ThreadPoolExecutor(1, thread_name_prefix="generated") as thread:
        try:
            yield submit
        except BaseException:
            thread.shutdown(cancel_futures=True)
            raise
        for future in asked:
            future.result()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:  # torch without CUDA asserts
        raise HookloopError(
            f"--device: {name}: not on this machine; expected auto, cpu, cuda or mps"
        ) from problem
    return device


def _precision(trained: Trained, device: torch.device) -> torch.dtype:
    auto = trained.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if auto or trained.precision == "bf16" else torch.float32


def _opened(sources: Sequence[SourceConfig], request: Request, trained: Trained) -> Fields:
    """Open the coarse data as the training split's, but for its choice of times and its box."""
    options = trained.options
    split = evolve(
        options.train,
        coarse=list(sources),
        time=list(request.times) or None,
        every=None,
        repeat=None,
        lat=None,
        lon=None,
    )
    inputs = options.model.inputs
    fill = {name: options.fill[name] for name in inputs if name in options.fill}
    try:
        fields = open_fields(sources, inputs, fill=fill, among=lambda times: in_ranges(times, split))
        return select(fields, chosen(fields.times, split, fields.where))
    except HookloopError as error:
        raise HookloopError(f"--data: {error}") from error


def data_sources(given: Sequence[str], trained: Sequence[str | SourceConfig]) -> list[SourceConfig]:
    """Read what is given as data; what is only a path is read as the coarse files of the training were.

    :raises HookloopError: where those were read in ways that contradict one another.
    """
    before = as_sources(trained)
    rename: dict[str, str] = {}
    for source in before:
        for name, found in source.rename.items():
            if rename.setdefault(name, found) != found:
                raise HookloopError(
                    f"--data: training files have {name} as {rename[name]} and as {found}; "
                    f"say which it is here: --data '{{path: …, rename: {{{name}: {found}}}}}'"
                )
    ensemble = next((source.ensemble for source in before if source.ensemble), None)
    options = next((source.storage_options for source in before if source.storage_options), {})
    return [
        _source(text)
        if text.lstrip().startswith("{")
        else SourceConfig(text, rename, ensemble, options if "://" in text else {})
        for text in given
    ]


def _source(text: str) -> SourceConfig:
    document = yamlfile.read(f"data: {text}", "--data")
    return build(SourceConfig, document, "data")


def _expect_zarr(out: Path) -> None:
    """Refuse a name that says another format than the one that is written."""
    if _OTHER_FORMATS.fullmatch(out.suffix):
        raise HookloopError(
            f"--out: {out}: a zarr store is written, and {out.suffix} says another format; expected a name such as "
            f"{out.with_suffix('.zarr')}"
        )


def _units_unlike(coarse: Fields, trained: Trained) -> Iterator[str]:
    """Tell inputs whose units cannot be compared with those of the training, as far as the checkpoint has these.

    :raises HookloopError: where units differ, by more than how they are written: nothing is converted.
    """
    for name, before in trained.input_units.items():
        now = coarse.units.get(name, "")
        if before and now and compact_units(before) != compact_units(now):
            raise HookloopError(
                f"--data: {name} is in {now}, the model was trained with {before}; convert the data, or correct "
                "their units"
            )
        if bool(before) != bool(now):
            yield (
                f"units of {name} cannot be compared: {now or 'none'} in the data, {before or 'none'} in the "
                f"training; values are taken as they are"
            )


def _expect_trained_factor(
    region: Region, trained: Trained, checkpoint: Path, events: FilteringBoundLogger
) -> None:
    if trained.factor is None:
        events.warning(
            "checkpoint.without_facts",
            path=str(checkpoint),
            factor=region.factor,
            hint="written by an older hookloop: whether the model was trained with so many fine cells to a coarse one "
            "along each axis cannot be checked, and units are not known; compare both with the training data",
        )
    elif trained.factor != region.factor:
        raise HookloopError(
            f"{region.coarse.where}: {region.factor} fine cells to a coarse one along each axis; "
            f"the model was trained with {trained.factor}"
        )


def _known(coarse: Fields) -> dict[str, object]:
    """Tell these files from any others, and from what they were before a change; of URLs no secrets.

    :raises HookloopError: where they can no longer be looked at.
    """
    parts = [part for own in coarse.parts.values() for part in own]
    places = {part.path: _resolved(part.path) for part in parts}
    what: dict[str, Plain] = {
        name: [
            [places[part.path], part.name, {dim: int(at) for dim, at in part.fixed.items()}] for part in own
        ]
        for name, own in coarse.parts.items()
    }
    reached = {places[part.path]: part.storage_options for part in parts}
    try:
        key = statistics_cache.fingerprint(list(reached), {"members": coarse.members, "parts": what}, reached)
    except OSError as problem:
        raise HookloopError(f"--data: {without_secrets(str(problem))}; expected it to stay") from problem
    first, *more = reached
    return {
        "data": without_secrets(first) + (f" and {len(more)} more" if more else ""),
        "data_digest": f"{key[:16]}, of paths, sizes and times of change",
    }


def _resolved(path: str) -> str:
    return path if is_url(path) else str(Path(path).resolve())


def without_secrets(path: str) -> str:
    """Mask what of a URL may be one: who asks, with which password, and the query."""
    if not is_url(path):
        return path
    return re.sub(r"\?.*", "?***", re.sub(r"://[^/]*@", "://***@", path), flags=re.DOTALL)


def _made_with(
    request: Request, trained: Trained, others: Mapping[Path, str], precision: torch.dtype
) -> dict[str, object]:
    """Name what the fields are a function of, beside the times and the files they are read from.

    :param others: digests of the further networks: where these lie does not matter.
    """
    options = {name: value for name, value in options_of(trained.options).items() if name not in _LEARNT_FROM}
    sampler = trained.options.sampler
    steps = {
        name: value for name, value in options_of(sampler).items() if name != "compile"
    }  # the same steps
    networks = {
        "ensemble": [others[path] for path in sampler.ensemble],
        "experts": [[expert.sigma_min, others[expert.checkpoint]] for expert in sampler.experts],
    }
    return {
        "weights": digest(trained.model),
        "members": request.members,
        "seed": request.seed,
        "precision": "fp32" if precision == torch.float32 else "bf16",
        **dict(_flat({**options, "sampler": {**steps, **networks}})),
    }


def _flat(options: Mapping[str, object], within: str = "") -> Iterator[tuple[str, object]]:
    """Name each value by all that it lies in, so that it is told by itself where it differs."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def _contents(
    made_with: dict[str, object], request: Request, trained: Trained, region: Region, checkpoint: Path
) -> Contents:
    grid, coarse = trained.grid, region.coarse
    stamps = [_stamp(time) for time in coarse.times]
    times = {
        "times": f"{len(stamps)} from {stamps[0]} to {stamps[-1]}",
        "times_digest": hashlib.blake2b(" ".join(stamps).encode(), digest_size=8).hexdigest(),
    }
    return Contents(
        variables={name: trained.attributes.get(name, {}) for name in trained.options.model.outputs},
        times=coarse.times,
        members=request.members * coarse.members,
        latitude=grid.latitude,
        longitude=grid.longitude,
        gridded=grid.gridded,
        coarse_members=coarse.members,
        made_with={**made_with, **times},
        attributes={
            "Conventions": "CF-1.11",
            "title": "fields generated by a diffusion model from coarse ones",
            "source": f"hookloop {version('hookloop')}, {checkpoint.name} after {trained.step} batches, weights: "
            f"{trained.weights}; {region.factor} fine cells to a coarse one along each axis",
        },
    )


def _shard(contents: Contents, request: Request) -> tuple[int, int]:
    """Times and members of a shard: all members where they fit, and none of two members of the input."""
    size = 4 * contents.shape[2] * contents.shape[3]
    most = max(1, min(_SHARD_BYTES // size, _SHARD_BATCHES * request.batch))
    members = next(n for n in range(min(most, request.members), 0, -1) if request.members % n == 0)
    return min(max(1, most // members), len(contents.times)), members
