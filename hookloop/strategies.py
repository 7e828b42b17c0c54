"""How the processes of a run share a step: what each differentiates, whose gradients meet when, what is told.

The loss that a rank differentiates is weight · mean over its own rows, and gradients are averaged over the ranks, so
that they are those of the mean over the whole batch; see :class:`hookloop.distributed.Share`.
"""

from __future__ import annotations

import os
import warnings
import zlib
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol, cast

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hookloop.errors import HookloopError
from hookloop.snapshot import Copying, Snapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.nn.parallel import DistributedDataParallel

    from hookloop.core import Run
    from hookloop.distributed import Ranks
    from hookloop.task import Batch, Task

Gradients = list["Tensor | None"]
_FEW = 3
"""So many names are told."""


class Strategy(Protocol):
    """How the processes of a run learn together. Every rank calls it equally often."""

    def losses(self, run: Run, batch: Batch, *, last: bool) -> Mapping[str, Tensor]:
        """Give the losses of a batch, ``loss`` to be differentiated: what this rank adds to those of the whole.

        :param last: whether an update follows, or the gradients only wait for it.
        """

    def backward(self, loss: Tensor) -> None:
        """Differentiate *loss*, one of :meth:`losses` or made of it."""

    def means(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the means over the whole batch, detached and on the device, of what :meth:`losses` gave."""

    def waiting(self, parameters: Sequence[Tensor]) -> dict[str, object]:
        """Give what to save of gradients that wait for an update, of all ranks, on rank 0."""

    def taken(self, state: Mapping[str, object]) -> Gradients:
        """Find this rank's waiting gradients in what :meth:`waiting` gave, on any number of ranks."""

    def gathered(self, state: dict[str, object]) -> dict[str, object]:
        """Give the *state* with everything whole, on rank 0; what other ranks get is of no use."""

    def copying(self) -> Copying:
        """Give what makes a copy of what :meth:`gathered` gave, to be written while training goes on."""

    def lent(self) -> AbstractContextManager[None]:
        """Have every rank hold all weights for a while: it may then call the model as often as it likes."""


@define(eq=False)
class Alone:
    """One process: nothing is shared."""

    def losses(self, run: Run, batch: Batch, *, last: bool) -> Mapping[str, Tensor]:  # noqa: ARG002 - a Strategy's
        """Give the task's."""
        return run.task.loss(batch)

    def backward(self, loss: Tensor) -> None:
        """Differentiate."""
        loss.backward()  # type: ignore[no-untyped-call]

    def means(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """They are."""
        return {name: loss.detach() for name, loss in losses.items()}

    def waiting(self, parameters: Sequence[Tensor]) -> dict[str, object]:
        """Give the gradients."""
        return {"gradients": [p.grad for p in parameters]}

    def taken(self, state: Mapping[str, object]) -> Gradients:
        """Take the mean of those of all ranks there were."""
        return mean_gradients(parts_in(state))

    def gathered(self, state: dict[str, object]) -> dict[str, object]:
        """It is whole."""
        return state

    def copying(self) -> Copying:
        """Training changes it."""
        return Snapshots()

    def lent(self) -> AbstractContextManager[None]:
        """They are here."""
        return nullcontext()


@define(eq=False)
class Together(Alone):
    """What several processes do alike, whatever each of them holds."""

    ranks: Ranks
    _given: bool = field(default=False, init=False)
    """Whether losses were given that have not been differentiated."""
    _learnt: bool = field(default=False, init=False)
    """Whether some have been since it was asked last."""

    def losses(self, run: Run, batch: Batch, *, last: bool) -> Mapping[str, Tensor]:
        """Weigh the means over the own rows."""
        data, at = run.task.data["train"], run.progress
        rows = min(data.batch_size, data.n_samples - at.batch * data.batch_size)
        weight = self.ranks.share.weight(rows)
        self._given = True
        return {name: loss * weight for name, loss in self._forward(run.task, batch, last=last).items()}

    def _forward(self, task: Task, batch: Batch, *, last: bool) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Give the task's losses of the own rows, in such a way that gradients will meet."""
        return task.loss(batch)

    def backward(self, loss: Tensor) -> None:
        """Differentiate, and average the gradients.

        :raises HookloopError: where they would not be, since the loss is not one of :meth:`losses`.
        """
        if not self._given:
            raise HookloopError(
                f"train_step: a loss of this rank alone, expected what {self.ranks.world} ranks share: make it "
                "with run.optimization.losses(run, batch) instead of run.task.loss(batch), or use one process"
            )
        self._given, self._learnt = False, True
        super().backward(loss)

    def expect_learnt(self) -> None:
        """Expect that a batch has been learnt together since the last call.

        :raises HookloopError: where it has not.
        """
        if not self._learnt:
            raise HookloopError(
                f"train_step: did not learn with run.optimization.losses and .update, so {self.ranks.world} ranks "
                "would learn different weights; have it use them, or use one process"
            )
        self._learnt = False

    def means(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add up what all ranks have, in one small message."""
        from torch import distributed

        stacked = torch.stack([loss.detach() for loss in losses.values()]) / self.ranks.world
        distributed.all_reduce(stacked)
        return dict(zip(losses, stacked.unbind(), strict=True))


class _TaskLoss(nn.Module):
    """A task's loss as the forward pass of a module, with the model in it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task_loss: Callable[[Batch], Mapping[str, Tensor]] = task.loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Give the losses, of which one is going to be differentiated."""
        losses = self.task_loss(batch)
        return {name: loss if name == "loss" else loss.detach() for name, loss in losses.items()}


@define(eq=False)
class Replicate(Together):
    """Every rank holds the whole model; gradients are averaged while the backward pass goes on."""

    _averaging: DistributedDataParallel

    @classmethod
    def of(cls, ranks: Ranks, task: Task, *, bf16: bool = False) -> Replicate:
        """Prepare to average the gradients of *task*'s model.

        :param bf16: send them in half as many bytes.
        """
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        _hush()
        averaging = _averaging(_TaskLoss(task))
        if bf16:
            # under its own name it is refused where there is no GPU, though it works there
            averaging.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))  # noqa: PLW0108
        return cls(ranks, averaging)

    def _forward(self, task: Task, batch: Batch, *, last: bool) -> Mapping[str, Tensor]:  # noqa: ARG002
        with nullcontext() if last else self._averaging.no_sync():
            return cast("dict[str, Tensor]", self._averaging(batch))

    def waiting(self, parameters: Sequence[Tensor]) -> dict[str, object]:
        """Gather every rank's own: averaged before the update, they would round differently after a resume."""
        from torch import distributed

        there = self.ranks.gather([p.grad is not None for p in parameters])
        gathered: list[Gradients] = [[None] * len(parameters) for _ in there]
        for number, p in enumerate(parameters):
            if not any(has[number] for has in there):
                continue
            own = torch.zeros_like(p) if p.grad is None else p.grad
            parts = [own.new_empty(own.shape) for _ in there] if self.ranks.leads else None
            distributed.gather(own.contiguous(), parts)
            for rank, part in enumerate(parts or ()):
                gathered[rank][number] = part.detach().cpu() if there[rank][number] else None
        return {"rank_gradients": gathered}

    def taken(self, state: Mapping[str, object]) -> Gradients:
        """Take this rank's own where there are as many ranks as there were, else the mean."""
        parts = parts_in(state)
        return parts[self.ranks.rank] if len(parts) == self.ranks.world else mean_gradients(parts)


def _averaging(module: nn.Module) -> DistributedDataParallel:
    """Make what averages gradients.

    In every step it looks for parameters that the loss does not depend on, 0.06 ms for 500 of them. So there may be
    some, as with one process. And it does not, after the first step, send gradients in another order, by which
    sums over more than two ranks would be rounded otherwise after a resume than without.
    """
    from torch.nn.parallel import DistributedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # broadcast_buffers has no successor yet that does this
        return DistributedDataParallel(
            module,
            broadcast_buffers=False,
            init_sync=False,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )


def _hush() -> None:
    """Let torch say to nobody, once a process, that looking for unused parameters was needless."""
    module = _averaging(nn.Linear(1, 1))
    error_stream = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - what is written there comes from C++
            os.dup2(nowhere.fileno(), 2)
        module(torch.zeros(1)).sum().backward()
    finally:
        os.dup2(error_stream, 2)
        os.close(error_stream)


def parts_in(state: Mapping[str, object]) -> list[Gradients]:
    """Find the waiting gradients in a state, by the rank that they were on."""
    if "rank_gradients" in state:
        return cast("list[Gradients]", state["rank_gradients"])
    return [cast("Gradients", state.get("gradients", []))]


def mean_gradients(parts: Sequence[Gradients]) -> Gradients:
    """Average gradients over ranks; one that a rank has not is 0 there, one that none has stays out."""
    if len(parts) == 1:
        return list(parts[0])
    means: Gradients = []
    for own in zip(*parts, strict=True):
        there = [gradient for gradient in own if gradient is not None]
        means.append(torch.stack(there).sum(0) / len(parts) if there else None)
    return means


def expect_equal(ranks: Ranks, model: nn.Module) -> None:
    """Expect parameters and buffers to be the same on every rank, bit for bit.

    :raises HookloopError: naming the first that are not.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for rank, names in _unequal(ranks, tensors):
        raise HookloopError(
            f"ranks 0 and {rank} begin with different weights: {names}; expected equal ones: "
            'draw them in make_task from torch.manual_seed(run.seed("model")) and read the same files'
        )


def expect_equal_buffers(ranks: Ranks, model: nn.Module) -> None:
    """Expect buffers, as far as they are saved, to be the same on every rank still, bit for bit.

    :raises HookloopError: naming the first that are not.
    """
    if ranks.world == 1:
        return
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    for rank, names in _unequal(ranks, buffers):
        raise HookloopError(
            f"ranks 0 and {rank} have come to different buffers: {names}; expected equal ones, since rank 0's are "
            "saved for all: change them by nothing that differs between ranks, such as the own rows of a batch, "
            "register them with persistent=False, or use one process"
        )


def _unequal(ranks: Ranks, tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, str]]:
    """Yield each rank whose tensors are not those of rank 0, and the names of the first that are not."""
    first, *others = ranks.gather({name: _checksum(tensor) for name, tensor in tensors.items()})
    for rank, there in enumerate(others, start=1):
        odd = [name for name in first | there if first.get(name) != there.get(name)]
        if odd:
            more = f" and {len(odd) - _FEW} more" if len(odd) > _FEW else ""
            yield rank, f"{', '.join(odd[:_FEW])}{more}"


def expect_no_batch_norm(ranks: Ranks, model: nn.Module) -> None:
    """Expect no layer that in training would take statistics of a rank's own rows for those of the batch.

    :raises HookloopError: naming the first.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train()  # as an epoch begins: one that a model keeps frozen stays so
    found = [
        (name, type(module).__name__)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]
    for module, mode in modes:
        module.training = mode
    for name, kind in found:
        raise HookloopError(
            f"{name}: a {kind}, whose statistics would be of the own rows of each of {ranks.world} ranks; expected "
            "layers that look at every sample by itself: use GroupNorm, or one process"
        )


def _checksum(tensor: Tensor) -> int:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data)
