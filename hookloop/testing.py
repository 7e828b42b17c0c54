"""The test kit for plugins: fake callers with the real hooks, a tiny task and a life-cycle suite.

The tiny task is known by arithmetic::

    def test_learns_half_way(tmp_path):
        run = fake_run(tmp_path, recorder := Recorder(), task=TinyTask(), max_epochs=2)
        train(run)
        assert recorder.metrics("val/loss")
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import attrs
import structlog
import torch
from attrs import define, field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hookloop import yamlfile
from hookloop.config import build, options_of
from hookloop.core import Run, prepare, train
from hookloop.distributed import Share
from hookloop.hookspecs import hookimpl
from hookloop.manager import hook_names, load, register
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.plugins.validation import Validation
from hookloop.settings import RunConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pluggy import HookRelay
    from structlog.typing import EventDict, WrappedLogger

    from hookloop.task import Data, Order

LEARNING_RATE = 0.25
"""With the squared error it moves the tiny weight half-way to each sample: w ← (w + x) / 2."""


def calling(*plugins: object) -> HookRelay:
    """Make a relay with just those plugins, held to the specifications, called in the order given."""
    return register(_named(plugins)).hook


def _named(plugins: tuple[object, ...]) -> dict[str, object]:
    named: dict[str, object] = {}
    for plugin in plugins:
        name = type(plugin).__name__.lower()
        named[name if name not in named else f"{name}{len(named)}"] = plugin
    return named


class TinyModel(nn.Module):
    """One weight, which starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))


@define(eq=False)
class TinyData:
    """Samples 0, 1, 2 … in their own order; the alternate order is the reverse."""

    n_samples: int = 8
    batch_size: int = 1
    share: Share = field(factory=Share, kw_only=True)
    """Which rows of each batch are given."""

    def shared(self, share: Share) -> TinyData:
        """Give the same data, of whose batches there are only the rows of *share*."""
        return attrs.evolve(self, share=share)

    @property
    def n_batches(self) -> int:
        """Batches an epoch, the last one may be short."""
        return -(-self.n_samples // self.batch_size)

    def batches(
        self,
        epoch: int,  # noqa: ARG002 - every epoch is alike
        start: int = 0,
        stop: int | None = None,
        order: Order = "main",
    ) -> Iterator[Tensor]:
        """Each batch as a vector of its samples' numbers, of which the own rows are there."""
        samples = torch.arange(self.n_samples, dtype=torch.float32)
        if order == "alternate":
            samples = samples.flip(0)
        for batch in torch.split(samples, self.batch_size)[start:stop]:
            yield batch[list(self.share.rows(len(batch)))]


@define(eq=False)
class TinyTask:
    """Learn the samples' numbers with one weight: loss = mean (w - x)² + noise · N(0, 1) · w.

    With the tiny run's plain gradient descent and batches of one, each step is w ← (w + x) / 2.
    """

    data: Mapping[str, Data] = field(factory=lambda: {"train": TinyData(), "validation": TinyData(2)})
    noise: float = 0.0
    model: nn.Module = field(factory=TinyModel)

    def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
        """Give the one loss."""
        weight = self.model.get_parameter("weight")
        loss = (weight - batch.to(weight.device)).square().mean()
        return {"loss": loss + self.noise * torch.randn((), device=weight.device) * weight}


@define(eq=False)
class TinyPlugin:
    """Provides the tiny task."""

    task: TinyTask = field(factory=TinyTask)

    @hookimpl
    def make_task(self) -> TinyTask:
        """Give the task it was given."""
        return self.task


def _recording(name: str) -> Any:
    def implementation(self: Recorder, run: Run) -> None:
        at = run.progress
        self.calls.append((name, (at.epoch, at.batch, at.step)))

    return hookimpl(specname=name)(implementation)


@define(eq=False)
class Recorder:
    """Notes the hooks called, in order and with the progress, and what was logged, by step."""

    calls: list[tuple[str, tuple[int, int, int]]] = field(factory=list)
    logged: list[tuple[int, dict[str, object]]] = field(factory=list)

    for _name in hook_names():
        if _name not in ("make_task", "log"):  # one would be a second task, the other is below
            vars()[f"_{_name}"] = _recording(_name)
    del _name

    @hookimpl
    def log(self, run: Run, metrics: Mapping[str, object]) -> None:
        """Keep what is logged."""
        self.calls.append(("log", (run.progress.epoch, run.progress.batch, run.progress.step)))
        self.logged.append((run.progress.step, dict(metrics)))

    @property
    def names(self) -> list[str]:
        """The hooks called, in order."""
        return [name for name, _ in self.calls]

    def metrics(self, key: str) -> dict[int, object]:
        """Find what was logged under *key*, by step."""
        return {step: metrics[key] for step, metrics in self.logged if key in metrics}


@define(eq=False)
class _Captured:
    """A structlog target that keeps its events."""

    entries: list[dict[str, object]] = field(factory=list)

    def __call__(self, _: WrappedLogger, level: str, event: EventDict) -> EventDict:
        self.entries.append({"level": level, **event})
        raise structlog.DropEvent


def fake_run(directory: Path, *plugins: object, task: TinyTask | None = None, **options: object) -> Run:
    """Make a run of *plugins* on a :class:`TinyTask`, on the CPU, not yet prepared.

    It learns by plain gradient descent at :data:`LEARNING_RATE`; any plugin among *plugins* that makes a
    task or an optimization replaces ours. What is told to ``run.events`` is in :func:`events_of`.

    :param options: options of the ``run:`` section, such as ``max_epochs=3``.
    """
    chosen = list(plugins)
    if not any(hasattr(plugin, "make_task") for plugin in chosen):
        chosen.append(TinyPlugin(task or TinyTask()))
    if not any(isinstance(plugin, OptimizationPlugin) for plugin in chosen):
        chosen.append(OptimizationPlugin(optimizer="SGD", lr=LEARNING_RATE))
    if not any(isinstance(plugin, Validation) for plugin in chosen):
        chosen.append(Validation())
    named = _named(tuple(chosen))
    return Run(
        config=RunConfig(dir=directory, **options),  # type: ignore[arg-type]
        manager=register(named),
        plugins=named,
        device=torch.device("cpu"),
        events=structlog.wrap_logger(None, processors=[_Captured()], wrapper_class=structlog.BoundLogger),
        document={
            name: options_of(plugin) for name, plugin in named.items() if not isinstance(plugin, TinyPlugin)
        },
    )


def prepared(directory: Path, *plugins: object, **options: Any) -> Run:
    """Make a :func:`fake_run` that has been through ``make_task``, ``make_optimization`` and ``before_run``."""
    run = fake_run(directory, *plugins, **options)
    prepare(run)
    return run


def events_of(run: Run) -> list[dict[str, object]]:
    """Tell what was told to ``run.events`` of a fake run."""
    (captured,) = run.events.bind()._processors  # type: ignore[attr-defined]  # noqa: SLF001
    assert isinstance(captured, _Captured)
    return captured.entries


class LifeCycle:
    """What every plugin must survive.

    Subclass it in a test module and name the plugin::

        class TestEMA(LifeCycle):
            plugin = EMA
            options = {"decay": 0.5}
    """

    plugin: ClassVar[type]
    options: ClassVar[Mapping[str, object]] = {}

    def make(self) -> object:
        """Build the plugin from its options, as from a configuration."""
        document = yamlfile.Document({"section": cast("yamlfile.Plain", dict(self.options))})
        return build(self.plugin, document, "section")

    def run_once(self, directory: Path, **options: Any) -> Run:
        """One short run with the plugin."""
        run = fake_run(directory, self.make(), **options)
        train(run)
        return run

    def test_every_hook_is_one_of_ours(self) -> None:
        """Methods named like hooks are marked, and marked methods are hooks."""
        register({"plugin": self.make()})
        for name in hook_names():
            method = getattr(self.plugin, name, None)
            assert method is None or not callable(method) or hasattr(method, "hookloop_impl"), (
                f"{name}: no @hookimpl"
            )

    def test_survives_an_empty_run(self, tmp_path: Path) -> None:
        """A run that stops before its first batch ends well."""
        run = fake_run(tmp_path, self.make())
        run.stop("nothing to do")
        train(run)
        assert run.progress.step == 0

    def test_survives_two_runs(self, tmp_path: Path) -> None:
        """A second run in another directory knows nothing of the first."""
        first, second = (self.run_once(tmp_path / name, max_epochs=2) for name in ("a", "b"))
        assert first.progress == second.progress
        torch.testing.assert_close(
            first.task.model.state_dict(), second.task.model.state_dict(), rtol=0, atol=0
        )

    def test_state_survives_a_round_trip(self, tmp_path: Path) -> None:
        """Saved, loaded into a fresh plugin and saved again, the state is equal and safe to load."""
        run = self.run_once(tmp_path / "a")
        used = next(plugin for plugin in run.plugins.values() if type(plugin) is self.plugin)
        if not hasattr(used, "state_dict"):
            return
        torch.save(used.state_dict(), path := tmp_path / "state.pt")
        state = torch.load(path, weights_only=True)
        fresh = self.make()
        prepare(fake_run(tmp_path / "b", fresh))
        fresh.load_state_dict(state)  # type: ignore[attr-defined]
        _assert_same(fresh.state_dict(), state)  # type: ignore[attr-defined]

    def test_leaves_the_process_as_found(self, tmp_path: Path) -> None:
        """Signal handlers, environment and working directory are what they were."""

        def surroundings() -> tuple[object, ...]:
            handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
            return handlers, dict(os.environ), Path.cwd()

        before = surroundings()
        self.run_once(tmp_path)
        assert surroundings() == before


def _assert_same(found: object, expected: object) -> None:
    """Compare states: tensors bit by bit, plain containers item by item."""
    if isinstance(expected, Mapping):
        assert isinstance(found, Mapping)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            _assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            _assert_same(one, other)
    elif isinstance(expected, Tensor | float):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    else:
        assert found == expected


@contextmanager
def no_hidden_sync(device: torch.device | None = None) -> Iterator[None]:
    """Fail where the host would wait for a GPU, such as in ``float(loss)``, also on a machine without one.

    On the CPU every tensor is taken for one on a GPU, and what is found are the operations that would wait for it:
    ``item`` and all that comes down to it, shapes that depend on values, ``tolist``, ``numpy`` and ``cpu``. On a GPU
    torch's own ``set_sync_debug_mode`` adds the others, such as ``to("cpu")``. Other threads are not watched.

    :param device: of the tensors that are not to be waited for; the CPU if not given.
    :raises AssertionError: where it happens, naming the operation.
    """
    kind = "cpu" if device is None else device.type
    before = torch.cuda.get_sync_debug_mode() if kind == "cuda" else 0
    with _WaitingMethods(kind), _WaitingOperations(kind):
        try:
            if kind == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            if kind == "cuda":
                torch.cuda.set_sync_debug_mode(before)


def _expect_no_wait(name: str, arguments: object, device: str) -> None:
    if any(isinstance(leaf, Tensor) and leaf.device.type == device for leaf in tree_leaves(arguments)):
        raise AssertionError(f"{name}: the host waits for the device here")


class _WaitingOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations whose answer, or its shape, is wanted on the host."""

    names = frozenset(
        {"_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select", "bincount"}
        | {"repeat_interleave", "_unique", "_unique2", "unique_dim", "unique_consecutive"}
    )

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "overloadpacket", func).__name__
        if name in self.names or (name in {"index", "index_put", "index_put_"} and _counts_a_mask(*args)):
            _expect_no_wait(name, args, self.device)
        return func(*args, **(kwargs or {}))


def _counts_a_mask(
    _tensor: Tensor, indices: list[Tensor | None], values: Tensor | None = None, *_: object
) -> bool:
    """Whether an indexing has to know how many places a mask has; one value fills them all without."""
    masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
    return masked and (values is None or values.numel() != 1)


class _WaitingMethods(TorchFunctionMode):
    """Refuses methods that copy to the host, which are no operations on the CPU."""

    names = frozenset({"tolist", "numpy", "cpu", "__array__"})

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in self.names:
            _expect_no_wait(func.__name__, args, self.device)
        return func(*args, **(kwargs or {}))


def check_installed(name: str) -> type:
    """Find the plugin class that is installed as *name*, for a package's own test of its entry point."""
    cls = load(name)
    assert attrs.has(cls), f"{name}: expected an attrs class"
    return cls
