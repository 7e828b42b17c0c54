"""Score members that another program has written, by the code that scores hookloop's own.

    ERA5_UK=DATA python benchmarks/era5_uk/score.py MEMBERS.npz …

Each file holds ``members`` ``[time, member, lat, lon]`` in K with ``time``, ``latitude`` and ``longitude``, rows in any
order; see peer.py. Truth, baseline, scores and intervals are those of a run of examples/era5_uk.yaml, cells weighted
equally. Writes a JSON beside each file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from hookloop.plugins.downscaling.dataset import upsample, with_halo
from hookloop.plugins.generation import Generation
from hookloop.scoring import Scoring
from hookloop.task import Paired

_FACTOR = 4
_SHOWN = ("crps", "crps_low", "crps_high", "crps_relative", "rmse", "spread_skill", "bias", "mae_baseline")


def paired(folder: Path, members: xr.DataArray, device: str) -> Paired:
    """Lay *members* beside the truth and what bicubic interpolation says, south first."""
    with (
        xr.open_dataset(folder / "fine.nc", engine="h5netcdf") as fine,
        xr.open_dataset(folder / "coarse.nc", engine="h5netcdf") as coarse,
    ):
        truth = fine.t2m.sel(time=members.time).sortby("latitude").load()
        given = coarse.t2m.sel(time=members.time).sortby("latitude").load()
    members = members.sortby("latitude")
    for axis in ("latitude", "longitude"):
        np.testing.assert_allclose(members[axis], truth[axis], atol=1e-3)
    coarse_fields = torch.from_numpy(given.values).to(device)
    return Paired(
        prediction={"t2m": torch.from_numpy(members.values).to(device)},
        target={"t2m": torch.from_numpy(truth.values).to(device)},
        baseline={"t2m": upsample(with_halo(coarse_fields[:, None]), _FACTOR)[:, 0]},
        coarse={"t2m": coarse_fields},
        latitude=truth.latitude.values.tolist(),
        longitude=truth.longitude.values.tolist(),
        labels=[str(time)[:16] for time in truth.time.values],
        days=[str(time)[:10] for time in truth.time.values],
        units={"t2m": "K"},
    )


def _seed(purpose: str) -> int:
    """The same for every file, so that the same days are drawn for their intervals."""
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "big") >> 1


def main() -> None:
    """Score each file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("ERA5_UK", "../shared/data/era5_uk"))
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    for path in options.files:
        with np.load(path) as file:
            members = xr.DataArray(
                file["members"],
                {name: file[name] for name in ("time", "latitude", "longitude")},
                ("time", "member", "latitude", "longitude"),
            )
        scoring = Scoring(Generation().metrics, _seed, "equal")
        scoring.count(paired(options.data, members, options.device))
        found = scoring.results().metrics()
        path.with_suffix(".json").write_text(json.dumps(found, indent=1))
        shown = ", ".join(f"{key} {found[f'{key}/t2m']:.4f}" for key in _SHOWN if f"{key}/t2m" in found)
        print(f"{path.name}: {shown}", flush=True)


if __name__ == "__main__":
    main()
