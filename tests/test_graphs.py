"""Repeated work is recorded once and does what it did: sampling, and learning bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from hookloop.core import train
from hookloop.diffusion.edm import Precondition
from hookloop.diffusion.solvers import heun
from hookloop.diffusion.unet import UNet
from hookloop.errors import HookloopError
from hookloop.graphs import CudaGraphs, Gradients, Replays, places
from hookloop.hookspecs import hookimpl
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.schedules import CosineAnnealingLR
from hookloop.snapshot import replaced, tensors_in
from hookloop.testing import Recorder, TinyPlugin, TinyTask, events_of, fake_run, prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from hookloop.core import Run
    from hookloop.graphs import Answer
    from hookloop.task import Order

SIGMAS = [10.0, 3.0, 1.0, 0.1, 0.0]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


@define(eq=False)
class Reruns:
    """Records as a CUDA graph does, without a GPU: no number is there before a replay, which writes where it did."""

    works: list[object] = field(factory=list)

    def __call__(self, work: Callable[[], Answer]) -> tuple[Callable[[], object], Answer]:
        """Do the work again at every replay."""
        self.works.append(work)
        with torch.random.fork_rng([]):  # nothing is drawn while a graph is captured
            done = work()
        answer = replaced(done, (torch.full_like(tensor, torch.nan) for tensor in tensors_in(done)))

        def again() -> None:
            for mine, tensor in zip(tensors_in(answer), tensors_in(work()), strict=True):
                mine.copy_(tensor)

        return again, answer  # type: ignore[return-value]


def test_work_is_done_recorded_and_replayed() -> None:
    """Once as it is, the second time recorded, then replayed: each time with the numbers that are given."""
    record = Reruns()
    replays = Replays(record)
    answers = []
    for number in range(4):
        given = [torch.full((2,), float(number)), torch.tensor([1.0, 2.0])]
        answers.append(replays("sum", lambda a, b: {"sum": a + b}, given)["sum"].tolist())
        given[0].fill_(100.0)
    assert answers == [[1, 2], [2, 3], [3, 4], [4, 5]]
    assert len(record.works) == replays.recorded == 1


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("other", torch.zeros(2)),
        ("key", torch.zeros(3)),
        ("key", torch.zeros(2, dtype=torch.float64)),
        ("key", torch.zeros(4)[::2]),
    ],
)
def test_other_work_is_done_anew(key: str, given: Tensor) -> None:
    """Another key, shape, type or layout is other work, which comes for the first time."""
    replays = Replays(Reruns())
    for _ in range(2):
        replays("key", lambda x: x + 1, [torch.zeros(2)])
    calls = []

    def work(x: Tensor) -> Tensor:
        calls.append(x)
        return x + 2

    assert torch.equal(replays(key, work, [given]), given + 2)
    assert calls[0] is given
    assert replays.recorded == 1


def test_places_tell_lent_weights_from_the_own() -> None:
    """A recording reads where the weights lay, so pointers to others are another place, and the same once back."""
    net = nn.Linear(2, 2)
    own, before = places(net), net.weight.data
    net.weight.data = torch.zeros(2, 2)
    assert places(net) != own
    net.weight.data = before
    assert places(net) == own


@NEEDS_GPU
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_cuda_graph_generates_the_same_fields(precision: torch.dtype) -> None:
    """Of every batch, bit for bit, also with other weights in the same place and when autocast has ended between."""
    torch.manual_seed(0)
    denoiser = Precondition(UNet(1, 2, channels=8, multipliers=[1, 2], blocks=1)).eval().to("cuda")
    for p in denoiser.parameters():
        nn.init.normal_(p, std=0.2)
    replays = Replays(CudaGraphs())

    def generate(seed: int, *, recorded: bool) -> Tensor:
        torch.manual_seed(seed)
        given = [torch.randn(2, 1, 8, 8, device="cuda"), torch.randn(2, 2, 8, 8, device="cuda")]

        def work(noise: Tensor, condition: Tensor) -> Tensor:
            return heun(lambda x, s: denoiser(x, x.new_full((len(x),), s), condition), noise, SIGMAS)

        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
            return replays(places(denoiser), work, given).clone() if recorded else work(*given)

    for seed in range(4):
        assert torch.equal(generate(seed, recorded=True), generate(seed, recorded=False))
    with torch.no_grad():
        for p in denoiser.parameters():
            p.mul_(0.9)
    assert torch.equal(generate(5, recorded=True), generate(5, recorded=False))
    assert replays.recorded == 1


@frozen(eq=False)
class Points:
    """Points of a function, and what no loss reads."""

    x: Tensor
    _y: Tensor
    name: str


@define(eq=False)
class Batches:
    """Batches of four points and a last one of two, other numbers in each epoch."""

    device: str
    kind: str = "attrs"
    n_samples: int = 22
    batch_size: int = 4
    n_batches: int = 6

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: Order = "main"
    ) -> Iterator[object]:
        """Draw them."""
        for number in range(start, self.n_batches if stop is None else stop):
            drawn = torch.Generator().manual_seed(100 * epoch + number + 50 * (order != "main"))
            size = 2 if number == 5 else 4
            x, y = torch.randn(2, size, 3, generator=drawn).to(self.device).unbind()
            kinds = {"attrs": Points(x, y, f"{number}"), "dict": {"x": x, "y": y}, "none": f"{number}"}
            yield kinds[self.kind]


def model() -> nn.Module:
    """A network with dropout and a weight that no loss depends on."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.SiLU(), nn.Linear(8, 3))
    net.register_parameter("idle", nn.Parameter(torch.ones(2)))
    return net


class Regression(TinyTask):
    """Learn y of x, with noise in x."""

    def loss(self, batch: object) -> Mapping[str, Tensor]:
        """Two errors and their sum."""
        x, y = (batch.x, batch._y) if isinstance(batch, Points) else (batch["x"], batch["y"])  # type: ignore[index]
        error = self.model(x + 0.1 * torch.randn_like(x)) - y
        losses = {"loss/square": error.square().mean(), "loss/size": error.abs().mean()}
        return {"loss": losses["loss/square"] + losses["loss/size"], **losses}


@define(eq=False)
class Repeat:
    """Has steps of any device recorded, where a GPU has graphs and the CPU does the work again."""

    record: Reruns | CudaGraphs

    @hookimpl(trylast=True)
    def before_run(self, run: Run) -> None:
        """After the optimization's own."""
        run.optimization.repeated = Gradients(Replays(self.record))


@define(eq=False)
class Losses:
    """Keeps what each step answered, as it was handed over."""

    found: list[dict[str, Tensor]] = field(factory=list)

    @hookimpl
    def after_batch(self, losses: Mapping[str, Tensor]) -> None:
        """Keep the tensors themselves."""
        self.found.append(dict(losses))


def learning(directory: Path, device: str, *more: object, kind: str = "attrs", max_epochs: int = 3) -> Run:
    """Make a run with all that touches weights, on its way."""
    task = Regression(data={"train": Batches(device, kind)}, model=model().to(device))
    plugin = OptimizationPlugin(
        lr=0.01, clip_norm=0.5, weight_decay=0.1, precision="bf16", scheduler=CosineAnnealingLR(T_max=18)
    )
    run = fake_run(
        directory, TinyPlugin(task), plugin, EMA(decay=0.9), Checkpoint(), *more, max_epochs=max_epochs
    )
    run.device = torch.device(device)
    return run


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["attrs", "dict"])
def test_replayed_steps_learn_the_same_bit_for_bit(tmp_path: Path, device: str, kind: str) -> None:
    """Losses, norms, weights, averages and moments, also of the short last batch; answered losses stay as they were."""
    record = Reruns() if device == "cpu" else CudaGraphs()
    found = []
    for name, more in (("eager", ()), ("repeated", (Repeat(record),))):
        losses = Losses()
        run = learning(tmp_path / name, device, losses, *more, kind=kind)
        train(run)
        states = run.task.model.state_dict(), run.optimization.state_dict(), run.plugins["ema"].state_dict()  # type: ignore[attr-defined]
        found.append([*tensors_in(list(losses.found)), *tensors_in(states)])
        assert list(losses.found[-1]) == ["loss", "loss/square", "loss/size", "grad_norm"]
    assert len(found[0]) == len(found[1]) > 18 * 4
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert run.optimization.repeated is not None
    assert run.optimization.repeated.replays.recorded == 2


@pytest.mark.parametrize("device", DEVICES)
def test_a_resumed_run_learns_the_same_bit_for_bit(tmp_path: Path, device: str) -> None:
    """Though its first steps are recorded anew."""

    def record() -> Repeat:
        return Repeat(Reruns() if device == "cpu" else CudaGraphs())

    whole = learning(tmp_path / "whole", device, record())
    train(whole)
    train(learning(tmp_path / "parts", device, record(), max_epochs=2))
    resumed = learning(tmp_path / "parts", device, record())
    assert resumed.progress.step == 0
    train(resumed)
    assert resumed.progress.step == whole.progress.step == 18
    there = whole.task.model.state_dict()
    assert all(torch.equal(w, there[name]) for name, w in resumed.task.model.state_dict().items())


def test_a_batch_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    """Nothing in it that a recording could read anew."""
    run = learning(tmp_path, "cpu", Repeat(Reruns()), kind="none")
    with pytest.raises(HookloopError, match=r"a batch \(str\) without tensors.*optimization.compile=off"):
        train(run)


@pytest.mark.parametrize(("compile_", "told"), [("graph", True), ("auto", False), ("off", False)])
def test_without_a_gpu_steps_stay_as_they_are(tmp_path: Path, compile_: str, *, told: bool) -> None:
    """And it is told where graphs were asked for."""
    plugin = OptimizationPlugin(compile=compile_)  # type: ignore[arg-type]
    run = prepared(tmp_path, plugin, Recorder())
    assert run.optimization.repeated is None
    events = [event for event in events_of(run) if event["event"] == "step.not_compiled"]
    assert [event["why"] for event in events] == (["cpu has no CUDA graphs"] if told else [])


@NEEDS_GPU
@pytest.mark.parametrize("accumulate", [1, 2])
def test_on_a_gpu_steps_are_replayed_unless_gradients_are_added_up(tmp_path: Path, accumulate: int) -> None:
    """With several batches an update nothing is, which is told."""
    task = Regression(data={"train": Batches("cuda")}, model=model().to("cuda"))
    plugin = OptimizationPlugin(compile="graph", accumulate=accumulate)
    run = fake_run(tmp_path, TinyPlugin(task), plugin)
    run.device = torch.device("cuda")
    train(run)
    told = [event["why"] for event in events_of(run) if event["event"] == "step.not_compiled"]
    assert told == (["2 batches an update"] if accumulate == 2 else [])
    assert (run.optimization.repeated is None) == (accumulate == 2)
