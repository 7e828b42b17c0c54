"""The options of the data. Nothing heavy is imported here, since listing plugins must not wait for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from attrs import Attribute, field, frozen
from attrs.validators import and_, ge, gt, lt, min_len, optional

from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hookloop.plugins.downscaling.normalize import Scale


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


@frozen
class SplitConfig:
    """One split: which files, which part of them, and how much at once."""

    coarse: list[str | SourceConfig] = field(
        validator=min_len(1),
        metadata=doc("coarse files, stores, patterns or URLs; times are joined, variables merged"),
    )
    fine: list[str | SourceConfig] = field(
        validator=min_len(1),
        metadata=doc("fine files, stores, patterns or URLs; times are joined, variables merged"),
    )
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
    lat: tuple[float, float] | None = field(
        default=None, metadata=doc("box around the centres of coarse cells, degrees north")
    )
    lon: tuple[float, float] | None = field(
        default=None,
        metadata=doc("box around the centres of coarse cells, degrees east, west end first"),
    )
    batch_size: int = field(default=32, validator=ge(1), metadata=doc("samples a batch"))
    cache: Literal["auto", "device", "ram", "none"] = field(
        default="auto",
        metadata=doc(
            "where the split lives; auto: the GPU or RAM where it takes less than a quarter of it, else none",
            learned=False,
        ),
    )
    workers: int | Literal["auto"] = field(
        default="auto",
        validator=is_count,
        metadata=doc("processes that read what is not cached; 0 reads in the run's own", learned=False),
    )


def are_split_names(
    _instance: object, _attribute: Attribute[dict[str, SplitConfig]], value: Iterable[str]
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


def _positive(
    _instance: object, _attribute: Attribute[tuple[int, int] | None], value: tuple[int, int] | None
) -> None:
    if value is not None and min(value) < 1:
        raise ValueError(f"expected at least one cell each way, found {value}")


def _not_negative(_instance: object, _attribute: Attribute[tuple[int, int]], value: tuple[int, int]) -> None:
    if min(value) < 0:
        raise ValueError(f"expected 0 or more coarse cells each way, found {value}")


@frozen
class RegionConfig:
    """A box in which patches are drawn more, or less, often."""

    lat: tuple[float, float] = field(metadata=doc("box around the centre of a patch, degrees north"))
    lon: tuple[float, float] = field(metadata=doc("box around it, degrees east, west end first"))
    weight: float = field(
        validator=[gt(0.0), lt(float("inf"))], metadata=doc("how often, relative to places outside all boxes")
    )


@frozen
class PatchConfig:
    """Which parts of the fields a sample is."""

    coarse: tuple[int, int] | None = field(
        default=None,
        validator=_positive,
        metadata=doc("coarse cells of a patch in latitude and longitude; the whole field if unset"),
    )
    per_sample: int = field(default=1, validator=ge(1), metadata=doc("patches of each time in an epoch"))
    random_offset: bool = field(
        default=True,
        metadata=doc("patches lie anywhere; otherwise they tile the field, in turn"),
    )
    overlap: tuple[int, int] = field(
        default=(0, 0),
        validator=_not_negative,
        metadata=doc("least coarse cells that neighbouring tiles share, in latitude and longitude"),
    )
    region: RegionConfig | list[RegionConfig] | None = field(
        default=None,
        metadata=doc("boxes in which random patches are drawn more often; the first that holds counts"),
    )
    shuffle: int = field(
        default=64,
        validator=ge(1),
        metadata=doc(
            "reads whose patches are shuffled among one another; those of a read lie that close together"
        ),
    )
    together: int = field(
        default=1,
        validator=ge(1),
        metadata=doc("neighbouring times of a read; take what a chunk of the files holds"),
    )

    def __attrs_post_init__(self) -> None:
        """Refuse what would have no effect."""
        if self.region and not self.random_offset:
            raise ValueError("region: tiles are not drawn; expected it only where random_offset is true")
        if self.overlap != (0, 0) and self.random_offset:
            raise ValueError(
                "overlap: patches at random do not tile; expected it only with random_offset: false"
            )


@frozen
class TransformConfig:
    """What is done to a variable before it is normalised, and undone after fields are generated."""

    name: Literal["log1p", "sqrt", "quantile"] = field(
        metadata=doc(
            "log1p: sign(x)·ln(1 + |x|/scale); sqrt: sign(x)·√|x|; quantile: to a normal distribution"
        )
    )
    scale: float = field(
        default=1.0, validator=[gt(1e-30), lt(1e30)], metadata=doc("of log1p, in units of the variable")
    )
    minimum: float | None = field(
        default=None,
        validator=optional(and_(gt(-1e30), lt(1e30))),
        metadata=doc("least value that is generated, such as 0 for precipitation", learned=False),
    )


@frozen
class NormalizationConfig:
    """Statistics given by hand, for every input."""

    means: dict[str, float] = field(metadata=doc("mean of each input, transformed if it has a transform"))
    stds: dict[str, float] = field(
        metadata=doc("standard deviation of each input, transformed if it has a transform")
    )

    def scale(self, names: Sequence[str]) -> Scale:
        """Make the scale of the variables *names*; one that is missing is a ``HookloopError``."""
        from hookloop.plugins.downscaling.normalize import given

        return given(self, names)
