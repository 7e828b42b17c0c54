"""With which network a member is drawn, and that it is the same field in any company."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hookloop import files, train, warm_start, yamlfile
from hookloop.cli import main
from hookloop.config import build
from hookloop.diffusion_options import SolverConfig
from hookloop.errors import ConfigError, HookloopError
from hookloop.graphs import Replays
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.downscaling import Downscaling
from hookloop.plugins.downscaling.model import DownscalingTask
from hookloop.plugins.downscaling.sample import write
from hookloop.plugins.downscaling.sampling import Networks, restored
from hookloop.plugins.downscaling.synthetic import Recipe
from hookloop.plugins.ema import EMA
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.task import Window
from hookloop.testing import events_of, fake_run, prepared

CASES = [0, 2]
STOCHASTIC = [
    {"solver": "heun", "churn": 3.0, "churn_min": 0.01, "churn_max": 30.0, "churn_noise": 1.003},
    {"solver": "dpmpp_2m_sde"},
]


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files of the synthetic data: 16x16 fine, 4x4 coarse, 12 and 6 hours."""
    directory = tmp_path_factory.mktemp("sampling") / "data"
    write(directory, Recipe(n=16, factor=4), 12, 6, 0)
    return directory


def plugin(sample: Path, *, channels: int = 8, **changes: Any) -> Downscaling:
    """Options of a small model of the sample data."""
    backbone = {"name": "unet", "channels": channels, "multipliers": [1, 2], "blocks": 1, "attention": False}
    model = {"inputs": ["t2m"], "outputs": ["t2m"], "backbone": backbone} | changes.pop("model", {})
    splits = {
        split: {"coarse": [str(sample / coarse)], "fine": [str(sample / fine)]}
        for split, coarse, fine in (
            ("train", "train_coarse.zarr", "train_fine.zarr"),
            ("validation", "validation_coarse.nc", "validation_fine.nc"),
        )
    }
    section = {**splits, "model": model, "sampler": {"steps": 4}} | changes
    return build(Downscaling, yamlfile.Document({"downscaling": section}), "downscaling")  # type: ignore[dict-item]


def task(sample: Path, directory: Path, **changes: Any) -> DownscalingTask:
    made = prepared(directory, plugin(sample, **changes)).task
    assert isinstance(made, DownscalingTask)
    made.model.eval()
    return made


def trained(directory: Path, *plugins: object, seed: int = 0) -> Path:
    """Train for an epoch, and tell where the checkpoints are."""
    train(fake_run(directory, *plugins, OptimizationPlugin(lr=0.05), Checkpoint(), seed=seed))
    return directory / "checkpoints"


@pytest.fixture(scope="session")
def other(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of another run, with another network and inputs of its own."""
    made = plugin(sample, channels=12, statics=[{"path": str(sample / "static.nc"), "variable": "terrain"}])
    return trained(tmp_path_factory.mktemp("other"), made, seed=5) / "best.ckpt"


@pytest.fixture(scope="session")
def third(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of one more."""
    return trained(tmp_path_factory.mktemp("third"), plugin(sample), seed=6) / "best.ckpt"


def generated(made: DownscalingTask, seeds: list[list[int]], first: int = 0, cases: Any = CASES) -> Tensor:
    with torch.no_grad():
        paired, _ = made.predict_paired(None, Window("validation", cases), seeds, first)
    return paired.prediction["t2m"]


class Pixelwise(nn.Module):
    """The best denoiser of white fields: nothing is added up, so nothing is rounded in another order."""

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        return x / (1 + sigma.square()).view(-1, 1, 1, 1) + 0.01 * condition[:, :1]


SEEDS = [[11, 12, 13, 14], [21, 22, 23, 24]]


def rerun(work: Any) -> tuple[Any, Tensor]:
    """Record as a CUDA graph does: no number is there before a replay, which writes to the same place."""
    answer = torch.full_like(work(), torch.nan)
    return lambda: answer.copy_(work()), answer


def test_repeated_generations_are_the_same_fields(
    sample: Path, tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other cases and members, in bfloat16, with an ensemble, an expert, and other weights in the same place."""
    experts = [{"checkpoint": str(other), "sigma_min": 1.0}]
    sampler = {"steps": 4, "ensemble": [str(other)], "experts": experts}
    usual = task(sample, tmp_path / "a", sampler=sampler)
    made = task(sample, tmp_path / "b", sampler={**sampler, "compile": "graph"})
    monkeypatch.setattr(Networks, "_repeats", lambda *_: True)  # a CPU has no graphs
    made.networks.replays = Replays(rerun)
    for turn in range(4):
        seeds = [[100 * turn + seed for seed in case] for case in SEEDS]
        cases = [turn, turn + 2]
        for each in (usual, made):
            with torch.no_grad():
                each.model.denoiser.backbone.get_parameter("stem.weight").mul_(0.9)
        with torch.autocast("cpu", torch.bfloat16):
            found = generated(made, seeds, cases=cases)
            with monkeypatch.context() as patch:
                patch.setattr(Networks, "_repeats", lambda *_: False)
                assert torch.equal(found, generated(usual, seeds, cases=cases))
        assert made.networks.replays.recorded == (2 if turn else 0)  # one for each network of the ensemble
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        generated(made, SEEDS)
    assert made.networks.replays.recorded == 2  # in another precision it has come once


def test_where_no_graphs_are_fields_are_generated_as_ever(sample: Path, tmp_path: Path) -> None:
    """And it is told, once."""
    run = prepared(tmp_path, plugin(sample, sampler={"steps": 4, "compile": "graph"}))
    assert isinstance(run.task, DownscalingTask)
    run.task.model.eval()
    for _ in range(2):
        assert torch.equal(generated(run.task, SEEDS), generated(task(sample, tmp_path / "b"), SEEDS))
    told = [event["why"] for event in events_of(run) if event["event"] == "sampler.not_compiled"]
    assert told == ["cpu has no CUDA graphs"]


@pytest.mark.parametrize("options", STOCHASTIC, ids=["churn", "sde"])
def test_a_graph_of_a_sampler_that_draws_is_refused(sample: Path, options: dict[str, object]) -> None:
    """It would hold one noise for ever."""
    with pytest.raises(ConfigError, match=r"compile: found graph, but solver .* draws noise"):
        plugin(sample, sampler={"steps": 4, "compile": "graph", **options})


@pytest.mark.parametrize("options", STOCHASTIC, ids=["churn", "sde"])
@pytest.mark.parametrize("pixelwise", [True, False], ids=["pixelwise", "network"])
def test_a_stochastic_member_is_the_same_alone_in_pairs_and_with_all(
    sample: Path, tmp_path: Path, options: dict[str, object], *, pixelwise: bool
) -> None:
    """To the bit where a pixel depends on itself alone; a network's sums are rounded in another order."""
    made = task(sample, tmp_path, sampler={"steps": 6, **options})
    if pixelwise:
        made.model.denoiser = Pixelwise()  # type: ignore[assignment]
    whole = generated(made, SEEDS)
    pairs = torch.cat([generated(made, [case[i : i + 2] for case in SEEDS], i) for i in (0, 2)], 1)
    alone = torch.stack(
        [
            torch.stack([generated(made, [[seed]], i, [n])[0, 0] for i, seed in enumerate(case)])
            for n, case in zip(CASES, SEEDS, strict=True)
        ]
    )
    assert whole.std(1).min() > 1e-3
    for found in (pairs, alone):
        torch.testing.assert_close(found, whole, rtol=0, atol=0 if pixelwise else 2e-3)


def test_what_is_drawn_on_the_way_is_each_members_own(sample: Path, tmp_path: Path) -> None:
    """A stochastic member differs from a deterministic one of its seed, and from its neighbour's noise."""
    sampler = {"steps": 6, "solver": "dpmpp_2m_sde"}
    stochastic = generated(task(sample, tmp_path / "a", sampler=sampler), SEEDS)
    still = generated(task(sample, tmp_path / "b", sampler={**sampler, "eta": 0.0}), SEEDS)
    plain = generated(task(sample, tmp_path / "c", sampler={**sampler, "solver": "dpmpp_2m"}), SEEDS)
    assert torch.equal(still, plain)
    assert (stochastic - still).abs().max() > 0.1


def test_members_take_turns_in_an_ensemble_of_networks(
    sample: Path, tmp_path: Path, other: Path, third: Path
) -> None:
    """Member k is drawn by network k mod 3, the run's own being the first, as that network draws it alone."""
    ensemble = [str(other), str(third)]
    made = task(sample, tmp_path / "a", sampler={"steps": 4, "ensemble": ensemble})
    alone = [generated(task(sample, tmp_path / "b"), SEEDS)]
    for path in (other, third):
        model = restored(path, warm_start.read(path))
        single = task(sample, tmp_path / path.parent.parent.name)
        single.model = model
        single.networks.model = model
        alone.append(generated(single, SEEDS))
    whole = generated(made, SEEDS)
    for member in range(4):
        torch.testing.assert_close(whole[:, member], alone[member % 3][:, member], rtol=0, atol=2e-3)
        assert (whole[:, member] - alone[(member + 1) % 3][:, member]).abs().max() > 0.02
    later = generated(made, [case[1:] for case in SEEDS], first=1)
    torch.testing.assert_close(later, whole[:, 1:], rtol=0, atol=2e-3)


def test_an_ensemble_may_have_more_networks_than_members(
    sample: Path, tmp_path: Path, other: Path, third: Path
) -> None:
    """Then some are not asked."""
    made = task(sample, tmp_path, sampler={"steps": 4, "ensemble": [str(other), str(third)]})
    few = generated(made, [case[:2] for case in SEEDS])
    torch.testing.assert_close(few, generated(made, SEEDS)[:, :2], rtol=0, atol=2e-3)


class Noting(nn.Module):
    """Notes at which noise levels it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        self.asked.append(sigma[0].item())
        return x / (1 + sigma.square()).view(-1, 1, 1, 1)


def test_experts_denoise_from_their_noise_level_up_to_the_next_ones(
    sample: Path, tmp_path: Path, other: Path, third: Path
) -> None:
    """Every level is asked of one network alone: that with the highest sigma_min at or below it."""
    levels = {"steps": 9, "schedule": "log_linear", "sigma_min": 0.01, "sigma_max": 100.0}
    experts = [{"checkpoint": str(other), "sigma_min": 9.9}, {"checkpoint": str(third), "sigma_min": 0.5}]
    made = task(sample, tmp_path, sampler={**levels, "experts": experts})
    generated(made, SEEDS)  # so that they are read
    nets = {"own": made.model, "other": made.networks.others[other], "third": made.networks.others[third]}
    noting = {name: Noting() for name in nets}
    for name, net in nets.items():
        net.denoiser = noting[name]  # type: ignore[assignment]
    generated(made, SEEDS)
    sigmas = [100 * 10 ** (-i / 2) for i in range(9)]
    assert noting["other"].asked == pytest.approx(sigmas[:3], rel=1e-5)
    assert noting["third"].asked == pytest.approx(sigmas[3:5], rel=1e-5)
    assert noting["own"].asked == pytest.approx(sigmas[5:], rel=1e-5)


def test_an_expert_is_asked_at_its_own_sigma_min(sample: Path, tmp_path: Path, other: Path) -> None:
    """A level that is exactly where its range begins belongs to it."""
    levels = {"steps": 5, "sigma_min": 0.01, "sigma_max": 100.0}
    sigmas = SolverConfig(**levels).levels()[:-1]  # type: ignore[arg-type]
    experts = [{"checkpoint": str(other), "sigma_min": sigmas[2]}]
    made = task(sample, tmp_path, sampler={**levels, "experts": experts})
    generated(made, SEEDS)  # so that it is read
    own, expert = Noting(), Noting()
    made.model.denoiser = own  # type: ignore[assignment]
    made.networks.others[other].denoiser = expert  # type: ignore[assignment]
    generated(made, SEEDS)
    assert expert.asked == pytest.approx(sigmas[:3], rel=1e-6)
    assert own.asked == pytest.approx(sigmas[3:], rel=1e-6)


def test_experts_change_what_is_generated_and_lie_outside_the_model(
    sample: Path, tmp_path: Path, other: Path
) -> None:
    """Neither trained nor saved with it."""
    made = task(
        sample, tmp_path, sampler={"steps": 4, "experts": [{"checkpoint": str(other), "sigma_min": 0.1}]}
    )
    before = set(made.model.state_dict())
    with_expert = generated(made, SEEDS)
    assert set(made.model.state_dict()) == before
    (expert,) = made.networks.others.values()
    assert not any(p.requires_grad for p in expert.parameters())
    assert not expert.training
    assert (with_expert - generated(task(sample, tmp_path / "b"), SEEDS)).abs().max() > 0.02


def test_the_averages_that_were_validated_with_are_taken(sample: Path, tmp_path: Path) -> None:
    """latest.ckpt holds them beside the weights; a file of weights holds them alone; both give the same network.

    Averages that were not validated with are left.
    """
    where = trained(tmp_path / "a", plugin(sample), EMA(decay=0.5))
    latest = restored(where / "latest.ckpt", warm_start.read(where / "latest.ckpt")).state_dict()
    best = restored(where / "best.ckpt", warm_start.read(where / "best.ckpt")).state_dict()
    raw = files.load(where / "latest.ckpt")["model"]
    assert isinstance(raw, dict)
    assert all(torch.equal(latest[name], best[name]) for name in best)
    assert any(not torch.equal(latest[name], raw[name]) for name in raw)

    where = trained(tmp_path / "b", plugin(sample), EMA(decay=0.5, validate=False))
    latest = restored(where / "latest.ckpt", warm_start.read(where / "latest.ckpt")).state_dict()
    raw = files.load(where / "latest.ckpt")["model"]
    assert isinstance(raw, dict)
    assert all(torch.equal(latest[name], raw[name]) for name in raw)


def test_which_weights_another_network_brought_is_told(sample: Path, tmp_path: Path) -> None:
    """Once for each, when it is read: the averages beside the weights, or what the file holds."""
    where = trained(tmp_path / "a", plugin(sample), EMA(decay=0.5))
    raw = trained(tmp_path / "b", plugin(sample), EMA(decay=0.5, validate=False))
    ensemble = [where / "latest.ckpt", where / "best.ckpt"]
    experts = [{"checkpoint": str(raw / "latest.ckpt"), "sigma_min": 1.0}]
    run = prepared(
        tmp_path / "c",
        plugin(
            sample, sampler={"steps": 4, "ensemble": [str(path) for path in ensemble], "experts": experts}
        ),
    )
    assert isinstance(run.task, DownscalingTask)
    for _ in range(2):
        generated(run.task, SEEDS)
    told = {event["path"]: event["weights"] for event in events_of(run) if event["event"] == "network.read"}
    assert told == {
        str(ensemble[0]): "averages of ema in latest.ckpt",
        str(ensemble[1]): "those of best.ckpt, as they were validated",
        str(raw / "latest.ckpt"): "those of latest.ckpt, not averaged",
    }
    assert sum(event["event"] == "network.read" for event in events_of(run)) == 3


def test_a_model_with_transforms_is_restored(sample: Path, tmp_path: Path) -> None:
    """Knots are among its weights, and their number is known from them."""
    made = plugin(sample, transforms={"t2m": {"name": "quantile"}})
    path = trained(tmp_path / "a", made) / "best.ckpt"
    state = files.load(path)["model"]
    assert isinstance(state, dict)
    model = restored(path, warm_start.read(path))
    assert any(name.endswith(".values") for name in state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"residual": False}}, "residual False there, True here"),
        ({"transforms": {"t2m": {"name": "sqrt"}}}, "other transforms"),
        (
            {"normalization": {"means": {"t2m": 280.0}, "stds": {"t2m": 9.0}}},
            r"another scale of the inputs, mean \[280",
        ),
    ],
    ids=["residual", "transforms", "scale"],
)
def test_networks_that_generate_something_else_are_refused(
    sample: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Before anything is learnt; the message names the option, the file and what differs."""
    path = trained(tmp_path / "odd", plugin(sample, **changes)) / "best.ckpt"
    experts = [{"checkpoint": str(path), "sigma_min": 1.0}]
    for option, sampler in (
        ("ensemble[0]", {"ensemble": [str(path)]}),
        ("experts[0].checkpoint", {"experts": experts}),
    ):
        said = re.escape(f"downscaling.sampler.{option}: {path}: a checkpoint of another model")
        run = fake_run(
            tmp_path / option, plugin(sample, sampler={"steps": 4, **sampler}), OptimizationPlugin()
        )
        with pytest.raises(HookloopError, match=rf"^{said}.*{message}"):
            train(run)
        assert run.progress.step == 0


@pytest.mark.parametrize("what", ["inputs", "target"])
@pytest.mark.parametrize("moment", ["mean", "std"])
def test_a_scale_that_differs_in_one_moment_is_another_scale(
    sample: Path, tmp_path: Path, third: Path, what: str, moment: str
) -> None:
    """By 1 % of a standard deviation either is told; rounding, a thousandth of that, is none."""
    made = task(sample, tmp_path, sampler={"steps": 4, "ensemble": [str(third)]})
    side = what.removesuffix("s")
    found, std = (getattr(made.model, f"{side}_{name}") for name in (moment, "std"))
    exact = found.clone()
    found.copy_(exact + 1e-5 * std)
    generated(made, SEEDS)
    made.networks.fitting.clear()
    found.copy_(exact + 0.01 * std)
    with pytest.raises(HookloopError, match=f"another scale of the {what}"):
        generated(made, SEEDS)


def test_networks_of_another_grid_are_refused(sample: Path, tmp_path: Path) -> None:
    """With both extents."""
    write(tmp_path / "wide", Recipe(n=24, factor=4), 4, 2, 0)
    path = trained(tmp_path / "odd", plugin(tmp_path / "wide")) / "best.ckpt"
    with pytest.raises(
        HookloopError, match=r"another grid, .* \(24\) by .* \(24\) there, .* \(16\) by .* \(16\) here"
    ):
        task(sample, tmp_path / "run", sampler={"steps": 4, "ensemble": [str(path)]})


def test_checkpoints_of_anything_else_are_refused(sample: Path, tmp_path: Path) -> None:
    """Missing files, another task's and damaged ones, all when the task is made."""
    with pytest.raises(
        HookloopError, match=r"sampler\.ensemble\[0\]: .*absent\.ckpt: cannot be read: No such file"
    ):
        task(sample, tmp_path / "a", sampler={"ensemble": [str(tmp_path / "absent.ckpt")]})
    experts = [{"checkpoint": str(tmp_path / "absent.ckpt"), "sigma_min": 1.0}]
    with pytest.raises(HookloopError, match=r"sampler\.experts\[0\]\.checkpoint: .*absent\.ckpt: cannot be"):
        task(sample, tmp_path / "b", sampler={"experts": experts})

    train(fake_run(tmp_path / "tiny", Checkpoint()))
    tiny = tmp_path / "tiny" / "checkpoints" / "latest.ckpt"
    with pytest.raises(HookloopError, match="no section downscaling"):
        task(sample, tmp_path / "c", sampler={"ensemble": [str(tiny)]})

    whole = tiny.read_bytes()
    tiny.write_bytes(whole[:100] + b"?" + whole[101:])
    with pytest.raises(HookloopError, match=r"sampler\.ensemble\[0\]: .*do not match their checksum"):
        task(sample, tmp_path / "d", sampler={"ensemble": [str(tiny)]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"churn": 1.0}, "churn: found 1.0, but solver dpmpp_2m has no churn; expected heun"),
        ({"solver": "heun", "churn_max": 5.0}, "churn_max: found 5.0, but churn is 0"),
        (
            {"solver": "heun", "churn": 1.0, "churn_min": 2.0, "churn_max": 1.0},
            "churn_min: found 2.0, and churn_max 1.0, but none of the 18 noise levels",
        ),
        ({"solver": "heun", "eta": 0.5}, "eta: found 0.5, but solver heun has none; expected dpmpp_2m_sde"),
        ({"schedule": "log_linear", "rho": 5.0}, "rho: found 5.0, but schedule log_linear has none"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "expected more than sigma_min"),
        (
            {"experts": [{"checkpoint": "a", "sigma_min": 100.0}]},
            "between the sampler's 0.002 and 80.0, found 100.0",
        ),
        (
            {"experts": [{"checkpoint": "a", "sigma_min": 1.0}, {"checkpoint": "b", "sigma_min": 1.0}]},
            "a sigma_min each of their own",
        ),
        ({"experts": [{"checkpoint": "a"}]}, r"experts\[0\]\.sigma_min: missing"),
        ({"solver": "eulr"}, "did you mean 'euler'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    sample: Path, options: dict[str, Any], message: str
) -> None:
    """A configuration error says what was found and what would make sense of it."""
    with pytest.raises(ConfigError, match=message):
        plugin(sample, sampler=options)


def test_other_networks_generate_in_evaluations_too(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: Path, third: Path
) -> None:
    """``hookloop evaluate`` with an ensemble or an expert gives other scores than without, and the same again."""
    small = {
        "run.dir": str(tmp_path / "run"),
        "run.device": "cpu",
        "downscaling.model": "{inputs: [t2m], outputs: [t2m], backbone: {name: unet, channels: 8, multipliers: [1, 2], "
        "blocks: 1, attention: false}}",
        "downscaling.statics": "[]",
        "downscaling.sampler": "{steps: 4}",
        "run.max_epochs": 1,
        "run.validate_every": "1 epoch",
        "generation": "{members: 4, windows: 2, figures: 0}",
    }

    def hookloop(*arguments: object, **more: object) -> dict[str, float]:
        sets = [part for key, value in (small | more).items() for part in ("--set", f"{key}={value}")]
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), *sets])
        assert ended.value.code == 0, capsys.readouterr().err
        return {
            key: float(value)
            for key, value in re.findall(r"^(\S+) (\S+)$", capsys.readouterr().out, re.MULTILINE)
        }

    config = sample / "cfg.yaml"
    hookloop("run", config)
    scores = {}
    for name, sampler in {
        "own": "{steps: 4}",
        "ensemble": f"{{steps: 4, ensemble: [{other}, {third}]}}",
        "again": f"{{steps: 4, ensemble: [{other}, {third}]}}",
        "expert": f"{{steps: 4, experts: [{{checkpoint: {other}, sigma_min: 1.0}}]}}",
    }.items():
        where = ("--dir", tmp_path / name)
        found = hookloop(
            "evaluate",
            tmp_path / "run" / "checkpoints" / "best.ckpt",
            config,
            *where,
            **{"downscaling.sampler": sampler},
        )
        scores[name] = found["inference/crps/t2m"]
    assert scores["ensemble"] == scores["again"]
    assert len(set(scores.values())) == 3
