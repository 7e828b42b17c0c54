"""Stopping a run that no longer gets better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from attrs import define, field
from attrs.validators import ge, lt, optional

from hookloop.hookspecs import hookimpl
from hookloop.metrics import measured
from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hookloop.core import Run


def _is_a_number(_instance: object, _attribute: object, value: float) -> None:
    if math.isnan(value):
        raise ValueError("expected a number, found NaN")


@define(eq=False)
class EarlyStopping:
    """Stop, as a success, when a metric has not fallen for some evaluations, or is low enough.

    The same command stops again at once; with more patience it goes on.
    """

    metric: str = field(default="val/loss", metadata=doc("what must fall", learned=True))
    patience: int = field(
        default=10, validator=ge(1), metadata=doc("stop after so many evaluations without improvement")
    )
    min_delta: float = field(
        default=0.0,
        validator=[ge(0.0), lt(math.inf)],
        metadata=doc("a better value lies below the best by more than this"),
    )
    stop_below: float | None = field(
        default=None, validator=optional(_is_a_number), metadata=doc("also stop once it is below this")
    )
    best: float = field(default=math.inf, init=False)
    last: float = field(default=math.inf, init=False)
    waited: int = field(default=0, init=False)
    """Evaluations since the best."""

    @hookimpl
    def before_run(self) -> None:
        """Begin without a memory."""
        self.best, self.last, self.waited = math.inf, math.inf, 0

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """Stop again where the run has been stopped before."""
        self._judge(run)

    @hookimpl
    def after_evaluation(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Compare with the best so far; NaN is no improvement.

        :raises HookloopError: where the metric was not measured.
        """
        value = measured(run, metrics, self.metric, "early_stopping.metric")
        if value is None:
            return
        self.last = value
        if self.last < self.best - self.min_delta:
            self.best, self.waited = self.last, 0
        else:
            self.waited += 1
        self._judge(run)

    def _judge(self, run: Run) -> None:
        if self.stop_below is not None and self.last < self.stop_below:
            run.stop(
                f"{self.metric} is {self.last:.6g}, below early_stopping.stop_below, {self.stop_below:g}"
            )
        elif self.waited >= self.patience:
            margin = f" by more than {self.min_delta:g}" if self.min_delta else ""
            run.stop(
                f"{self.metric} has not improved on {self.best:.6g}{margin} for {self.waited} evaluations: "
                "raise early_stopping.patience to go on"
            )

    def state_dict(self) -> dict[str, object]:
        """The best and the last value, of which metric, and how long ago the best was."""
        return {"metric": self.metric, "best": self.best, "last": self.last, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take them over, unless another metric is watched now."""
        if state["metric"] == self.metric:
            self.best, self.last = cast("float", state["best"]), cast("float", state["last"])
            self.waited = cast("int", state["waited"])
