"""The loss by noise level: at which noise a denoiser is good, and at which it has more to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import frozen

from hookloop.evaluation import evaluating
from hookloop.scores.score import Chart
from hookloop.seeding import seed_torch
from hookloop.task import shared

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hookloop.core import Run
    from hookloop.task import NoiseLevels

_INSIDE = 1e-9
"""Quantiles stay so far from 0 and 1, where there may be no noise or infinitely much."""


@frozen(eq=False)
class LossByNoise:
    """Mean losses of bins that are equally probable in training, by ascending noise."""

    numbers: Sequence[int]
    """Of the bins that samples fell into, from 1 on."""
    bins: int
    """How many there are."""
    sigma: Sequence[float]
    """The median noise level of each of those bins."""
    losses: Mapping[str, Sequence[float]]
    """By name, one of each of those bins."""

    def metrics(self) -> dict[str, float]:
        """Give the loss by number and median noise of the bin, such as ``03_sigma_0.134``: this sorts."""
        digits = len(str(self.bins))
        return {
            f"{number:0{digits}d}_sigma_{sigma:.3g}": loss
            for number, sigma, loss in zip(self.numbers, self.sigma, self.losses["loss"], strict=True)
        }

    def chart(self) -> Chart:
        """Draw the loss, and those of the variables where there are several."""
        several = len(self.losses) > 1 + 1
        lines = {
            name.removeprefix("loss/"): values
            for name, values in self.losses.items()
            if several or name == "loss"
        }
        return Chart(
            name="loss_by_noise",
            title="Loss by noise level",
            x=self.sigma,
            lines=lines,
            xlabel="noise level σ",
            ylabel="denoising loss",
            xscale="log",
            notes=[f"{self.bins} bins, equally probable in training, at their medians"],
        )


def stratified(size: int, offset: int, bins: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw quantiles of equally probable *bins*, as many of each as possible, in random order.

    :param size: samples, of which *offset* others were drawn before.
    :returns: the bin of each sample, ``[size]`` int64, and its quantile, ``[size]`` float64, uniform within.
    """
    strata = (offset + torch.arange(size)) % bins
    # At random, since bins in turn would always meet the same hours of the day.
    strata = strata[torch.randperm(size, generator=generator)]
    within = torch.rand(size, generator=generator, dtype=torch.float64)
    return strata, ((strata + within) / bins).clamp(_INSIDE, 1 - _INSIDE)


@torch.no_grad()
def loss_by_noise(run: Run, task: NoiseLevels, split: str, bins: int, batches: int) -> LossByNoise | None:
    """Measure it on *split*, with the same noise at every call; ``None`` if all ranks are to stop meanwhile.

    Several ranks share each batch, and have the same answer, which is that of one but for rounding.

    :param batches: look at no more than this many, spread evenly over the split.
    """
    share = run.ranks.share
    data = shared(task.data, share)[split]
    looked_at = min(batches, data.n_batches)
    counts = torch.zeros(bins, dtype=torch.float64)
    sums: dict[str, Tensor] = {}
    samples = 0
    with evaluating(task.model):
        for i in range(looked_at):
            if run.agree():
                return None
            number = i * data.n_batches // looked_at
            size = min(data.batch_size, data.n_samples - number * data.batch_size)
            generator = torch.Generator().manual_seed(run.seed("noise_levels", i))
            strata, quantiles = stratified(size, samples, bins, generator)
            seed_torch(run.seed("noise_levels/noise", i), run.device)
            for batch in data.batches(0, number, number + 1):
                with run.optimization.autocast():
                    losses = task.loss_at(batch, quantiles)
                among = torch.nn.functional.one_hot(strata[list(share.rows(size))], bins).T.double()
                among *= share.weight(size) > 0  # else the row is not its own
                for name, loss in losses.items():
                    own = among @ loss.cpu().double()
                    sums[name] = sums[name] + own if name in sums else own
                counts += among.sum(1)
            samples += size
    return _means(task, *_added(run.ranks.gather((counts, sums))))


def _added(parts: Sequence[tuple[Tensor, Mapping[str, Tensor]]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Add up the counts and sums of all ranks."""
    counts = torch.stack([own for own, _ in parts]).sum(0)
    return counts, {name: torch.stack([own[name] for _, own in parts]).sum(0) for name in parts[0][1]}


def _means(task: NoiseLevels, counts: Tensor, sums: Mapping[str, Tensor]) -> LossByNoise:
    bins = len(counts)
    met = counts.nonzero().flatten()
    medians = task.noise_levels((met.double() + 0.5) / bins)
    return LossByNoise(
        numbers=[number + 1 for number in met.tolist()],
        bins=bins,
        sigma=medians.tolist(),
        losses={name: (total[met] / counts[met]).tolist() for name, total in sums.items()},
    )
