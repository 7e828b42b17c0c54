"""The options of the data. Nothing heavy is imported here, since listing plugins must not wait for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from attrs import Attribute, field, frozen
from attrs.validators import ge, min_len

from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hookloop.plugins.downscaling.normalize import Scale


@frozen
class SplitConfig:
    """One split: which files, which part of them, and how much at once."""

    coarse: list[str] = field(
        validator=min_len(1),
        metadata=doc("coarse netCDF files or zarr stores; times are joined, variables merged"),
    )
    fine: list[str] = field(
        validator=min_len(1),
        metadata=doc("fine netCDF files or zarr stores; times are joined, variables merged"),
    )
    time: tuple[str, str] | None = field(
        default=None,
        metadata=doc("first and last time, both included; '2019-03-22' is that whole day"),
    )
    lat: tuple[float, float] | None = field(
        default=None, metadata=doc("box around the centres of coarse cells, degrees north")
    )
    lon: tuple[float, float] | None = field(
        default=None,
        metadata=doc("box around the centres of coarse cells, degrees east, west end first"),
    )
    batch_size: int = field(default=32, validator=ge(1), metadata=doc("samples a batch"))
    cache: Literal["auto", "device", "ram"] = field(
        default="auto",
        metadata=doc(
            "where the split lives; auto: on the GPU where it takes less than a quarter of it", learned=False
        ),
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


@frozen
class NormalizationConfig:
    """Statistics given by hand, for every variable."""

    means: dict[str, float] = field(metadata=doc("mean of each variable, in its units"))
    stds: dict[str, float] = field(metadata=doc("standard deviation of each variable, in its units"))

    def scale(self, names: Sequence[str]) -> Scale:
        """Make the scale of the variables *names*; one that is missing is a ``HookloopError``."""
        from hookloop.plugins.downscaling.normalize import given

        return given(self, names)
