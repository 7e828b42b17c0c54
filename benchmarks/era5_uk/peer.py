"""Train the downscaling model of fme on the data of examples/era5_uk.yaml and generate the test hours with it.

    python benchmarks/era5_uk/peer.py DATA OUT --seconds 300

DATA is the folder of coarse.nc, fine.nc and static.nc. Needs fme 2026.10.0 and dacite, in an environment of its own
or beside hookloop; packages that fme imports for other models, logs and maps are replaced by nothing where they are
not there.

What is fme's own: network, preconditioning, loss, optimizer (Adam, a constant rate, no clipping), averages, the epoch
of its trainer, the sampler (18 Heun steps, 35 evaluations). Its defaults hold but for the size of the network, chosen
for as many weights as hookloop's (2,475,361 against 2,472,961), ``use_apex_gn``, which needs a package that it does not
ask for, and ``predict_residual``, which has no default. What it is given like hookloop: the coarse field, land
fraction, latitude, longitude and the hour. What it is spared: reading (all hours lie on the device), validation while
training, checkpoints, and figures but for those at the marks, whose time is not counted. Nor is the time to generate.

The averages are generated with at several marks of the time, so that over-fitting shows: the best of them on the test
days themselves flatters fme. Score them with benchmarks/era5_uk/score.py.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import time
import types
from collections.abc import Sequence  # noqa: TC003 - annotates a class
from pathlib import Path

import numpy as np
import torch
import xarray as xr

UNUSED = ("wandb", "torch_harmonics", "tensorly", "tltorch", "cartopy", "netCDF4", "omegaconf")
"""What fme imports but its downscaling neither trains nor samples with."""
SHIFT = 10.0
"""Degrees east by which the domain is moved: fme refuses longitudes that cross 0°."""


class _Nothing:
    def __init__(self, *_args: object, **_options: object) -> None:
        pass

    def __call__(self, *_args: object, **_options: object) -> None:
        return None


class _Empty(types.ModuleType):
    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


class _Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds, last of all, empty modules in place of packages that are not installed."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in UNUSED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


sys.meta_path.append(_Unused())

from fme.core.coordinates import LatLonCoordinates  # noqa: E402
from fme.core.device import get_device  # noqa: E402
from fme.core.distributed import Distributed  # noqa: E402
from fme.core.ema import EMAConfig  # noqa: E402
from fme.core.logging_utils import LoggingConfig  # noqa: E402
from fme.core.loss import LossConfig  # noqa: E402
from fme.core.normalizer import NormalizationConfig  # noqa: E402
from fme.core.optimization import OptimizationConfig  # noqa: E402
from fme.downscaling.data import PairedBatchData  # noqa: E402
from fme.downscaling.data.datasets import BatchData  # noqa: E402
from fme.downscaling.data.static import StaticInput, StaticInputs  # noqa: E402
from fme.downscaling.data.utils import BatchedLatLonCoordinates  # noqa: E402
from fme.downscaling.models import DiffusionModelConfig, PairedNormalizationConfig  # noqa: E402
from fme.downscaling.modules.diffusion_registry import DiffusionModuleRegistrySelector  # noqa: E402
from fme.downscaling.noise import LogNormalNoiseDistribution  # noqa: E402
from fme.downscaling.train import Trainer, TrainerConfig  # noqa: E402


class Hours:
    """All hours of a split on the device; stands in for fme's PairedGriddedData."""

    dims = ["lat", "lon"]  # noqa: RUF012 - as fme names them

    def __init__(self, coarse: xr.Dataset, fine: xr.Dataset, batch_size: int, seed: int) -> None:
        self.times = fine["time"]
        self.coarse = {name: _tensor(coarse[name]) for name in coarse.data_vars}
        self.fine = {name: _tensor(fine[name]) for name in fine.data_vars}
        self.coarse_coords, self.fine_coords = _coordinates(coarse), _coordinates(fine)
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.until = 0.0
        self.batches = 0

    def batch(self, hours: torch.Tensor) -> PairedBatchData:
        """The *hours*, by number, as fme's loader gives them."""
        times = self.times[hours.numpy()].rename(time="batch")
        on_device = hours.to(get_device())

        def part(fields: dict[str, torch.Tensor], coords: LatLonCoordinates) -> BatchData:
            rows, columns = (c.expand(len(hours), -1) for c in (coords.lat, coords.lon))
            chosen = {name: field[on_device] for name, field in fields.items()}
            return BatchData(chosen, times, BatchedLatLonCoordinates(rows, columns))

        return PairedBatchData(part(self.fine, self.fine_coords), part(self.coarse, self.coarse_coords))

    def get_generator(self):  # noqa: ANN201 - fme's name and signature
        """Shuffled batches, whole ones only, pass after pass until the time is up."""
        while True:
            order = torch.randperm(len(self.times), generator=self.generator)
            for hours in order.split(self.batch_size):
                if time.monotonic() > self.until:
                    return
                if len(hours) == self.batch_size:
                    self.batches += 1
                    yield self.batch(hours)


def _tensor(field: xr.DataArray) -> torch.Tensor:
    return torch.tensor(field.values, dtype=torch.float32, device=get_device())


def _coordinates(data: xr.Dataset) -> LatLonCoordinates:
    return LatLonCoordinates(
        lat=torch.tensor(data.latitude.values, dtype=torch.float32, device=get_device()),
        lon=torch.tensor(data.longitude.values, dtype=torch.float32, device=get_device()),
    )


def opened(folder: Path, name: str) -> xr.Dataset:
    """A file as fme wants it: latitude ascending, longitude within 0 and 360°."""
    with xr.open_dataset(folder / name, engine="h5netcdf") as file:
        data = file.load().sortby("latitude").astype("float32")
    return data.assign_coords(longitude=data.longitude + SHIFT)


def with_hour(coarse: xr.Dataset) -> xr.Dataset:
    """*coarse* and, as fields, sine and cosine of the hour in local solar time: what hookloop is given too."""
    angle = 2 * np.pi * (coarse.time.dt.hour / 24 + (coarse.longitude - SHIFT) / 360)
    like = xr.zeros_like(coarse.t2m)
    return coarse.assign(hour_sin=like + np.sin(angle), hour_cos=like + np.cos(angle)).astype("float32")


def statics(land: xr.Dataset) -> StaticInputs:
    """Land fraction, latitude and longitude, normalised as fme does it."""
    share = land.land_fraction
    fields = [share, share * 0 + share.latitude, share * 0 + share.longitude]
    normalised = [StaticInput(_tensor((field - field.mean()) / field.std())) for field in fields]
    return StaticInputs(normalised, _coordinates(land))


def scale(data: xr.Dataset) -> NormalizationConfig:
    """Mean and standard deviation of each variable."""
    return NormalizationConfig(
        means={name: float(data[name].mean()) for name in data.data_vars},
        stds={name: float(data[name].std()) for name in data.data_vars},
    )


def make_trainer(options: argparse.Namespace, train: Hours, coarse: xr.Dataset, fine: xr.Dataset) -> Trainer:
    """Put fme's parts together as its TrainerConfig.build does."""
    network = {"model_channels": 32, "channel_mult": [1, 2, 2, 2], "num_blocks": 2, "use_apex_gn": False}
    if options.network == "unet_diffusion_song":
        del network["use_apex_gn"]
    config = DiffusionModelConfig(
        module=DiffusionModuleRegistrySelector(options.network, {**network, **json.loads(options.options)}),
        loss=LossConfig(),
        in_names=list(coarse.data_vars),
        out_names=["t2m"],
        normalization=PairedNormalizationConfig(fine=scale(fine), coarse=scale(coarse)),
        sigma_min=0.002,
        sigma_max=80.0,
        churn=0.0,
        num_diffusion_generation_steps=18,
        predict_residual=True,
        use_fine_topography=options.inputs == "all",
        training_noise_distribution=LogNormalNoiseDistribution(p_mean=-1.2, p_std=1.2),
    )
    land = statics(opened(options.data, "static.nc")) if options.inputs == "all" else None
    shape = next(iter(train.coarse.values())).shape[-2:]
    factor = len(train.fine_coords.lat) // len(train.coarse_coords.lat)
    model = config.build(tuple(shape), factor, full_fine_coords=train.fine_coords, static_inputs=land)
    optimization = OptimizationConfig(optimizer_type="Adam", lr=options.lr)
    trainer_config = TrainerConfig(
        model=config,
        optimization=optimization,
        train_data=None,  # type: ignore[arg-type]  # given below
        validation_data=None,  # type: ignore[arg-type]
        max_epochs=1,
        experiment_dir=str(options.out / "fme"),
        save_checkpoints=False,
        logging=LoggingConfig(log_to_wandb=False),
        ema=EMAConfig(decay=options.ema),
    )
    return Trainer(model, optimization.build([model.module], max_epochs=1), train, train, trainer_config)  # type: ignore[arg-type]


def train_to(trainer: Trainer, hours: Hours, seconds: float) -> float:
    """One epoch of fme's trainer that lasts so long, its figures not counted; how long it lasted."""
    began = time.monotonic()
    hours.until = began + seconds
    trainer.train_one_epoch()
    return hours.until - began


def generate(trainer: Trainer, test: Hours, members: int, batch: int) -> np.ndarray:
    """Members of every hour by fme's sampler, averaged weights: ``[time, member, lat, lon]``, K."""
    found = []
    trainer.model.module.eval()
    with torch.no_grad(), trainer._ema_context():  # noqa: SLF001 - as it validates
        for hours in torch.arange(len(test.times)).split(max(1, batch // members)):
            out = trainer.model.generate_on_batch_no_target(test.batch(hours).coarse, n_samples=members)
            found.append(out["t2m"].cpu().numpy())
    return np.concatenate(found)


def main() -> None:
    """Train, generate at each mark, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--seconds", type=float, default=300, help="of training, without start and generation"
    )
    parser.add_argument(
        "--marks", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0], help="shares of that"
    )
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--batch", type=int, default=512, help="fields generated at once")
    parser.add_argument("--train", nargs=2, default=["2019-03-01", "2019-03-22"])
    parser.add_argument("--test", nargs=2, default=["2019-03-24", "2019-03-31"])
    parser.add_argument("--every", type=int, default=1, help="generate every so many hours")
    parser.add_argument("--network", default="unet_diffusion_song_v2")
    parser.add_argument("--options", default="{}", help="of the network, JSON")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument(
        "--ema", type=float, default=0.9999, help="fme's default; it averages shorter at first"
    )
    parser.add_argument("--inputs", choices=["all", "t2m"], default="all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    coarse, fine = opened(options.data, "coarse.nc"), opened(options.data, "fine.nc")
    if options.inputs == "all":
        coarse = with_hour(coarse)
    learnt = slice(*options.train)
    known = coarse.sel(time=learnt), fine.sel(time=learnt)
    chosen = slice(*options.test)
    train = Hours(*known, 16, options.seed)
    test = Hours(
        coarse.sel(time=chosen).isel(time=slice(None, None, options.every)),
        fine.sel(time=chosen).isel(time=slice(None, None, options.every)),
        16,
        options.seed,
    )
    with Distributed.context():
        trainer = make_trainer(options, train, *known)
        parameters = sum(p.numel() for p in trainer.model.module.parameters())
        print(f"{parameters:,} parameters, {len(train.times)} hours to learn, {len(test.times)} to generate")
        trained, lines = 0.0, []
        for mark in sorted(options.marks):
            trained += train_to(trainer, train, mark * options.seconds - trained)
            began = time.monotonic()
            members = generate(trainer, test, options.members, options.batch)
            took = time.monotonic() - began
            name = f"fme_{mark * options.seconds:.0f}s.npz"
            np.savez_compressed(
                options.out / name,
                members=members,
                time=test.times.values,
                latitude=test.fine_coords.lat.cpu().numpy(),
                longitude=test.fine_coords.lon.cpu().numpy() - SHIFT,
            )
            lines.append(
                {"file": name, "trained_seconds": trained, "steps": train.batches, "generation_seconds": took}
            )
            print(lines[-1], flush=True)
    asked = {name: str(value) for name, value in vars(options).items()}
    found = {"parameters": parameters, "marks": lines, "options": asked, "torch": torch.__version__}
    (options.out / "peer.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
