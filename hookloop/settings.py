"""The ``run:`` section: the only part of a configuration that the core reads."""

from __future__ import annotations

import re
from pathlib import Path  # noqa: TC003 - read when options are structured

from attrs import Attribute, field, frozen
from attrs.validators import ge, matches_re, optional

_DURATION = r"(?=[0-9])([0-9]{1,9}d)?([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?"
_INT = "-?[0-9]{1,18}"
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def doc(text: str, *, learned: bool | None = None, example: str | None = None) -> dict[str, object]:
    """Describe an option, for ``hookloop plugins`` and the schema.

    :param learned: changing it changes what is learnt or in which order, so a resumed run refuses it.
        Options within an option are what it is, unless they say otherwise.
    :param example: a value as it is written in a configuration, for whoever wrote another type.
    """
    return {"help": text, "learned": learned, "example": example}


def _duration(_instance: object, _attribute: Attribute[str | None], value: str | None) -> None:
    if value is not None and not re.fullmatch(_DURATION, value):
        raise ValueError(f"expected a duration such as 3h50m, 45m or 90s, found {value!r}")


def _interval(_instance: object, _attribute: Attribute[str], value: str) -> None:
    if not re.fullmatch(r"[1-9][0-9]{0,17} (epochs?|batch(es)?)", value):
        raise ValueError(
            f"expected an interval such as '1 epoch', '5 epochs' or '500 batches', found {value!r}"
        )


@frozen
class RunConfig:
    """What the core itself needs to know."""

    dir: Path = field(metadata=doc("where the run writes; the same command resumes from there"))
    max_epochs: int = field(default=1, validator=ge(1), metadata=doc("epochs in all"))
    seed: int = field(default=0, metadata=doc("all randomness is a function of it", learned=True))
    device: str = field(
        default="auto",
        validator=matches_re(r"auto|cpu|mps|cuda(:[0-9]{1,4})?"),
        metadata=doc("auto, cpu, mps, cuda or cuda:N; auto is the first GPU if there is one"),
    )
    segment_epochs: int | None = field(
        default=None,
        validator=optional(ge(1)),
        metadata=doc("stop, as a success, after this many epochs in one go"),
    )
    validate_every: str = field(
        default="1 epoch",
        validator=_interval,
        metadata=doc(
            "how often to validate and infer, such as '5 epochs' or '500 batches'; also after the last epoch",
            example="'5 epochs'",
        ),
    )
    evaluate_before_training: bool = field(
        default=False, metadata=doc("validate and infer once at step 0, for the log only")
    )
    time_limit: str | None = field(
        default=None,
        validator=_duration,
        metadata=doc("stop, resumable, with exit code 75, after e.g. 3h50m", example="3h50m"),
    )
    allow_changes: list[str] = field(
        factory=list,
        metadata=doc(
            "options that may differ from the checkpoint's, such as optimization.lr",
            example="[optimization.lr]",
        ),
    )

    @property
    def validation_batches(self) -> int | None:
        """How many batches lie between validations; ``None`` where epochs are counted."""
        number, unit = self.validate_every.split()
        return int(number) if unit.startswith("batch") else None

    def evaluates_after(self, epoch: int, step: int) -> bool:
        """Whether to validate and infer after the *epoch*-th epoch, which ends with batch number *step*."""
        every = int(self.validate_every.split()[0])
        count = step if self.validation_batches else epoch
        return count % every == 0 or epoch == self.max_epochs

    def validated_epochs(self, n_batches: int) -> list[int]:
        """The epochs in or after which to validate and infer, of so many batches each."""
        every = self.validation_batches or n_batches * int(self.validate_every.split()[0])
        last = self.max_epochs
        return [
            n
            for n in range(1, last + 1)
            if n == last or n * n_batches // every > (n - 1) * n_batches // every
        ]

    @property
    def time_limit_seconds(self) -> float | None:
        """The time limit in seconds."""
        if self.time_limit is None:
            return None
        return sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([dhms])", self.time_limit))


def epoch_slice(_instance: object, _attribute: Attribute[str], value: str) -> None:
    """Validate a slice of epochs written as text, such as ``::5``, ``-2:`` or ``1::2``."""
    if not re.fullmatch(rf"({_INT})?:({_INT})?(:(?!-?0+$)({_INT})?)?", value):
        raise ValueError(f"expected a slice of epochs such as '::5' or '-2:', found {value!r}")


def epochs_in(text: str | None, max_epochs: int) -> range:
    """The epochs in a Python slice over ``range(max_epochs + 1)``, written as text; none for ``None``.

    Epochs are counted from 1, so 0 never occurs, and ``-1:`` is the last one.
    """
    if text is None:
        return range(0)
    parts = [int(part) if part else None for part in text.split(":")]
    return range(max_epochs + 1)[slice(*parts)]
