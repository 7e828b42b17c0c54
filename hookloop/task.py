"""What the loop trains: the seams with exactly one answer, as protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from attrs import field, frozen

from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from hookloop.distributed import Share
    from hookloop.yamlfile import Plain

Batch = Any
"""Whatever the task's data yields; only the task that made it looks inside."""

State = Any
"""What an autoregressive task carries from one window to the next; ``None`` where nothing is carried."""

Order = Literal["main", "alternate"]


class Data(Protocol):
    """A split as a pure function of (epoch, position, order): no hidden iterator state.

    ``n_batches`` is known in advance and the same for every epoch; the last batch may be short.
    """

    @property
    def n_samples(self) -> int:
        """Samples an epoch."""

    @property
    def batch_size(self) -> int:
        """Samples a batch."""

    @property
    def n_batches(self) -> int:
        """Batches an epoch."""

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: Order = "main"
    ) -> Iterator[Batch]:
        """Yield the batches ``start … stop - 1`` of *epoch*, on the device, without reading those before.

        ``order="alternate"`` is an independent shuffle of the same epoch.
        """


@runtime_checkable
class Shareable(Protocol):
    """A :class:`Data` that several ranks can read together."""

    def shared(self, share: Share) -> Data:
        """Give a view of the same split whose batches hold only the rows of *share*, and read no others.

        Its numbers of samples and batches are those of the whole. The task's loss of such a batch is the mean over
        these rows, each with the noise that it has in the whole batch: torch's generators are seeded equally on
        every rank, so draw for the whole batch and take the rows.
        """


def shared(data: Mapping[str, Data], share: Share) -> Mapping[str, Data]:
    """Divide every split among the ranks.

    :raises HookloopError: where a split cannot be divided.
    """
    if share.world == 1:
        return data
    whole = {name: split for name, split in data.items() if not isinstance(split, Shareable)}
    if whole:
        raise HookloopError(
            f"data that {share.world} ranks cannot divide: {', '.join(whole)}; expected a method shared(share), "
            "see hookloop.task.Shareable; run it with one process"
        )
    return {name: split.shared(share) for name, split in data.items() if isinstance(split, Shareable)}


class Task(Protocol):
    """A model, its data and its loss."""

    @property
    def model(self) -> nn.Module:
        """What is trained, averaged and saved."""

    @property
    def data(self) -> Mapping[str, Data]:
        """The splits by name; ``train`` is there, ``validation`` may be."""

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Zero-dimensional means over the batch, on the device; ``loss`` is the one that is minimised.

        Others are named ``loss/<variable>``. All randomness comes from torch's global generators, which
        the caller has seeded.
        """


@frozen
class Window:
    """Evaluation cases that are generated together."""

    split: str
    cases: Sequence[int]
    """Numbers of the cases within the split, ascending; with the member they seed the noise."""
    continues: bool = field(default=True, kw_only=True)
    """Whether it goes on from the state of the window before; if not, any rank may generate it."""


def independent_windows(split: str, n_cases: int, size: int, limit: int | None = None) -> list[Window]:
    """Divide cases that know nothing of each other into windows, as :meth:`Generative.windows` answers them.

    :param n_cases: cases of the split.
    :param size: most cases in a window; the last window may hold fewer.
    :param limit: most cases in all, spread evenly so that they stand for the whole split; ``None`` for all.
    """
    n = n_cases if limit is None else min(limit, n_cases)
    cases = [i * n_cases // n for i in range(n)]
    return [Window(split, cases[start : start + size], continues=False) for start in range(0, n, size)]


@frozen(eq=False)
class Paired:
    """Generated fields beside the truth, in physical units, by variable name.

    A row is a case of the window, or of a forecast a step of a case.
    """

    prediction: Mapping[str, Tensor]
    """``[row, member, lat, lon]``."""
    target: Mapping[str, Tensor]
    """``[row, lat, lon]``."""
    baseline: Mapping[str, Tensor]
    """What is to be beaten (for downscaling: bicubic interpolation), ``[row, lat, lon]``, where there is any."""
    coarse: Mapping[str, Tensor]
    """What was given, ``[row, coarse lat, coarse lon]``."""
    latitude: Sequence[float]
    longitude: Sequence[float]
    labels: Sequence[str]
    """What to call each row, such as its time; unlike any other of the same lead time."""
    days: Sequence[str] = ()
    """The day of each row: rows of a day depend on each other. Its label where none is given."""
    lead_times: Sequence[str] = ()
    """How far each row is ahead, such as ``6h``; of forecasts only."""
    units: Mapping[str, str] = field(factory=dict)
    gridded: bool = True
    """Whether latitude and longitude are degrees; if not, they count rows and columns."""
    wraps: bool = False
    """Whether the eastern edge adjoins the western."""

    def name_of(self, row: int) -> str:
        """What to call a row among all: its label, and how far it is ahead."""
        lead = f" + {self.lead_times[row]}" if self.lead_times else ""
        return f"{self.labels[row]}{lead}"


@runtime_checkable
class Generative(Task, Protocol):
    """A task that can be inferred with: full generation of its evaluation windows."""

    def windows(self, split: str, size: int, limit: int | None = None) -> Sequence[Window]:
        """Divide the cases of *split* in order, at most *size* in a window and *limit* in all.

        The task chooses the cases of a limit: spread over the split where they are independent (see
        :func:`independent_windows`), the first ones where each starts from the one before.
        """

    def initial_condition(self, split: str) -> State:
        """Give what the first window starts from, and each that does not continue another."""

    def predict_paired(
        self, state: State, window: Window, seeds: Sequence[Sequence[int]], first: int = 0
    ) -> tuple[Paired, State]:
        """Generate one member for each seed of each case: ``seeds[case][member]``.

        *first* is the number, within its ensemble, of the first of these members.

        The noise of a member is a function of its seed alone, so that it is the same field for any
        batch size.
        """


@runtime_checkable
class Described(Task, Protocol):
    """A :class:`Task` that tells facts of its data that are needed wherever its model is used without them."""

    @property
    def facts(self) -> Mapping[str, Plain]:
        """These facts as plain data; every checkpoint holds them, as ``task``."""


@runtime_checkable
class WithoutBaseline(Protocol):
    """A :class:`Generative` that tells beforehand which variables there is nothing to compare with."""

    @property
    def without_baseline(self) -> Sequence[str]:
        """Those variables of :attr:`Paired.prediction` that :attr:`Paired.baseline` lacks."""


@runtime_checkable
class NoiseLevels(Task, Protocol):
    """A :class:`Task` that learns to remove noise, and can tell its loss by how much of it there is."""

    def noise_levels(self, quantiles: Tensor) -> Tensor:
        """Give the noise level σ at each of the *quantiles* (between 0 and 1) of those that are trained at."""

    def loss_at(self, batch: Batch, quantiles: Tensor) -> Mapping[str, Tensor]:
        """Give the losses of :meth:`Task.loss` for each sample, ``[batch]``, with noise of these levels.

        Of a batch of which only some rows are here (:class:`Shareable`) the losses are those of these rows.

        :param quantiles: of the noise levels that are trained at, of the whole batch, float64, on the CPU.
        """


@runtime_checkable
class NamesVariables(Protocol):
    """A :class:`Generative` that tells beforehand which variables it generates."""

    @property
    def variables(self) -> Sequence[str]:
        """The keys of :attr:`Paired.prediction`."""
