"""Inference while training: generate the validation cases and score the ensembles."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from attrs import Attribute, define, field
from attrs.validators import ge, in_, optional

from hookloop.durable import write_whole
from hookloop.errors import Diverged, HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.settings import doc, epoch_slice, epochs_in
from hookloop.task import Generative, WithoutBaseline

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from hookloop.core import Run
    from hookloop.scores.ensemble import EnsembleScores
    from hookloop.task import Paired

_AUTO_BATCH = 64
_SCORES = ("crps", "crps_relative", "rmse", "spread_skill", "mae_baseline", "rmse_baseline")


def _is_ensemble(_instance: object, _attribute: Attribute[int], value: int) -> None:
    if value <= 1:
        raise ValueError(f"expected at least 2, found {value}: fair CRPS and spread need two")


def _is_batch(
    _instance: object, _attribute: Attribute[int | Literal["auto"]], value: int | Literal["auto"]
) -> None:
    if isinstance(value, int) and value <= 0:
        raise ValueError(f"expected auto or at least 1, found {value}")


@define(eq=False)
class Generation:
    """Generate ensembles for the validation cases, score them against the truth and draw the last ones.

    Idle where the task cannot generate or has no validation split.
    """

    epochs: str = field(
        default="::1",
        validator=epoch_slice,
        metadata=doc(
            "after which epochs, as a Python slice: '::5' every fifth, '-1:' the last; step 0 always"
        ),
    )
    members: int = field(default=8, validator=_is_ensemble, metadata=doc("members of each ensemble"))
    windows: int | None = field(
        default=None,
        validator=optional(ge(1)),
        metadata=doc("most cases to generate, spread over the validation split; null for all"),
    )
    max_batch: int | Literal["auto"] = field(
        default="auto", validator=_is_batch, metadata=doc(f"fields generated at once; auto is {_AUTO_BATCH}")
    )
    error: Literal["crps", "crps_relative", "rmse"] = field(
        default="crps_relative",
        validator=in_(("crps", "crps_relative", "rmse")),
        metadata=doc(
            "the score that, averaged over variables, is inference/error: what is minimised; "
            "crps_relative needs a baseline of each"
        ),
    )
    figures: int = field(
        default=1, validator=ge(0), metadata=doc("of how many of the last cases to draw figures")
    )

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Say so where there is nothing to do.

        :raises HookloopError: where ``error`` is relative to a baseline that a variable does not have.
        """
        task = _generative(run)
        if task is None:
            run.events.info("generation.idle", why="the task cannot generate, or has no validation split")
            return
        if isinstance(task, WithoutBaseline):
            self._expect_baselines(task.without_baseline)
        validated = run.config.validated_epochs(run.task.data["train"].n_batches)
        if set(validated).isdisjoint(epochs_in(self.epochs, run.config.max_epochs)):
            run.events.warning(
                "generation.never",
                epochs=self.epochs,
                hint=f"inference follows validation, in epochs {validated[:5]}: see run.validate_every",
            )

    @hookimpl
    def infer(self, run: Run) -> Mapping[str, float] | None:
        """``inference/error`` and ``inference/<score>/<variable>``; nothing in other epochs or when stopped.

        :raises Diverged: where a generated field is not finite.
        :raises HookloopError: where there is no case, or the data make a score undefined.
        """
        task = _generative(run)
        if task is None or not self._is_due(run):
            return None
        import torch

        from hookloop.evaluation import evaluating

        # Not inference_mode: what a model caches meanwhile must remain usable for training.
        with evaluating(task.model), torch.no_grad(), run.optimization.autocast():
            scores, last = self._generate(run, task)
        if run.stopping:
            return None
        metrics = self._metrics(scores)
        for paired, i, case in last:
            _draw(run, paired, i, case)
        return metrics

    def _expect_baselines(self, lacking: Sequence[str]) -> None:
        if lacking and self.error == "crps_relative":
            raise HookloopError(
                f"generation.error: crps_relative, but there is no baseline of {', '.join(lacking)} to relate "
                "to; expected crps or rmse"
            )

    def _is_due(self, run: Run) -> bool:
        numbers = epochs_in(self.epochs, run.config.max_epochs)
        return run.progress.step == 0 or run.progress.epoch + 1 in numbers

    def _generate(
        self, run: Run, task: Generative
    ) -> tuple[dict[str, EnsembleScores], Iterable[tuple[Paired, int, int]]]:
        """Scores by variable, and the last cases: where they lie in what was generated, and their numbers."""
        from hookloop.looper import ensembles
        from hookloop.scores.ensemble import EnsembleScores

        scores: defaultdict[str, EnsembleScores] = defaultdict(EnsembleScores)
        last: deque[tuple[Paired, int, int]] = deque(maxlen=self.figures)
        max_batch = _AUTO_BATCH if self.max_batch == "auto" else self.max_batch
        for window, paired in ensembles(
            run, task, members=self.members, max_batch=max_batch, limit=self.windows
        ):
            for name, prediction in paired.prediction.items():
                target, baseline = paired.target[name], paired.baseline.get(name)
                _expect_finite(name, paired, prediction=prediction, target=target, baseline=baseline)
                scores[name].update(prediction, target, baseline)
            last.extend((paired, i, case) for i, case in enumerate(window.cases))
        return scores, last

    def _metrics(self, scores: Mapping[str, EnsembleScores]) -> dict[str, float]:
        if not scores:
            raise HookloopError("generation: found no case in the validation split, expected at least one")
        results = {name: _result(name, summed) for name, summed in scores.items()}
        self._expect_baselines([name for name, result in results.items() if self.error not in result])
        metrics = {
            f"inference/{score}/{name}": result[score]
            for name, result in results.items()
            for score in _SCORES
            if score in result
        }
        metrics["inference/error"] = fmean(result[self.error] for result in results.values())
        return metrics


def _generative(run: Run) -> Generative | None:
    return run.task if isinstance(run.task, Generative) and "validation" in run.task.data else None


def _expect_finite(
    name: str, paired: Paired, *, prediction: Tensor, target: Tensor, baseline: Tensor | None
) -> None:
    for what, values in (("truth", target), ("baseline", baseline), ("generated field", prediction)):
        if values is None or bool(values.isfinite().all()):
            continue
        cases = [
            label for label, value in zip(paired.labels, values, strict=True) if not value.isfinite().all()
        ]
        share = 100 * float((~values.isfinite()).float().mean())
        found = f"generation: {name} of {', '.join(cases)}: {share:.2g}% of the {what} is not finite"
        if what == "generated field":
            raise Diverged(f"{found}, expected all; lower optimization.lr or set optimization.clip_norm")
        raise HookloopError(f"{found}, expected all; mend the validation data")


def _result(name: str, summed: EnsembleScores) -> dict[str, float]:
    try:
        return summed.result()
    except ValueError as error:
        raise HookloopError(f"generation: {name}: {error}") from error


def _draw(run: Run, paired: Paired, i: int, case: int) -> None:
    """Draw every variable of the *i*-th case of *paired*, into ``figures/`` and for whoever logs figures."""
    import numpy as np

    from hookloop.figures import Case, ensemble_figure

    when = f"epoch {run.progress.epoch + 1}" if run.progress.step else "before training"
    for name, prediction in paired.prediction.items():
        given = paired.coarse.get(name, paired.baseline.get(name))
        figure = ensemble_figure(
            Case(
                title=", ".join(part for part in (name, paired.labels[i], paired.lead_time, when) if part),
                units=paired.units.get(name, ""),
                given_as="coarse input" if name in paired.coarse else "baseline",
                given=None if given is None else given[i].float().numpy(force=True),
                truth=paired.target[name][i].float().numpy(force=True),
                members=prediction[i].float().numpy(force=True),
                latitude=np.asarray(paired.latitude),
                longitude=np.asarray(paired.longitude),
            )
        )
        stem = re.sub(r"[^\w.-]", "_", name)
        path = run.dir / "figures" / f"{stem}_{case:04d}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, partial(figure.savefig, format="png", bbox_inches="tight"))
        except OSError as error:  # a full disk costs a picture, not the run
            run.events.warning("figure.unwritten", path=str(path), error=str(error))
        run.log({f"inference/figure/{name}/{case}": figure})
        figure.clear()
