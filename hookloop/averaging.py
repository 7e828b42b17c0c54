"""Power-function averages of the weights, and how to combine kept ones into one that was never tracked.

After update number t the average weighs the weights of time τ with (γ+1) τ^γ / t^(γ+1), 0 ≤ τ ≤ t: its memory
grows with the run. Its width is given as σ_rel, the profile's standard deviation divided by t.

Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
arXiv:2312.02696, sections 3.1 and 3.2, appendix C.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

UNIFORM = 12**-0.5
"""σ_rel of the plain mean, γ = 0: a profile that forgets is narrower."""


@frozen
class Profile:
    """How much the weights of each time count: (γ+1) τ^γ / t^(γ+1) at time τ."""

    time: float
    """t, the number of updates."""
    gamma: float
    """γ, the exponent."""


def exponent(sigma_rel: float) -> float:
    """γ of the profile with relative width *sigma_rel*.

    It is the largest root of (γ+2)² (γ+3) = (γ+1) / σ_rel², which has three: they are cosines (Viète).

    :raises ValueError: unless 0 < σ_rel < 12^(-1/2), where γ > 0.
    """
    if not 0 < sigma_rel < UNIFORM:
        raise ValueError(f"expected 0 < sigma_rel < {UNIFORM:.4f} (12**-0.5), found {sigma_rel!r}")
    s = sigma_rel**-2
    p, q = s + 1 / 3, 4 / 3 * s + 2 / 27  # x³ - p x + q = 0 with γ = x - 7/3
    angle = math.acos(-1.5 * q / p * math.sqrt(3 / p)) / 3
    return 2 * math.sqrt(p / 3) * math.cos(angle) - 7 / 3


def power_decay(update: int, gamma: float) -> float:
    """How much of the average stays at update number *update*, the first being 1: β(t) = (1 - 1/t)^(γ+1).

    So it is exact for weights that are constant between updates; the first update replaces the average.
    """
    return float((1 - 1 / update) ** (gamma + 1))


def inner_product(one: Profile, other: Profile) -> float:
    """∫ of the product of two profiles over time."""
    early, late = sorted((one, other), key=lambda profile: profile.time)
    factor = (one.gamma + 1) * (other.gamma + 1) / (one.gamma + other.gamma + 1)
    return float(factor * (early.time / late.time) ** late.gamma / late.time)


def combination(snapshots: Sequence[Profile], target: Profile) -> tuple[list[float], float]:
    """Find the weights with which averages of *snapshots* add up to the average of *target*, best in L2.

    They sum to 1, which is not in the paper: what all averages have in common, by far the most of it, is then
    kept whatever the fit, where a sum of 0.99 would shrink every weight of the model.

    :returns: a weight for each snapshot, and the relative error ‖Σ wᵢ pᵢ - p‖ / ‖p‖ of the profile p. For weights
        that are noise about their mean it is the error relative to the noise that the average has left.
    """
    import numpy as np

    unit = [Profile(profile.time / target.time, profile.gamma) for profile in (*snapshots, target)]
    gram = np.array([[inner_product(one, other) for other in unit] for one in unit], dtype=np.float64)
    n = len(snapshots)
    system = np.ones((n + 1, n + 1))  # the last unknown is the constraint's multiplier
    system[:n, :n] = gram[:n, :n]
    system[n, n] = 0
    right = np.append(gram[:n, n], 1.0)
    weights = np.linalg.lstsq(system, right, rcond=None)[0][:n]  # snapshots may be alike
    residual = np.append(weights, -1.0)
    error = math.sqrt(max(0.0, float(residual @ gram @ residual)) / float(gram[n, n]))
    return weights.tolist(), error
