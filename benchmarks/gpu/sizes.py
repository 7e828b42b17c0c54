"""What is measured: the sizes of the published figures, and small ones that show that the script works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence  # noqa: TC003 - annotates classes

from attrs import frozen


@frozen
class Network:
    """A U-Net and the fields it works on."""

    channels: int
    multipliers: list[int]
    blocks: int
    size: int
    """Fine cells along each axis."""
    factor: int
    """How many of them a coarse cell has."""

    @property
    def coarse(self) -> int:
        """Coarse cells along each axis."""
        return self.size // self.factor


@frozen
class Sizes:
    """How large and how often."""

    main: Network
    hiro: Network
    learner: Network
    """One that learns something within seconds."""
    step_targets: Mapping[int, float | None]
    """Training step by batch, ms."""
    forward_targets: Mapping[int, float | None]
    """Forward of the denoiser by batch, ms."""
    peer_batches: Sequence[int]
    """For which the peer is asked too: larger ones take more memory than there is."""
    hiro_batch: int
    windows: int
    members: int
    solver_targets: Mapping[tuple[str, int], float | None]
    """Seconds to generate all fields, by solver and steps."""
    rounds: int
    steps: int
    """Training steps a block."""
    learning_steps: int
    product: int
    """Rows and columns of the matrices whose product is timed."""
    block_bytes: int
    """Copied on the device."""
    norm: tuple[int, int, int]
    """Batch, channels and size of what is normalised by itself."""
    checkpoint: tuple[int, int]
    """Tensors of a model to save, and numbers in each."""
    settings: Sequence[str]
    targets: bool
    """Whether the published targets are for these sizes."""


FULL = Sizes(
    main=Network(128, [1, 2, 2, 2], 4, size=128, factor=8),
    hiro=Network(128, [1, 2, 2, 2, 2, 2, 2], 1, size=512, factor=8),
    learner=Network(32, [1, 2], 1, size=64, factor=4),
    step_targets={16: 62.0, 32: None, 64: 215.0},
    forward_targets={64: None, 16: 22.0, 4: 7.0, 1: 3.0},
    peer_batches=(1, 4, 16, 32),
    hiro_batch=4,
    windows=8,
    members=4,
    solver_targets={("heun", 18): 1.55, ("dpmpp_2m", 18): 0.8},
    rounds=5,
    steps=6,
    learning_steps=200,
    product=8192,
    block_bytes=2**32,
    norm=(16, 256, 128),
    checkpoint=(540, 113_000),
    settings=("default", "torch's norms", "channels last", "cudnn benchmark", "deterministic", "compiled"),
    targets=True,
)

SMALL = Sizes(
    main=Network(8, [1, 2], 1, size=16, factor=4),
    hiro=Network(8, [1, 2, 2], 1, size=32, factor=4),
    learner=Network(16, [1, 2], 1, size=16, factor=4),
    step_targets={2: None, 4: None},
    forward_targets={2: None, 1: None},
    peer_batches=(1, 2),
    hiro_batch=2,
    windows=2,
    members=2,
    solver_targets={("heun", 3): None, ("dpmpp_2m", 3): None},
    rounds=2,
    steps=2,
    learning_steps=40,
    product=256,
    block_bytes=2**22,
    norm=(2, 16, 32),
    checkpoint=(20, 1000),
    settings=("deterministic",),
    targets=False,
)
