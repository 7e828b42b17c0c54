"""What search.py tries, in order: each changes the example in a few options. See the reasons beside them.

22 days hold about 50 independent fields, so the question is what keeps 2.5 million weights from learning them by
heart, and what makes the ensemble admit that it does not know.
"""

from __future__ import annotations

Options = dict[str, object]

_NOISE = "downscaling.model.noise."
_NET = "downscaling.model.backbone."
_PATCH = "downscaling.patch."


def noise(mean: float, std: float) -> Options:
    """Training noise: the mean of the field is decided at high noise, σ ≥ 1, and that is where the skill lies."""
    return {f"{_NOISE}mean": mean, f"{_NOISE}std": std}


def dropout(share: float) -> Options:
    """More of it trades bias for variance; networks that forget different things also make a better ensemble."""
    return {f"{_NET}dropout": share}


def width(channels: int, share: float) -> Options:
    """Wider with more dropout is an average over more narrow networks."""
    return {f"{_NET}channels": channels, **dropout(share)}


def decay(weight_decay: float) -> Options:
    """Decoupled decay shrinks by lr · weight_decay a step: 0.1 takes away a third of a weight over a run."""
    return {"optimization.weight_decay": weight_decay}


def rate(lr: float) -> Options:
    """A higher rate ends in flatter minima."""
    return {"optimization.lr": lr}


def average(share: float) -> Options:
    """A longer average is a cheap ensemble along the path."""
    return {"ema.decay": share}


def patch(coarse: tuple[int, int], share: float) -> Options:
    """Random parts of the domain: more different samples, and nothing to learn of what lies far away."""
    return {f"{_PATCH}coarse": list(coarse), **dropout(share)}


VARIANTS: dict[str, tuple[int, Options]] = {
    # name: (batches, options); 1900 batches are 76 epochs of the 17 days
    "base": (1900, {}),
    "noise-0.4": (1900, noise(-0.4, 1.2)),
    "noise+0.2": (1900, noise(0.2, 1.2)),
    "noise-0.4-wide": (1900, noise(-0.4, 1.6)),
    "noise+0.8": (1900, noise(0.8, 1.2)),
    "drop0.5": (1900, dropout(0.5)),
    "drop0.3": (1900, dropout(0.3)),
    "drop0.6": (2400, dropout(0.6)),
    "short": (1200, {}),
    "long-drop0.5": (3000, dropout(0.5)),
    "decay0.1": (1900, decay(0.1)),
    "decay0.5": (1900, decay(0.5)),
    "wide64-drop0.5": (1900, width(64, 0.5)),
    "narrow32-drop0.3": (1900, width(32, 0.3)),
    "noise-0.4-drop0.5": (2400, {**noise(-0.4, 1.2), **dropout(0.5)}),
    "noise+0.2-drop0.5-decay0.1": (2400, {**noise(0.2, 1.2), **dropout(0.5), **decay(0.1)}),
    "lr4e-3": (1900, rate(4e-3)),
    "lr1e-3": (1900, rate(1e-3)),
    "batch32": (1200, {"downscaling.train.batch_size": 32, **rate(3e-3)}),
    "batch8": (2800, {"downscaling.train.batch_size": 8, **rate(1.4e-3)}),
    "ema0.999": (1900, average(0.999)),
    "ema0.9998": (1900, average(0.9998)),
    "patch7x11-drop0.3": (2800, patch((7, 11), 0.3)),
    "patch6x9-drop0.2": (3600, patch((6, 9), 0.2)),
    "no-place": (1900, {"downscaling.model.features": ["hour"]}),
    "no-hour": (1900, {"downscaling.model.features": ["latitude", "longitude"]}),
    "no-land": (1900, {"downscaling.statics": []}),
    "no-attention": (1900, {f"{_NET}attention": False}),
    "two-levels": (1900, {f"{_NET}multipliers": [1, 2]}),
    "four-levels": (1900, {f"{_NET}multipliers": [1, 2, 2, 2]}),
    "two-blocks-drop0.5": (1900, {f"{_NET}blocks": 2, **dropout(0.5)}),
    "wide96-drop0.6": (1900, width(96, 0.6)),
    "wide64-drop0.6-noise-0.4": (2400, {**width(64, 0.6), **noise(-0.4, 1.2)}),
    "wide64-drop0.5-decay0.1": (1900, {**width(64, 0.5), **decay(0.1)}),
    "noise-0.4-batch32": (1200, {**noise(-0.4, 1.2), "downscaling.train.batch_size": 32, **rate(3e-3)}),
    "clip0.3": (1900, {"optimization.clip_norm": 0.3}),
}

SAMPLERS: dict[str, Options] = {
    # of the best ensemble, without training anything
    "rho 7": {"downscaling.sampler.rho": 7.0},
    "36 steps": {"downscaling.sampler.steps": 36},
    "sigma_max 40": {"downscaling.sampler.sigma_max": 40.0},
    "sigma_max 160, 24 steps": {"downscaling.sampler.sigma_max": 160.0, "downscaling.sampler.steps": 24},
    "heun": {"downscaling.sampler.solver": "heun"},
    "heun, churn 10": {"downscaling.sampler.solver": "heun", "downscaling.sampler.churn": 10.0},
    "dpmpp_2m_sde, 36 steps": {
        "downscaling.sampler.solver": "dpmpp_2m_sde",
        "downscaling.sampler.steps": 36,
    },
}
