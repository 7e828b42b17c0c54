"""The loss on data that is not learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field
from attrs.validators import and_, deep_mapping, ge, instance_of, lt

from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.settings import doc
from hookloop.task import NoiseLevels
from hookloop.words import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from hookloop.core import Run
    from hookloop.noise_levels import LossByNoise

_BY_NOISE = "val/loss_by_noise/"


@define(eq=False)
class Validation:
    """Report the losses on every split but ``train``, with the same noise in every epoch.

    With a single one, called ``validation``, they are ``val/loss`` and ``val/loss/<variable>``. With more,
    those are weighted means over the splits, whose own are ``val/<split>/loss`` and so on.

    Where the task learns to remove noise, the loss by noise level is measured on some batches of ``validation``:
    ``val/loss_by_noise/<bin>_sigma_<median σ>`` for bins that are equally probable in training, and a figure.
    """

    weights: dict[str, float] = field(
        factory=dict,
        validator=deep_mapping(
            key_validator=instance_of(str), value_validator=and_(ge(0.0), lt(float("inf")))
        ),
        metadata=doc(
            "weights of the splits in val/loss, by name; 1 where not given, 0 for the log only", learned=True
        ),
    )
    noise_levels: int = field(
        default=10,
        validator=ge(0),
        metadata=doc("bins of noise, equally probable in training, to tell the loss of; 0 for none"),
    )
    noise_batches: int = field(
        default=8,
        validator=ge(1),
        metadata=doc("most batches of the split validation to measure that on, spread over it"),
    )
    _measured: LossByNoise | None = field(default=None, init=False)
    """What is to be drawn once it is logged; a trial of another plugin is not."""

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Check the weights against the splits there are.

        :raises HookloopError: where one is of no split, or none is above 0.
        """
        splits = _splits(run)
        there = f"there are {', '.join(splits) or 'none'}"
        if unknown := [split for split in self.weights if split not in splits]:
            raise HookloopError(
                f"validation.weights: {', '.join(unknown)}: no split to validate on; {there}"
                f"{suggestion(unknown[0], splits)}"
            )
        if splits and not any(self._weight(split) for split in splits):
            raise HookloopError(f"validation.weights: every weight is 0, expected one above; {there}")

    def _weight(self, split: str) -> float:
        return self.weights.get(split, 1.0)

    @hookimpl
    def validate(self, run: Run) -> Mapping[str, float] | None:
        """``val/loss`` and the others; nothing where the task has no split for it, or when stopped."""
        from hookloop.evaluation import mean_losses

        losses: dict[str, Mapping[str, float]] = {}
        for split in _splits(run):
            found = mean_losses(run, split)
            if found is None:
                return None
            losses[split] = found
        if not losses:
            return None
        mean = weighted_mean(losses, {split: self._weight(split) for split in losses})
        each = {f"{split}/{name}": value for split, found in losses.items() for name, value in found.items()}
        every = mean if list(losses) == ["validation"] else {**mean, **each}
        by_noise = self._by_noise(run)
        if run.stopping:
            return None
        return {**{f"val/{name}": value for name, value in every.items()}, **by_noise}

    def _by_noise(self, run: Run) -> dict[str, float]:
        task = run.task
        if not self.noise_levels or "validation" not in task.data or not isinstance(task, NoiseLevels):
            return {}
        from hookloop.noise_levels import loss_by_noise

        self._measured = loss_by_noise(run, task, "validation", self.noise_levels, self.noise_batches)
        found = self._measured.metrics() if self._measured else {}
        return {f"{_BY_NOISE}{name}": value for name, value in found.items()}

    @hookimpl
    def log(self, run: Run, metrics: Mapping[str, float | Figure]) -> None:
        """Draw the loss by noise level when it is logged, into ``figures/`` and for whoever logs figures."""
        if self._measured is None or not any(key.startswith(_BY_NOISE) for key in metrics):
            return
        from hookloop.charts import chart_figure
        from hookloop.figure_files import keep

        measured, self._measured = self._measured, None
        if not run.ranks.leads:  # which writes files, and is who figures are logged by
            return
        at = run.progress
        when = f"epoch {at.epoch + (at.batch > 0)}" if at.step else "before training"
        figure = chart_figure(measured.chart(), f"Loss by noise level, {when}", "")
        keep(run, figure, "loss_by_noise", "val/figure/loss_by_noise")


def _splits(run: Run) -> list[str]:
    return [split for split in run.task.data if split != "train"]


def weighted_mean(
    losses: Mapping[str, Mapping[str, float]], weights: Mapping[str, float]
) -> dict[str, float]:
    """Σ w·loss / Σ w over the splits with a weight above 0, for each loss that all of them have.

    :param losses: by split, then by name.
    :param weights: by split, not negative, one of them above 0.
    """
    counted = [split for split, weight in weights.items() if weight]
    total = sum(weights[split] for split in counted)
    return {
        name: sum(weights[split] * losses[split][name] for split in counted) / total
        for name in losses[counted[0]]
        if all(name in losses[split] for split in counted)
    }
