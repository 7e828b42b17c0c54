from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import torch
from attrs import define, field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hookloop import files
from hookloop.averaging import exponent
from hookloop.core import Run, train
from hookloop.errors import ConfigError, HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.manager import assemble, listing_of, make_run
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.resume import Averaging, Stateful
from hookloop.testing import LifeCycle, TinyData, TinyTask, events_of, fake_run, prepared
from hookloop.yamlfile import read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from conftest import Site


class TestLifeCycle(LifeCycle):
    plugin = EMA


class TestLifeCycleOfEverything(LifeCycle):
    plugin = EMA
    options = {"decay": 0.5, "faster_decay_at_start": False, "validate": False}


class TestLifeCycleOfAPowerFunction(LifeCycle):
    plugin = EMA
    options = {"sigma_rel": 0.1}


@define(eq=False)
class Peek:
    """Notes the weight seen, and where it lies, by every hook of a run."""

    seen: dict[str, list[float]] = field(factory=lambda: {"batch": [], "validate": [], "infer": []})
    places: dict[str, set[int]] = field(factory=lambda: {"batch": set(), "validate": set(), "infer": set()})

    def note(self, run: Run, where: str) -> None:
        """Note it."""
        weight = run.task.model.get_parameter("weight")
        self.seen[where].append(weight.item())
        self.places[where].add(weight.data_ptr())

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """The model's own."""
        self.note(run, "batch")

    @hookimpl
    def validate(self, run: Run) -> None:
        """What validation sees."""
        self.note(run, "validate")

    @hookimpl
    def infer(self, run: Run) -> None:
        """What inference sees."""
        self.note(run, "infer")


def net() -> nn.Sequential:
    """A small net with a buffer and a frozen weight."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    made.get_parameter("2.bias").requires_grad = False
    return made


def weight_of(run: Run) -> nn.Parameter:
    """The tiny model's."""
    return run.task.model.get_parameter("weight")


def test_first_update_with_a_fast_start(tmp_path: Path) -> None:
    """The first decay is 2/11, so from 0 towards 11 the average becomes 9."""
    ema = EMA()
    run = prepared(tmp_path, ema)
    weight_of(run).data.fill_(11.0)
    ema.after_batch()
    assert ema.decay_now() == 2 / 11
    assert ema.averages[0].item() == pytest.approx(9.0)


def test_fast_start_ends_at_the_decay(tmp_path: Path) -> None:
    """The n-th decay is the smaller of (1+n)/(10+n) and what was asked for: at n = 8 both are one half."""
    ema = EMA(decay=0.5)
    prepared(tmp_path, ema)
    found = []
    for _ in range(10):
        ema.after_batch()
        found.append(ema.decay_now())
    assert found == [(1 + n) / (10 + n) for n in range(1, 8)] + [0.5] * 3


@pytest.mark.parametrize("fast", [True, False])
def test_the_average_of_a_run_by_long_hand(tmp_path: Path, fast: bool) -> None:  # noqa: FBT001
    """Over eight steps w ← (w + x) / 2 the average is a ← d·a + (1 - d)·w."""
    ema = EMA(decay=0.7, faster_decay_at_start=fast)
    run = fake_run(tmp_path, ema)
    train(run)
    w = a = 0.0
    for n, x in enumerate(range(8), start=1):
        w = (w + x) / 2
        d = min(0.7, (1 + n) / (10 + n)) if fast else 0.7
        a = d * a + (1 - d) * w
    assert weight_of(run).item() == w
    assert ema.averages[0].item() == pytest.approx(a, rel=1e-6)
    assert ema.updates == 8


def test_agrees_with_torch(tmp_path: Path) -> None:
    """On a net whose weights wander, the averages are those of torch's AveragedModel; buffers are not averaged."""
    model = net()
    ema = EMA(decay=0.9, faster_decay_at_start=False)
    prepared(tmp_path, ema, task=TinyTask(model=model))
    oracle = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
    oracle.update_parameters(model)  # its first update copies, which is where we start
    for _ in range(20):
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p))
        ema.after_batch()
        oracle.update_parameters(model)
    expected = dict(oracle.module.named_parameters())
    assert ema.names == [name for name, p in model.named_parameters() if p.requires_grad]
    for name, average in zip(ema.names, ema.averages, strict=True):
        torch.testing.assert_close(average, expected[name].detach(), rtol=1e-5, atol=1e-6)


def test_buffers_and_frozen_weights_are_left_alone(tmp_path: Path) -> None:
    """What is not trained is neither averaged nor lent."""
    model = net()
    ema = EMA(decay=0.5)
    prepared(tmp_path, ema, task=TinyTask(model=model))
    model(torch.randn(8, 3))  # moves the running statistics
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    ema.after_batch()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "2.bias" not in ema.names
    with ema.lent():
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, own[name]) == (name not in ema.names), name


def test_validation_and_inference_see_the_average(tmp_path: Path) -> None:
    """Both see the average, training never does, and nothing is copied: two places change owners."""
    ema, peek = EMA(decay=0.5, faster_decay_at_start=False), Peek()
    run = fake_run(tmp_path, ema, peek, task=TinyTask(data={"train": TinyData(2)}), max_epochs=2)
    train(run)
    assert peek.seen["batch"] == [0.0, 0.5, 0.25, 0.625]
    assert peek.seen["validate"] == peek.seen["infer"] == [0.25, 0.4375]
    assert len(peek.places["batch"]) == len(peek.places["validate"]) == 1
    assert peek.places["validate"] == peek.places["infer"]
    assert peek.places["validate"].isdisjoint(peek.places["batch"])


def test_not_lent_if_not_wanted(tmp_path: Path) -> None:
    """With ``validate: false`` everybody sees the model's own weights, and the average is kept all the same."""
    ema, peek = EMA(decay=0.5, faster_decay_at_start=False, validate=False), Peek()
    run = fake_run(tmp_path, ema, peek, task=TinyTask(data={"train": TinyData(2)}))
    train(run)
    assert peek.seen["validate"] == peek.seen["infer"] == [0.5]
    assert ema.averages[0].item() == 0.25
    assert ema.validation_weights(run.task.model) is None
    assert ema.averaged_weights(run.task.model)["weight"].item() == 0.25


def test_weights_come_back_after_an_error(tmp_path: Path) -> None:
    """Validation may fail, the model has its own weights again."""

    class Failing:
        @hookimpl
        def validate(self, run: Run) -> None:
            assert weight_of(run).item() == 0.25
            raise RuntimeError("broken")

    ema = EMA(decay=0.5, faster_decay_at_start=False)
    run = fake_run(tmp_path, ema, Failing(), task=TinyTask(data={"train": TinyData(2)}))
    with pytest.raises(RuntimeError, match="broken"):
        train(run)
    assert weight_of(run).item() == 0.5
    assert ema.averages[0].item() == 0.25


def test_weights_come_back_after_a_stop(tmp_path: Path) -> None:
    """Asked to stop while validating, the model has its own weights at shutdown."""

    @define(eq=False)
    class Stopping:
        last: float = 0.0

        @hookimpl
        def validate(self, run: Run) -> None:
            run.stop("enough")

        @hookimpl
        def shutdown(self, run: Run) -> None:
            self.last = weight_of(run).item()

    stopping = Stopping()
    train(fake_run(tmp_path, EMA(), stopping, task=TinyTask(data={"train": TinyData(2)})))
    assert stopping.last == 0.5


def test_infers_after_validating(tmp_path: Path) -> None:
    """However often it is lent, the model holds its own weights in between."""
    ema = EMA(decay=0.5, faster_decay_at_start=False)
    run = prepared(tmp_path, ema)
    weight_of(run).data.fill_(4.0)
    ema.after_batch()
    for _ in range(2):
        run.hook.validate(run=run)
        run.hook.infer(run=run)
        assert (weight_of(run).item(), ema.averages[0].item()) == (4.0, 2.0)
    with ema.lent():
        assert weight_of(run).item() == 2.0
    assert weight_of(run).item() == 4.0


def test_the_optimizer_keeps_moving_the_models_own_weights(tmp_path: Path) -> None:
    """After a lend a step moves the weight, not the average."""
    ema = EMA(decay=0.5, faster_decay_at_start=False)
    run = prepared(tmp_path, ema)
    with ema.lent():
        pass
    run.hook.train_step(run=run, batch=torch.tensor([4.0]))
    assert (weight_of(run).item(), ema.averages[0].item()) == (2.0, 0.0)
    ema.after_batch()
    assert (weight_of(run).item(), ema.averages[0].item()) == (2.0, 1.0)


def test_state_round_trip_is_exact(tmp_path: Path) -> None:
    """Loaded into a fresh plugin, averages and count go on as if nothing had happened."""
    first, second = EMA(decay=0.9), EMA(decay=0.9)
    run = fake_run(tmp_path / "a", first, task=TinyTask(noise=1.0))
    train(run)
    other = prepared(tmp_path / "b", second)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    weight_of(other).data.copy_(weight_of(run).data)
    for ema in (first, second):
        ema.after_batch()
    assert second.updates == first.updates == 9
    assert second.averages[0].item() == first.averages[0].item()


def test_validation_weights_are_a_whole_state_dict(tmp_path: Path) -> None:
    """They load strictly: averages for what is trained, everything else as it is; the model is not changed."""
    model = net()
    ema = EMA(decay=0.5, faster_decay_at_start=False)
    prepared(tmp_path, ema, task=TinyTask(model=model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(2.0)
    ema.after_batch()
    weights = ema.validation_weights(model)
    assert weights is not None
    net().load_state_dict(weights)
    for name, tensor in weights.items():
        moved = {"2.bias": 2.0}.get(name, 1.0 if name in ema.names else 0.0)
        torch.testing.assert_close(tensor, before[name] + moved if moved else before[name])
    torch.testing.assert_close(model.get_parameter("0.weight").detach(), before["0.weight"] + 2.0)


def test_shared_weights_are_averaged_under_each_name(tmp_path: Path) -> None:
    """A weight with two names has its average under both, or loading would bring the raw one back."""
    layers = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    model = nn.Sequential(*layers)
    layers[1].weight = layers[0].weight
    with torch.no_grad():
        layers[0].weight.fill_(0.0)
    ema = EMA(decay=0.5, faster_decay_at_start=False)
    prepared(tmp_path, ema, task=TinyTask(model=model))
    with torch.no_grad():
        layers[0].weight.fill_(2.0)
    ema.after_batch()
    weights = ema.averaged_weights(model)
    assert weights["0.weight"].tolist() == weights["1.weight"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_impossible_decays_are_refused(decay: float) -> None:
    """A decay of one would never move."""
    with pytest.raises(ValueError, match="decay"):
        EMA(decay=decay)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_a_power_function_average_is_the_sum_over_all_weights_there_were(
    tmp_path: Path, sigma_rel: float
) -> None:
    """Along a random walk update i of t counts (i/t)^(γ+1) - ((i-1)/t)^(γ+1): what was there before counts nothing."""
    model, updates, gamma = net(), 300, exponent(sigma_rel)
    ema = EMA(sigma_rel=sigma_rel)
    prepared(tmp_path, ema, task=TinyTask(model=model))
    walk = []
    for _ in range(updates):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.after_batch()
        walk.append(model.get_parameter("0.weight").detach().double())
    edges = (torch.arange(updates + 1, dtype=torch.float64) / updates) ** (gamma + 1)
    expected = torch.einsum("i,ijk->jk", edges.diff(), torch.stack(walk))
    found = ema.averages[ema.names.index("0.weight")]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_the_first_update_of_a_power_function_takes_the_weights(tmp_path: Path) -> None:
    """Bit for bit, whatever the average was."""
    ema = EMA(sigma_rel=0.1)
    run = prepared(tmp_path, ema)
    ema.averages[0].fill_(1e6)
    weight_of(run).data.fill_(0.1)
    ema.after_batch()
    assert ema.averages[0].item() == weight_of(run).item()


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 12**-0.5, 1.0, float("nan")])
def test_an_impossible_width_is_refused(sigma_rel: float) -> None:
    """It says what is allowed."""
    with pytest.raises(ValueError, match=r"expected 0 < sigma_rel < 0\.2887 \(12\*\*-0\.5\), found"):
        EMA(sigma_rel=sigma_rel)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("decay: 0.99", "cfg.yaml:2: ema: decay and sigma_rel: two kinds of average; give one of them"),
        (
            "faster_decay_at_start: false",
            "cfg.yaml:2: ema: faster_decay_at_start and sigma_rel: two kinds of average; give one of them",
        ),
        ("decay: 2", "cfg.yaml:2: ema.decay: 'decay' must be < 1.0: 2.0"),
    ],
)
def test_a_width_and_a_decay_exclude_each_other(options: str, expected: str) -> None:
    """Neither is ignored in silence."""
    text = f"run: {{dir: x}}\nema: {{sigma_rel: 0.1, {options}}}"
    with pytest.raises(ConfigError) as raised:
        assemble(read(text, "cfg.yaml"), ["ema"])
    assert raised.value.problems == [expected]


def test_a_width_in_a_configuration_is_told_where_it_is_wrong() -> None:
    """With its place; and the options that are written down can be read again."""
    with pytest.raises(ConfigError, match=r"cfg\.yaml:2: ema\.sigma_rel: expected 0 < sigma_rel < 0\.2887"):
        assemble(read("run: {dir: x}\nema: {sigma_rel: 0.3}", "cfg.yaml"), ["ema"])
    whole = "{decay: 0.9999, faster_decay_at_start: true, validate: true, sigma_rel: 0.1}"
    assembly = assemble(read(f"run: {{dir: x}}\nema: {whole}", "cfg.yaml"), ["ema"])
    assert assembly.document["ema"] == {
        "decay": 0.9999,
        "faster_decay_at_start": True,
        "validate": True,
        "sigma_rel": 0.1,
    }


def test_two_averages_run_side_by_side(tmp_path: Path) -> None:
    """Each is what it would be alone, and validation sees the one that is lent."""
    alone = []
    for sigma_rel in (0.05, 0.2):
        train(fake_run(tmp_path / str(sigma_rel), ema := EMA(sigma_rel=sigma_rel), task=TinyTask(noise=1.0)))
        alone.append(ema.averages[0].item())
    narrow, wide = EMA(sigma_rel=0.05, validate=False), EMA(sigma_rel=0.2)
    run = fake_run(tmp_path / "both", narrow, wide, peek := Peek(), task=TinyTask(noise=1.0))
    train(run)
    assert [narrow.averages[0].item(), wide.averages[0].item()] == alone
    assert alone[0] != alone[1]
    assert peek.seen["validate"] == peek.seen["infer"] == [wide.averages[0].item()]
    assert weight_of(run).item() == peek.seen["batch"][-1]


TINY = """
import attrs
from hookloop import hookimpl

@attrs.define(eq=False)
class Tiny:
    @hookimpl
    def make_task(self):
        from hookloop.testing import TinyTask
        return TinyTask(noise=1.0)
"""


def test_two_averages_of_a_configuration_are_saved_under_their_names(tmp_path: Path, site: Site) -> None:
    """From the list and the sections to the states in the checkpoint."""
    site.install("tiny", TINY, {"hookloop": {"tiny": "tiny:Tiny"}})
    text = (
        f"run: {{dir: {tmp_path / 'run'}, device: cpu}}\n"
        "optimization: {optimizer: SGD, lr: 0.25}\n"
        "ema: {sigma_rel: 0.05, validate: false}\n"
        "ema@slow: {decay: 0.9}\n"
    )
    names = ["tiny", "optimization", "ema", "ema@slow", "checkpoint"]
    run = make_run(assemble(read(text, "cfg.yaml"), listing_of(names)), fake_run(tmp_path).events)
    train(run)
    states = cast(
        "dict[str, dict[str, dict[str, Tensor]]]",
        files.load(run.dir / "checkpoints" / "latest.ckpt")["plugins"],
    )
    ema, slow = (run.plugins[name] for name in ("ema", "ema@slow"))
    assert isinstance(ema, EMA)
    assert isinstance(slow, EMA)
    assert (ema.sigma_rel, slow.sigma_rel, slow.decay) == (0.05, None, 0.9)
    assert {name for name in states if name.startswith("ema")} == {"ema", "ema@slow"}
    assert states["ema"]["averages"]["weight"].item() == ema.averages[0].item()
    assert (
        states["ema@slow"]["averages"]["weight"].item() == slow.averages[0].item() != ema.averages[0].item()
    )


def test_only_one_average_can_be_validated_with(tmp_path: Path, site: Site) -> None:
    """The error names them and says what to set, before anything is trained."""
    site.install("tiny", TINY, {"hookloop": {"tiny": "tiny:Tiny"}})
    text = f"run: {{dir: {tmp_path / 'run'}, device: cpu}}\nema@raw: {{validate: false}}"
    names = ["tiny", "ema", "ema@raw", "ema@slow", "ema@slower", "optimization"]
    run = make_run(assemble(read(text, "cfg.yaml"), listing_of(names)), fake_run(tmp_path).events)
    with pytest.raises(HookloopError) as raised:
        train(run)
    assert str(raised.value) == (
        "ema and ema@slow and ema@slower: each is to be validated with, expected one average; "
        "set ema@slow.validate: false, ema@slower.validate: false"
    )
    assert run.progress.step == 0


def test_lent_within_itself_it_is_still_lent(tmp_path: Path) -> None:
    """Nothing is swapped back by accident, and in the end everything is where it was."""
    ema = EMA(decay=0.5, faster_decay_at_start=False)
    run = prepared(tmp_path, ema)
    weight_of(run).data.fill_(4.0)
    ema.after_batch()
    place = weight_of(run).data_ptr()
    with ema.lent():
        with ema.lent():
            assert weight_of(run).item() == 2.0
            assert ema.averaged_weights(run.task.model)["weight"].item() == 2.0
        assert weight_of(run).item() == 2.0
        assert cast("Mapping[str, Tensor]", ema.state_dict()["averages"])["weight"].item() == 2.0
    assert (weight_of(run).item(), ema.averages[0].item()) == (4.0, 2.0)
    assert weight_of(run).data_ptr() == place


def test_one_average_is_asked_for_while_another_is_lent(tmp_path: Path) -> None:
    """Each gives its own weights, and the loan goes on."""
    half, tenth = EMA(decay=0.5, faster_decay_at_start=False), EMA(decay=0.9, faster_decay_at_start=False)
    tenth.validate_with = False
    run = prepared(tmp_path, half, tenth)
    weight_of(run).data.fill_(10.0)
    for ema in (half, tenth):
        ema.after_batch()
    with half.lent():
        assert tenth.averaged_weights(run.task.model)["weight"].item() == pytest.approx(1.0)
        assert weight_of(run).item() == 5.0
    assert weight_of(run).item() == 10.0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"0.weight": False, "2.weight": False},
            "0.weight is trained no more; 2.weight is trained no more; ",
        ),
        ({"2.bias": True}, "2.bias is trained now; "),
    ],
)
def test_other_weights_that_are_trained_are_told_at_the_next_epoch(
    tmp_path: Path, change: dict[str, bool], expected: str
) -> None:
    """One that is frozen since would be averaged for nothing, one that is free since not at all."""
    model = net()
    run = prepared(tmp_path, EMA(), task=TinyTask(model=model))
    run.hook.before_epoch(run=run)
    for name, trained in change.items():
        model.get_parameter(name).requires_grad = trained
    with pytest.raises(HookloopError) as raised:
        run.hook.before_epoch(run=run)
    assert str(raised.value).startswith(
        f"ema: expected to average the weights that were trained at the start, found that {expected}"
    )


@pytest.mark.parametrize(
    ("averages", "expected"),
    [
        ({}, "0.weight is missing; 0.bias is missing; 1.weight is missing; expected"),
        (
            {"0.weight": torch.ones(4, 1), "0.bias": torch.ones(()), "1.weight": torch.ones(4)},
            "1.bias is missing; 2.weight is missing; 0.weight is (4, 1) there, (4, 3) here; expected",
        ),
    ],
)
def test_saved_averages_of_other_weights_are_refused(
    tmp_path: Path, averages: dict[str, Tensor], expected: str
) -> None:
    """The first ones that do not fit are named, and nothing is taken over."""
    ema = EMA()
    prepared(tmp_path, ema, task=TinyTask(model=net()))
    before = [average.clone() for average in ema.averages]
    with pytest.raises(HookloopError) as raised:
        ema.load_state_dict({"updates": 7, "averages": averages})
    assert str(raised.value).startswith(f"ema: saved averages of other weights: {expected}")
    assert ema.updates == 0
    assert all(torch.equal(one, other) for one, other in zip(ema.averages, before, strict=True))


def test_averages_of_weights_that_are_not_trained_here_are_left(tmp_path: Path) -> None:
    """Where another run trained more than this one, those it needs are enough."""
    ema = EMA()
    prepared(tmp_path, ema, task=TinyTask(model=net()))
    saved = {name: torch.full_like(a, 3.0) for name, a in zip(ema.names, ema.averages, strict=True)}
    ema.load_state_dict({"updates": 7, "averages": {**saved, "2.bias": torch.zeros(2)}})
    assert ema.updates == 7
    assert all((average == 3.0).all() for average in ema.averages)


@pytest.mark.parametrize("sigma_rel", [None, 0.1])
def test_an_average_says_how_it_came_about(tmp_path: Path, sigma_rel: float | None) -> None:
    """Plain data: width, updates, and every name of what is averaged, also the second one of a shared weight."""
    layers = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    model = nn.Sequential(*layers)
    layers[1].weight = layers[0].weight
    layers[2].bias.requires_grad = False
    ema = EMA(sigma_rel=sigma_rel)
    prepared(tmp_path, ema, task=TinyTask(model=model))
    ema.after_batch()
    facts = ema.average_facts()
    assert facts == {"sigma_rel": sigma_rel, "updates": 1, "names": ["0.weight", "1.weight", "2.weight"]}
    files.save(facts, tmp_path / "facts.ckpt")
    assert files.load(tmp_path / "facts.ckpt") == facts


def test_it_is_what_the_checkpoint_looks_for() -> None:
    """The protocols are checked when a run begins, so a method that is missing would only be missed then."""
    assert isinstance(EMA(), Averaging)
    assert isinstance(EMA(), Stateful)


@define(eq=False)
class StopAt:
    """Asks the run to stop after a batch."""

    step: int

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Stop there."""
        if run.progress.step == self.step:
            run.stop("enough", 75)


def side_by_side(directory: Path, *extra: object) -> Run:
    """A run with a power-function average and an exponential one, three batches an epoch."""
    task = TinyTask(data={"train": TinyData(8, 3), "validation": TinyData(2)}, noise=1.0)
    averages = (EMA(sigma_rel=0.15, validate=False), EMA(decay=0.8))
    return fake_run(directory, *averages, *extra, Checkpoint(), task=task, max_epochs=2)


def averages_in(directory: Path) -> list[tuple[int, float]]:
    """Give updates and value of each average in the last state."""
    plugins = cast("dict[str, object]", files.load(directory / "checkpoints" / "latest.ckpt")["plugins"])
    states = [cast("dict[str, object]", state) for name, state in plugins.items() if name.startswith("ema")]
    return [
        (cast("int", state["updates"]), cast("dict[str, Tensor]", state["averages"])["weight"].item())
        for state in states
    ]


@pytest.mark.parametrize("step", range(1, 7))
def test_two_averages_go_on_exactly_after_a_stop(tmp_path: Path, step: int) -> None:
    """Stopped after any batch, both end bit for bit as in the run that was not stopped."""
    train(side_by_side(tmp_path / "whole"))
    train(side_by_side(tmp_path / "parts", StopAt(step)))
    assert {updates for updates, _ in averages_in(tmp_path / "parts")} == {step}
    train(again := side_by_side(tmp_path / "parts"))
    expected = averages_in(tmp_path / "whole")
    assert averages_in(tmp_path / "parts") == expected
    assert [updates for updates, _ in expected] == [6, 6]
    assert expected[0] != expected[1]
    assert [event["step"] for event in events_of(again) if event["event"] == "run.resumed"] == [step]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:.*ynchronization debug mode")
@pytest.mark.parametrize("options", [{}, {"sigma_rel": 0.1}])
def test_the_gpu_is_not_waited_for(tmp_path: Path, options: dict[str, float]) -> None:
    """An update is one foreach operation, dozens of tensors a kernel; nothing waits for the device."""
    n = 200
    task = TinyTask(model=nn.ParameterList([nn.Parameter(torch.zeros(3, device="cuda")) for _ in range(n)]))
    prepared(tmp_path, ema := EMA(**options), task=task)  # type: ignore[arg-type]
    ema.after_batch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
        ) as profile:
            ema.after_batch()
        with ema.lent():
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
    kernels = [event.name for event in profile.events() if event.name.startswith("void ")]
    assert all("multi_tensor_apply" in name for name in kernels)
    assert 1 <= len(kernels) <= n / 30
