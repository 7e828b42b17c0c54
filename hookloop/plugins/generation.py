"""Inference while training: generate the evaluation cases and score the ensembles."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from attrs import Attribute, define, evolve, field, frozen
from attrs.validators import deep_mapping, ge, instance_of, lt, matches_re, optional

from hookloop.errors import Diverged, HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.scores.score import Naming, Score
from hookloop.settings import doc, epoch_slice, epochs_in
from hookloop.task import Generative, NamesVariables, WithoutBaseline
from hookloop.words import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hookloop.core import Run
    from hookloop.last_rows import LastRows
    from hookloop.scoring import Results, Scoring
    from hookloop.task import Paired

_AUTO_BATCH = 64
_DEFAULT = "validation"


def _is_ensemble(_instance: object, _attribute: Attribute[int], value: int) -> None:
    if value <= 1:
        raise ValueError(f"expected at least 2, found {value}: fair CRPS and spread need two")


def _is_batch(
    _instance: object, _attribute: Attribute[int | Literal["auto"]], value: int | Literal["auto"]
) -> None:
    if isinstance(value, int) and value <= 0:
        raise ValueError(f"expected auto or at least 1, found {value}")


def _default_scores() -> list[Score]:
    from hookloop.scores.consistency import CoarseConsistency
    from hookloop.scores.distribution import Quantiles
    from hookloop.scores.energy import EnergyScore
    from hookloop.scores.ensemble import EnsembleScore
    from hookloop.scores.maps import ErrorMaps
    from hookloop.scores.ranks import RankHistogram
    from hookloop.scores.spectra import Spectra

    return [
        EnsembleScore(),
        EnergyScore(),
        RankHistogram(),
        Quantiles(),
        Spectra(),
        CoarseConsistency(),
        ErrorMaps(),
    ]


@frozen
class InferenceSet:
    """Cases to generate and score beside others."""

    split: str | None = field(
        default=None, metadata=doc("the split they are of; the set's own name if not given")
    )
    weight: float = field(
        default=1.0,
        validator=[ge(0.0), lt(float("inf"))],
        metadata=doc("in inference/error; 0 for the log only"),
    )
    epochs: str | None = field(
        default=None,
        validator=optional(epoch_slice),
        metadata=doc("after which epochs; generation's own if not given"),
    )
    windows: int | None = field(
        default=None, validator=optional(ge(1)), metadata=doc("most cases; generation's own if not given")
    )
    members: int | None = field(
        default=None,
        validator=optional(_is_ensemble),
        metadata=doc("members of each ensemble; generation's own if not given"),
    )


@define(eq=False)
class Generation:
    """Generate ensembles for the evaluation cases, score them against the truth and draw them.

    Idle where the task cannot generate or has no split to generate for.
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
        metadata=doc("most cases to generate of a split; the task chooses which; null for all"),
    )
    max_batch: int | Literal["auto"] = field(
        default="auto", validator=_is_batch, metadata=doc(f"fields generated at once; auto is {_AUTO_BATCH}")
    )
    metrics: list[Score] = field(
        factory=_default_scores,
        metadata={
            **doc("what is scored: names, or names with options; see docs/scores.md"),
            "group": "hookloop.scores",
        },
    )
    error: str = field(
        default="crps_relative",
        metadata=doc(
            "the score that, averaged over variables, is inference/error: what is minimised; "
            "crps_relative needs a baseline of each"
        ),
    )
    weights: Literal["area", "equal"] = field(
        default="area",
        metadata=doc("of cells in scores: their areas, as the cosine of latitude, or equal"),
    )
    sets: dict[str, InferenceSet] = field(
        factory=dict,
        validator=deep_mapping(
            key_validator=[instance_of(str), matches_re(r"(?!(lead|figure|error)$)[A-Za-z0-9_-]+")]
        ),
        metadata=doc(f"named sets of cases, each scored by itself too; the split '{_DEFAULT}' if not given"),
    )
    figures: int = field(
        default=1,
        validator=ge(0),
        metadata=doc("of how many of the last cases to draw figures; those of scores are drawn regardless"),
    )

    def __attrs_post_init__(self) -> None:
        """Refuse what cannot be minimised, and scores that would overwrite one another."""
        everywhere = [score for score in self.metrics if not isinstance(score, Naming)]
        known = Counter(
            result
            for score in everywhere
            for result in {*score.smaller_is_better, *score.comparable, *score.headline}
        )
        if twice := [result for result, n in known.items() if n > 1]:
            raise ValueError(f"metrics: {', '.join(sorted(twice))} given by two of them, expected one each")
        if self.error not in self._minimised:
            raise ValueError(
                f"error: expected one of {', '.join(self._minimised) or 'a score in metrics'}; found "
                f"{self.error}{suggestion(self.error, self._minimised)}"
            )
        counted = {self._epochs_of(own) for own in self.sets.values() if own.weight}
        if len(counted) > 1:
            raise ValueError(
                f"sets: those with a weight are inferred after {' and '.join(sorted(counted))}, expected the same "
                "epochs: otherwise inference/error is not of the same cases each time"
            )
        if self.sets and not counted:
            raise ValueError("sets: every weight is 0, expected one above")

    def in_every_epoch(self) -> Generation:
        """The same, due whatever the epoch."""
        sets = {name: evolve(own, epochs=None) for name, own in self.sets.items()}
        return evolve(self, epochs="::1", sets=sets)

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Say so where there is nothing to do.

        :raises HookloopError: where a set's split does not exist, ``error`` is relative to a baseline that
            a variable does not have, or a score's options name a variable that there is not.
        """
        from hookloop.scoring import expect_variables

        task = self._task(run)
        if task is None:
            run.events.info("generation.idle", why="the task cannot generate, or has no validation split")
            return
        for name, own in self.sets.items():
            split = own.split or name
            if split not in task.data:
                raise HookloopError(
                    f"generation.sets.{name}: no split called {split}; expected one of "
                    f"{', '.join(task.data)}{suggestion(split, task.data)}"
                )
        if isinstance(task, WithoutBaseline):
            self._expect_baselines(task.without_baseline)
        if isinstance(task, NamesVariables):
            expect_variables(self.metrics, task.variables)
        validated = run.config.validated_epochs(run.task.data["train"].n_batches)
        for epochs in {self._epochs_of(own) for own in self._sets().values()}:
            if set(validated).isdisjoint(epochs_in(epochs, run.config.max_epochs)):
                run.events.warning(
                    "generation.never",
                    epochs=epochs,
                    hint=f"inference follows validation, in epochs {validated[:5]}: see run.validate_every",
                )

    @hookimpl
    def infer(self, run: Run) -> Mapping[str, float] | None:
        """``inference/error`` and ``inference/<score>/<variable>``; nothing in other epochs or when stopped.

        With named sets each has its own below ``inference/<set>/``; ``inference/error`` and the means over
        variables are weighted means over the sets.

        Several ranks generate windows, or members of one, each its own; rank 0 scores what all have counted, draws
        it and tells the others the numbers.

        :raises Diverged: where a generated field is not finite.
        :raises HookloopError: where there is no case, or the data make a score undefined.
        """
        task = self._task(run)
        if task is None:
            return None
        due = {name: own for name, own in self._sets().items() if self._is_due(run, own)}
        metrics: dict[str, float] = {}
        means: dict[str, dict[str, float]] = {}
        for name, own in due.items():
            prefix = f"{name}/" if self.sets else ""
            inferred = self._inferred(run, task, own.split or name, own, prefix)
            if inferred is None:
                return None
            found, means[name] = inferred
            metrics |= {f"inference/{prefix}{key}": value for key, value in {**found, **means[name]}.items()}
        over_sets = _weighted(means, {name: own.weight for name, own in due.items()})
        metrics |= {f"inference/{key}": value for key, value in over_sets.items()}
        return metrics or None

    @property
    def _minimised(self) -> list[str]:
        return [result for score in self.metrics for result in score.smaller_is_better]

    def _sets(self) -> Mapping[str, InferenceSet]:
        return self.sets or {_DEFAULT: InferenceSet()}

    def _task(self, run: Run) -> Generative | None:
        """The task, if there is anything to generate."""
        there = isinstance(run.task, Generative) and (self.sets or _DEFAULT in run.task.data)
        return run.task if there and isinstance(run.task, Generative) else None

    def _epochs_of(self, own: InferenceSet) -> str:
        return own.epochs or self.epochs

    def _is_due(self, run: Run, own: InferenceSet) -> bool:
        numbers = epochs_in(self._epochs_of(own), run.config.max_epochs)
        return run.progress.step == 0 or run.progress.epoch + 1 in numbers

    def _expect_baselines(self, lacking: Sequence[str]) -> None:
        if lacking and self.error == "crps_relative":
            raise HookloopError(
                f"generation.error: crps_relative, but there is no baseline of {', '.join(lacking)} to relate "
                "to; expected crps or rmse"
            )

    def _inferred(
        self, run: Run, task: Generative, split: str, own: InferenceSet, prefix: str
    ) -> tuple[dict[str, float], dict[str, float]] | None:
        """Generate, score and draw the cases of *split*; ``None`` when stopped.

        :returns: the scores of variables and their means over variables, the same on every rank: rank 0's.
        """
        import torch

        from hookloop.evaluation import evaluating
        from hookloop.scoring import Scoring

        scoring = Scoring(self.metrics, run.seed, self.weights)
        # Not inference_mode: what a model caches meanwhile must remain usable for training.
        with evaluating(task.model), torch.no_grad(), run.optimization.autocast():
            last = self._generate(run, task, split, own, scoring)
        if run.agree():
            return None
        scoring.collect(run.ranks)
        rows = last.collect(run.ranks)
        numbers = None
        if run.ranks.leads and last.latest is not None:
            results = scoring.results()
            _draw(run, prefix, rows, results, last.latest)
            numbers = results.metrics(), {**results.means, "error": self._error(results)}
        return run.ranks.broadcast(numbers)

    def _generate(
        self, run: Run, task: Generative, split: str, own: InferenceSet, scoring: Scoring
    ) -> LastRows:
        """Count everything; give the rows whose figures are wanted."""
        from hookloop.last_rows import LastRows
        from hookloop.looper import ensembles
        from hookloop.scoring import days_of

        last = LastRows(self.figures)
        for generated in ensembles(
            run,
            task,
            split,
            members=own.members or self.members,
            max_batch=_AUTO_BATCH if self.max_batch == "auto" else self.max_batch,
            limit=own.windows or self.windows,
        ):
            own_days = None if generated is None else (generated.number, days_of(generated.paired))
            for days in filter(None, run.ranks.gather(own_days)):
                scoring.know(*days)
            if generated is None:
                continue
            paired = generated.paired
            for name in paired.prediction:
                _expect_finite(name, paired)
            scoring.count(paired)
            last.add(generated)
        return last

    def _error(self, results: Results) -> float:
        from hookloop.scoring import mean

        found = results.numbers.get(self.error, {})
        if lacking := [name for name in results.tallies if name not in found]:
            others = [result for result in self._minimised if result != self.error]
            raise HookloopError(
                f"generation.error: {self.error} of {', '.join(lacking)} is undefined for these cases; expected "
                f"one that is defined, such as {' or '.join(others)}"
            )
        return mean(found)


def _draw(
    run: Run, prefix: str, rows: Sequence[tuple[Paired, int]], results: Results, latest: Paired
) -> None:
    """Draw the *rows* and what the scores have to show, on the grid of *latest*; note the units."""
    from hookloop.drawing import Drawing
    from hookloop.figure_files import keep_units

    drawing = Drawing(run, prefix)
    for paired, row in rows:
        drawing.case(paired, row)
    drawing.pictures(results, latest)
    keep_units(run, {name: latest.units[name] for name in latest.prediction if name in latest.units})


def _weighted(means: Mapping[str, Mapping[str, float]], weights: Mapping[str, float]) -> dict[str, float]:
    """Average over the sets with a weight what all of them have."""
    counted = [name for name in means if weights[name]]
    total = sum(weights[name] for name in counted)
    return {
        key: sum(weights[name] * means[name][key] for name in counted) / total
        for key in (means[counted[0]] if counted else ())
        if all(key in means[name] for name in counted)
    }


def _expect_finite(name: str, paired: Paired) -> None:
    looked_at: dict[str, Tensor | None] = {
        "truth": paired.target[name],
        "baseline": paired.baseline.get(name),
        "generated field": paired.prediction[name],
    }
    for what, values in looked_at.items():
        if values is None or bool(values.isfinite().all()):
            continue
        cases = [paired.name_of(row) for row, value in enumerate(values) if not value.isfinite().all()]
        share = 100 * float((~values.isfinite()).float().mean())
        found = f"generation: {name} of {', '.join(cases)}: {share:.2g}% of the {what} is not finite"
        if what == "generated field":
            raise Diverged(f"{found}, expected all; lower optimization.lr or set optimization.clip_norm")
        raise HookloopError(f"{found}, expected all; mend the validation data")
