"""The same work again and again without launching its kernels one by one: CUDA graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import attrs
import torch
from attrs import define, field, frozen
from torch import Tensor

from hookloop.errors import HookloopError
from hookloop.snapshot import replaced, tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from torch import nn
    from torch.cuda import _POOL_HANDLE

    from hookloop.core import Run
    from hookloop.task import Batch

Answer = TypeVar("Answer")


class Record(Protocol):
    """Records some work, which answers tensors in plain containers."""

    def __call__(self, work: Callable[[], Answer]) -> tuple[Callable[[], object], Answer]:
        """Give what does the *work* again with what its memory then holds, and the tensors that it writes to."""


@define(eq=False)
class CudaGraphs:
    """Records work as CUDA graphs, which share the memory that they compute in: one is replayed at a time.

    Other threads may go on using the device meanwhile.
    """

    _pool: _POOL_HANDLE | None = field(default=None, init=False)

    def __call__(self, work: Callable[[], Answer]) -> tuple[Callable[[], object], Answer]:
        """See :class:`Record`; the work must have been done before, so that all it needs is compiled and loaded."""
        graph = torch.cuda.CUDAGraph()
        torch.clear_autocast_cache()  # a replay would not cast again what was cast before
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            answer = work()
        torch.clear_autocast_cache()  # what is cast now has no numbers before the replay
        self._pool = graph.pool()
        return graph.replay, answer


@frozen(eq=False)
class _Recorded:
    given: list[Tensor]
    """Where the work reads."""
    again: Callable[[], object]
    answer: object
    """Where it writes."""


@define(eq=False)
class Replays:
    """Does work with tensors of the same shapes by replaying what was recorded when they came the second time.

    The first time it is done as usual, so that what comes only once is not recorded in vain. Each recording keeps
    the memory that it reads, computes and writes in.
    """

    record: Record
    _seen: set[Hashable] = field(factory=set, init=False)
    _recorded: dict[Hashable, _Recorded] = field(factory=dict, init=False)

    @property
    def recorded(self) -> int:
        """How many recordings are kept."""
        return len(self._recorded)

    def __call__(self, key: Hashable, work: Callable[..., Answer], given: Sequence[Tensor]) -> Answer:
        """Give ``work(*given)``, in memory that the next call may write to.

        :param key: what else the work depends on, such as :func:`places` of the weights: two with equal keys and
            shapes are the same work. Other tensors that it reads must stay where they are; randomness may come from
            torch's generators if they are seeded before each call.
        """
        same = key, tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in given)
        if same not in self._seen:
            self._seen.add(same)
            return work(*given)
        if same not in self._recorded:
            own = [tensor.clone() for tensor in given]
            self._recorded[same] = _Recorded(own, *self.record(lambda: work(*own)))
        recorded = self._recorded[same]
        for mine, tensor in zip(recorded.given, given, strict=True):
            mine.copy_(tensor)
        recorded.again()
        return cast("Answer", recorded.answer)


def places(network: nn.Module) -> tuple[int, ...]:
    """Where the numbers of *network* lie: a recording reads them there, whoever they belong to."""
    return tuple(tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()))


@define(eq=False)
class Gradients:
    """Losses of batches and their gradients, of one process that updates after every batch.

    The task's loss must be a function of the batch's tensors, the weights and torch's generators: whatever else a
    batch holds is, in a replay, that of the batch which was recorded. The optimizer's own step is not part of it:
    it is a few kernels, and reads its rate and counts on the host as ever.
    """

    replays: Replays

    def __call__(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        """Differentiate: the parameters have their gradients, until the next call; the losses are the caller's.

        :raises HookloopError: for batches whose tensors are not all on the run's device, or that hold none.
        """
        parameters = run.optimization.parameters
        parts = _tensor_parts(batch)
        given = tensors_in(parts)
        if not given or any(tensor.device.type != run.device.type for tensor in given):
            raise HookloopError(
                f"optimization.compile: graph: a batch ({type(batch).__name__}) without tensors, or with some that "
                f"are not on {run.device.type}; expected all there; set optimization.compile=off"
            )

        def work(*own: Tensor) -> tuple[dict[str, Tensor], list[Tensor | None]]:
            losses = run.optimization.losses(run, _with_parts(batch, replaced(parts, iter(own))))
            run.optimization.strategy.backward(losses["loss"])
            found = [p.grad for p in parameters]
            for p in parameters:
                p.grad = None  # a replay is to write gradients, not to add to them
            return {name: loss.detach() for name, loss in losses.items()}, found

        losses, gradients = self.replays(places(run.task.model), work, given)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        return {name: loss.clone() for name, loss in losses.items()}


def _tensor_parts(batch: Batch) -> object:
    """Give plain containers of what holds tensors: of a batch made with attrs, its fields."""
    if not attrs.has(type(batch)):
        return batch
    own = [f for f in attrs.fields(type(batch)) if f.init]
    values: Mapping[str, object] = {f.alias: getattr(batch, f.name) for f in own}
    return {name: value for name, value in values.items() if tensors_in(value)}


def _with_parts(batch: Batch, parts: object) -> Batch:
    """Give a batch like *batch* with other :func:`_tensor_parts`."""
    return attrs.evolve(batch, **cast("dict[str, object]", parts)) if attrs.has(type(batch)) else parts
