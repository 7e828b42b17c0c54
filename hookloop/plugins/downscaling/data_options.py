"""The options of the data. Nothing heavy is imported here, since listing plugins must not wait for it."""

from __future__ import annotations

from typing import Literal

from attrs import Attribute, field, frozen
from attrs.validators import and_, ge, gt, lt, min_len, optional

from hookloop.data.options import SourceConfig, SplitOptions, required_first
from hookloop.settings import doc


@frozen(field_transformer=required_first)
class SplitConfig(SplitOptions):
    """One split: which files, which part of them, and how much at once."""

    coarse: list[str | SourceConfig] = field(
        validator=min_len(1),
        metadata=doc("coarse files, stores, patterns or URLs; times are joined, variables merged"),
    )
    fine: list[str | SourceConfig] = field(
        validator=min_len(1),
        metadata=doc("fine files, stores, patterns or URLs; times are joined, variables merged"),
    )
    lat: tuple[float, float] | None = field(
        default=None, metadata=doc("box around the centres of coarse cells, degrees north")
    )
    lon: tuple[float, float] | None = field(
        default=None,
        metadata=doc("box around the centres of coarse cells, degrees east, west end first"),
    )
    batch_size: int = field(default=32, validator=ge(1), metadata=doc("samples a batch"))


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
    dry_below: float | None = field(
        default=None,
        validator=optional(and_(gt(-1e30), lt(1e30))),
        metadata=doc(
            "what is generated below it is the minimum: where drizzle ends and dry begins", learned=False
        ),
    )

    def __attrs_post_init__(self) -> None:
        """Refuse a threshold that changes nothing, or does not say what to."""
        if self.dry_below is not None and (self.minimum is None or self.dry_below <= self.minimum):
            raise ValueError(
                f"dry_below: expected more than minimum, which is what dry values become; found {self.dry_below} "
                f"and {'no minimum' if self.minimum is None else self.minimum}"
            )
