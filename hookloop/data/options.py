"""The options that plugins with data share. Nothing heavy is imported here: listing plugins must not wait for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from attrs import NOTHING, Attribute, field, frozen
from attrs.validators import optional

from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hookloop.data.normalize import Scale


Feature = Literal["hour", "season", "latitude", "longitude"]
"""What a network may be told of place and time."""

DURATION = r"(?=[0-9])([0-9]{1,6}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?"
_MINUTES = {"d": 1440, "h": 60, "m": 1}


def is_duration(_instance: object, _attribute: Attribute[str], value: str) -> None:
    """Refuse what is no duration, such as 6h or 1d12h."""
    if not re.fullmatch(DURATION, value):
        raise ValueError(f"expected a duration such as 6h, 7d or 1d12h, found {value!r}")


def minutes(duration: str) -> int:
    """Minutes in a duration such as 1d12h."""
    return sum(int(n) * _MINUTES[unit] for n, unit in re.findall(r"(\d+)([dhm])", duration))


def is_count(
    _instance: object, _attribute: Attribute[int | Literal["auto"]], value: int | Literal["auto"]
) -> None:
    """Refuse negative numbers of processes."""
    if isinstance(value, int) and value < 0:
        raise ValueError(f"expected auto, 0 or more, found {value}")


@frozen
class SourceConfig:
    """Files or stores of one kind, where their path alone does not say enough."""

    path: str = field(
        metadata=doc("file, store, pattern such as era5/*.nc, or URL such as s3://bucket/x.zarr")
    )
    rename: dict[str, str] = field(
        factory=dict,
        metadata=doc("the model's name: the file's name, with @level for one level, such as u850: u@850"),
    )
    ensemble: str | None = field(
        default=None,
        metadata=doc("dimension of ensemble members, of coarse fields; each is a case of its own"),
    )
    storage_options: dict[str, str | int | bool] = field(
        factory=dict,
        metadata=doc("how to reach a URL, as fsspec takes it, such as anon: true", learned=False),
    )


@frozen
class RepeatConfig:
    """Blocks of time that come again and again, counted from the first time of the split's range."""

    every: str = field(validator=is_duration, metadata=doc("from one block to the next", example="7d"))
    take: str = field(validator=is_duration, metadata=doc("how long a block is", example="6d"))
    start: str = field(
        default="0d",
        validator=is_duration,
        metadata=doc("where the first block begins, from the first time of the range", example="6d"),
    )

    def __attrs_post_init__(self) -> None:
        """Refuse blocks that overlap."""
        if not 0 < minutes(self.take) <= minutes(self.every):
            raise ValueError(
                f"takes {self.take} of every {self.every}; expected that much at most, and more than nothing"
            )


def required_first(_class: type, options: list[Attribute[object]]) -> list[Attribute[object]]:
    """Put what must be given before what may be, also before what is inherited (a ``field_transformer`` of attrs)."""
    return sorted(options, key=lambda option: option.default is not NOTHING)


@frozen(kw_only=True)
class SplitOptions:
    """Which times of its files a split uses, and how they are served."""

    time: tuple[str, str] | list[tuple[str, str]] | None = field(
        default=None,
        metadata=doc(
            "first and last time, both included, or several such pairs; '2019-03-22' is that whole day",
            example="['2019-03-01', '2019-03-22']",
        ),
    )
    every: str | None = field(
        default=None,
        validator=optional(is_duration),
        metadata=doc("one time in so long, counted from the first of the range", example="6h"),
    )
    repeat: RepeatConfig | None = field(
        default=None, metadata=doc("blocks of time within the range, such as 6 days of every 7")
    )
    cache: Literal["auto", "device", "ram", "none"] = field(
        default="auto",
        metadata=doc(
            "where the split lives, whole for each rank; auto: the GPU or RAM where it takes less than a quarter "
            "of it, else none",
            learned=False,
        ),
    )
    workers: int | Literal["auto"] = field(
        default="auto",
        validator=is_count,
        metadata=doc("processes of each rank that read what is not cached; 0: its own reads", learned=False),
    )


def are_split_names(
    _instance: object, _attribute: Attribute[dict[str, object]], value: Iterable[str]
) -> None:
    """Refuse names of splits that could not stand in the key of a metric, or that mean something else."""
    for name in value:
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name in ("train", "validation", "loss"):
            raise ValueError(
                "expected names such as alps, of letters, digits and _, but not train, validation or loss; "
                f"found {name!r}"
            )


@frozen
class StaticConfig:
    """One static field on the fine grid."""

    path: str = field(metadata=doc("netCDF file or zarr store"))
    variable: str = field(metadata=doc("variable of that file, by latitude and longitude"))


@frozen
class NormalizationConfig:
    """Statistics given by hand, for every input."""

    means: dict[str, float] = field(metadata=doc("mean of each input, transformed if it has a transform"))
    stds: dict[str, float] = field(
        metadata=doc("standard deviation of each input, transformed if it has a transform")
    )

    def scale(self, names: Sequence[str]) -> Scale:
        """Make the scale of the variables *names*; one that is missing is a ``HookloopError``."""
        from hookloop.data.normalize import given

        return given(self, names)
