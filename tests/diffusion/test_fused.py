"""The fused kernels against float64: on a GPU as they are, elsewhere interpreted by Triton."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
pytest.importorskip("triton", minversion="3.6")

import triton

from hookloop.diffusion.fused import Fused
from hookloop.diffusion.kernels import Plain
from hookloop.diffusion.kernels_launch import _merged
from hookloop.diffusion.unet import Padding, UNet

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [
    pytest.mark.skipif(
        DEVICE.type == "cpu"
        and triton.__version__.startswith("3.6.")
        and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
        reason="Triton 3.6 cannot interpret with NumPy 2.4 or later",
    ),
    # The interpreter's:
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest error relative to the largest value: some operations in float32, one rounding to bfloat16 (2⁻⁹) and more."""


@frozen
class Case:
    """Shapes of one normalisation."""

    samples: int = 2
    parts: tuple[int, ...] = (8,)
    groups: int = 2
    size: tuple[int, int] = (5, 7)
    mean: float = 0.5
    std: float = 1.0


CASES = [
    Case(),
    Case(parts=(6, 12), groups=6),
    Case(samples=1, parts=(4,), groups=1, size=(1, 1)),
    Case(samples=3, parts=(10,), groups=10, size=(1, 9)),
    Case(samples=18, parts=(5,), groups=1, size=(2, 1)),  # more samples than are merged at once
    Case(samples=1, parts=(70, 2), groups=2, size=(4, 4)),  # more channels than a tile
    Case(samples=9, parts=(100,), groups=1, size=(1, 5)),  # a wide group, merged in smaller tiles
    Case(samples=1, parts=(4,), groups=2, size=(47, 45)),  # several chunks
]
LARGE = Case(samples=1, parts=(4,), groups=2, size=(130, 131))
"""Chunks of several tiles, the last not full; where channels are neighbours, the last of CASES has them."""
EVERY = [
    *((CASES[0], dtype, layout) for dtype in ROUNDING for layout in LAYOUTS),
    *((case, torch.float32, LAYOUTS[0]) for case in [*CASES[1:], LARGE]),
    *((case, torch.bfloat16, LAYOUTS[1]) for case in CASES[1:]),
]


def drawn(
    *shape: int, dtype: torch.dtype, seed: int, mean: float = 0.0, std: float = 1.0, layout: object = None
) -> Tensor:
    """Values of *dtype*, laid out as asked."""
    value = mean + std * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    value = value.to(DEVICE, dtype)
    return value.contiguous(memory_format=layout) if layout and value.ndim == 4 else value  # type: ignore[arg-type]


def exact(
    parts: Sequence[Tensor], weight: Tensor, bias: Tensor, before: Tensor, modulation: Tensor, groups: int
) -> Tensor:
    """silu(((x - mean)/std·γ + β)·(1 + scale) + shift), written out."""
    x = torch.cat([*parts], 1) + before[:, None, None]
    b, c, h, w = x.shape
    grouped = x.reshape(b, groups, -1)
    away = grouped - grouped.mean(-1, keepdim=True)
    normal = (away / (away.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(b, c, h, w)
    scale, shift = modulation[:, :c, None, None], modulation[:, c:, None, None]
    z = (normal * weight[:, None, None] + bias[:, None, None]) * (1 + scale) + shift
    return z / (1 + (-z).exp())


class Given(nn.Module):
    """A convolution that does nothing but add its bias, and a norm, so that passes can be asked with any values."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        super().__init__()
        channels = sum(case.parts)
        self.conv = nn.Conv2d(channels, channels, 1)
        self.norm = nn.GroupNorm(case.groups, channels)
        with torch.no_grad():
            nn.init.dirac_(self.conv.weight)
            self.conv.bias.copy_(drawn(channels, dtype=dtype, seed=1, std=0.5))  # type: ignore[union-attr]
            self.norm.weight.copy_(drawn(channels, dtype=dtype, seed=2, mean=1, std=0.3))
            self.norm.bias.copy_(drawn(channels, dtype=dtype, seed=3, std=0.3))
        self.to(DEVICE, dtype)


def close(
    found: Sequence[Tensor | None], expected: Sequence[Tensor], dtype: torch.dtype, scale: float = 1.0
) -> None:
    """Compare each with the largest of its values."""
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a is not None
        assert a.shape == b.shape
        error = (a.double() - b).abs().max().item()
        assert error <= scale * ROUNDING[dtype] * max(b.abs().max().item(), 1e-3), number


@pytest.mark.parametrize(("case", "dtype", "layout"), EVERY)
def test_joined_parts_are_normalised_and_activated(case: Case, dtype: torch.dtype, layout: object) -> None:
    """The answer, what was joined and all gradients are those of float64; x's own gradient is added to the norm's."""
    channels, given = sum(case.parts), Given(case, dtype)
    parts = [
        drawn(
            case.samples, c, *case.size, dtype=dtype, seed=10 + c, mean=case.mean, std=case.std, layout=layout
        )
        for c in case.parts
    ]
    upstream = [drawn(case.samples, channels, *case.size, dtype=dtype, seed=s, layout=layout) for s in (4, 5)]
    leaves = [*(p.requires_grad_() for p in parts), given.norm.weight, given.norm.bias]
    y, x = Fused().joined(given.norm, parts)
    assert y.dtype == x.dtype == dtype
    found = [y, x, *torch.autograd.grad([y, x], leaves, upstream)]
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    *places, weight, bias = doubles
    none = torch.zeros(channels, dtype=torch.float64, device=DEVICE)
    nothing = torch.zeros(case.samples, 2 * channels, dtype=torch.float64, device=DEVICE)
    answers = [exact(places, weight, bias, none, nothing, case.groups), torch.cat(places, 1)]
    expected = [*answers, *torch.autograd.grad(answers, doubles, [u.double() for u in upstream])]
    close(found, expected, dtype)


@pytest.mark.parametrize(
    ("case", "dtype", "layout"), [(evolve(c, parts=(sum(c.parts),)), *of) for c, *of in EVERY]
)
def test_the_bias_of_a_convolution_and_the_modulation_are_part_of_it(
    case: Case, dtype: torch.dtype, layout: object
) -> None:
    """Also their gradients, that of the bias without a pass of its own."""
    channels, given = case.parts[0], Given(case, dtype)
    x = drawn(case.samples, channels, *case.size, dtype=dtype, seed=6, mean=case.mean, layout=layout)
    modulation = drawn(case.samples, 2 * channels, dtype=dtype, seed=7, std=0.3)
    upstream = drawn(case.samples, channels, *case.size, dtype=dtype, seed=8, layout=layout)
    leaves = [
        x.requires_grad_(),
        given.norm.weight,
        given.norm.bias,
        given.conv.bias,
        modulation.requires_grad_(),
    ]
    y = Fused().modulated(given.conv, x, given.norm, modulation)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]  # type: ignore[union-attr]
    answer = exact(doubles[:1], *doubles[1:], case.groups)  # type: ignore[call-arg]
    expected = torch.autograd.grad(answer, doubles, upstream.double())
    dx, dw, db, dbefore, dm = torch.autograd.grad(y, leaves, upstream)  # type: ignore[arg-type]
    close([y, dx, dw, db, dm], [answer, expected[0], expected[1], expected[2], expected[4]], dtype)
    # A group's mean takes most of the bias away: what is left is a difference of sums over all points.
    size = math.sqrt(upstream.numel())
    assert (dbefore.double() - expected[3]).abs().max() < ROUNDING[dtype] * size


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 300.0), (torch.bfloat16, 1.0)])
def test_a_mean_far_from_nothing_costs_no_accuracy(dtype: torch.dtype, far: float, layout: object) -> None:
    """Of fields around 1000 with a spread of 1 (of 8 in bfloat16, whose numbers there are 4 apart) all is kept.

    In float32 the numbers around 1000 are 6e-5 apart: *far* is how much that is beside 2e-7.
    """
    std = 1.0 if dtype == torch.float32 else 8.0
    case = Case(samples=1, parts=(4,), groups=2, size=(24, 24), mean=1000.0, std=std)
    given = Given(case, dtype)
    x = drawn(1, 4, 24, 24, dtype=dtype, seed=9, mean=1000.0, std=std, layout=layout).requires_grad_()
    upstream = drawn(1, 4, 24, 24, dtype=dtype, seed=4, layout=layout)
    y = Fused().normalised(given.norm, x)
    found = [y, *torch.autograd.grad(y, [x], upstream)]
    double = x.detach().double().requires_grad_()
    zeros = torch.zeros(8, dtype=torch.float64, device=DEVICE)
    answer = exact([double], given.norm.weight.double(), given.norm.bias.double(), zeros[:4], zeros[None], 2)
    expected = [answer, *torch.autograd.grad(answer, [double], upstream.double())]
    for a, b in zip(found, expected, strict=True):
        limit = far * (1e-6 if dtype == torch.float32 else 1e-2) * b.abs().max()
        assert (a.double() - b).abs().max() < limit


@pytest.mark.parametrize(("dtype", "layout"), list(zip(ROUNDING, LAYOUTS, strict=True)))
@pytest.mark.parametrize(("size", "skipped"), [((5, 7), True), ((1, 1), False), ((47, 45), False)])
def test_residual_sums(size: tuple[int, int], dtype: torch.dtype, layout: object, *, skipped: bool) -> None:
    """(skip(x) + h + bias)·√½ and its gradients are those of float64; the biases of both convolutions count."""
    case = Case(parts=(4,), size=size)
    first, second = Given(case, dtype).conv, Given(case, dtype).conv
    skip = nn.Identity() if skipped else second
    x, h, upstream = (
        drawn(2, 4, *size, dtype=dtype, seed=s, layout=layout).requires_grad_() for s in (1, 2, 3)
    )
    out = Fused().merged(first, h, skip, x)
    assert out.dtype == dtype
    assert first.bias is not None
    found = [out, *torch.autograd.grad(out, [x, h, first.bias], upstream.detach())]
    bias, g = first.bias.double()[:, None, None], upstream.double() * math.sqrt(0.5)
    answer = (x.double() + h.double() + (bias if skipped else 2 * bias)) * math.sqrt(0.5)
    close(found, [answer, g, g, g.sum((0, 2, 3))], dtype)


def test_what_is_not_laid_out_evenly_is_read_rightly() -> None:
    """A part of a wider tensor is read where it lies; rows that do not follow one another are copied first."""
    wide = drawn(2, 8, 6, 9, dtype=torch.float32, seed=1)
    norm = Given(Case(parts=(4,)), torch.float32).norm
    for view in (wide[:, 2:6], wide[:, ::2], wide[:, :4, ::2, 1:5], wide[:, :4, :, :1], wide[:, :4].mT):
        torch.testing.assert_close(Fused().normalised(norm, view), Plain().normalised(norm, view))


def test_the_same_input_gives_the_same_bits() -> None:
    """No sum depends on who comes first."""
    case = Case(samples=2, parts=(6, 6), groups=3, size=(20, 20))
    given = Given(case, torch.bfloat16)
    parts = [drawn(2, 6, 20, 20, dtype=torch.bfloat16, seed=s).requires_grad_() for s in (1, 2)]
    leaves = [*parts, given.norm.weight, given.norm.bias]

    def run() -> list[Tensor]:
        y, x = Fused().joined(given.norm, parts)
        return [y, *torch.autograd.grad((y * y).sum() + x.sum(), leaves)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_what_a_compiler_unrolls_is_bounded() -> None:
    """Whatever the width of a group, its sums are merged in a tile that compiles in seconds; nothing is left out."""
    for group in range(1, 2049):
        tile = _merged(group)
        assert group <= tile["C"] < 2 * group
        assert math.prod(tile.values()) <= 2048
        assert min(tile.values()) >= 1


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU: nothing is compiled elsewhere")
@pytest.mark.timeout(60)
def test_an_awkward_width_compiles_in_time() -> None:
    """Of 100 channels there is one group."""
    norm = Given(Case(parts=(100,), groups=1), torch.bfloat16).norm
    x = drawn(3, 100, 21, 23, dtype=torch.bfloat16, seed=1).requires_grad_()
    torch.autograd.grad(Fused().normalised(norm, x).sum(), [x, norm.weight])


def test_second_derivatives_are_refused() -> None:
    """Rather than cut off in silence."""
    given = Given(Case(parts=(4,)), torch.float32)
    x = drawn(1, 4, 3, 3, dtype=torch.float32, seed=1).requires_grad_()
    modulation = drawn(1, 8, dtype=torch.float32, seed=2)
    for answer in (
        Fused().normalised(given.norm, x),
        Fused().joined(given.norm, [x])[0],
        Fused().modulated(given.conv, x, given.norm, modulation),
        Fused().merged(given.conv, x, nn.Identity(), x),
    ):
        (first,) = torch.autograd.grad(answer.square().sum(), [x], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


def test_nan_is_passed_on_and_stays_in_its_sample_and_group() -> None:
    """Nothing hides it, and nothing else is harmed."""
    x = drawn(2, 4, 5, 5, dtype=torch.float32, seed=1)
    x[1, 2, 3, 3] = math.nan
    lost = Fused().normalised(Given(Case(parts=(4,)), torch.float32).norm, x).isnan()
    assert lost[1, 2:].all()
    assert not lost[0].any()
    assert not lost[1, :2].any()


def network(padding: Padding = "zeros", *, attention: bool = False, levels: int = 1) -> UNet:
    """A small network with every layer awake."""
    torch.manual_seed(0)
    widths = (1, 2)[:levels]
    net = UNet(2, 3, channels=8, multipliers=widths, blocks=1, attention=attention, padding=padding)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net.to(DEVICE)


def fields() -> tuple[Tensor, Tensor, Tensor]:
    """A noisy field, a condition and labels."""
    noisy, condition = (drawn(2, c, 5, 6, dtype=torch.float32, seed=c) for c in (2, 3))
    return noisy, condition, torch.tensor([0.3, -1.0], device=DEVICE)


def answers(net: nn.Module) -> list[Tensor]:
    """The answer and every gradient."""
    out: Tensor = net(*fields())
    return [out, *torch.autograd.grad(out.square().sum(), list(net.parameters()))]


@pytest.mark.parametrize(
    ("padding", "attention", "layout"), [("zeros", True, LAYOUTS[0]), ("circular", False, LAYOUTS[1])]
)
def test_a_network_computes_the_same(layout: object, padding: Padding, *, attention: bool) -> None:
    """Its answer, its gradients and the names of its weights do not tell which passes it uses."""
    plain = network(padding, attention=attention)
    plain.passes = Plain()
    fused = copy.deepcopy(plain).to(memory_format=layout)  # type: ignore[call-overload]
    fused.passes = Fused()
    assert list(fused.state_dict()) == list(plain.state_dict())
    for found, expected in zip(answers(fused), answers(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_a_network_keeps_the_dtype_of_its_convolutions() -> None:
    """Under autocast what the convolutions read is bfloat16 already: nothing is cast between them."""
    net, seen = network(levels=2), []
    net.passes = Fused()
    for module in (net.head[2], net.shrink[0]):
        module.register_forward_pre_hook(lambda _module, given: seen.append(given[0].dtype))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        out = net(*fields())
    assert seen == [torch.bfloat16] * 2
    assert out.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler instantiates functions
def test_the_compiler_takes_the_network_whole() -> None:
    """Without breaks, forward and backward, to the same bits."""
    net = network()
    net.passes = Fused()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(answers(compiled), answers(net), strict=True))  # type: ignore[arg-type]


def test_the_operators_are_what_they_say() -> None:
    """Shapes, strides and dtypes are as told beforehand, and no argument is changed."""
    ops, checks = torch.ops.hookloop, ("test_schema", "test_faketensor")
    for layout, columns in ((LAYOUTS[0], 4), (LAYOUTS[1], 4), (LAYOUTS[0], 5), (LAYOUTS[1], 5)):
        a, b, g = (
            drawn(2, c, 3, columns, dtype=torch.bfloat16, seed=c, layout=layout)[..., :4] for c in (2, 4, 6)
        )  # of 5 columns: rows that do not follow one another evenly
        weight, bias, before = (drawn(6, dtype=torch.float32, seed=s) for s in (1, 2, 3))
        modulation = drawn(2, 12, dtype=torch.bfloat16, seed=4)
        for given in (
            ([a, b], weight, bias, None, None, 2, 1e-5),
            ([g], weight, bias, before, modulation, 2, 1e-5),
        ):
            torch.library.opcheck(ops.norm_silu.default, given, test_utils=checks)
        _, x, coefficient, rstd = ops.norm_silu([a, b], weight, bias, before, modulation, 2, 1e-5)
        for extra in ((None, None), (before, modulation)):
            for beside in (None, g):
                torch.library.opcheck(
                    ops.norm_silu_backward.default,
                    (g, beside, x, coefficient, rstd, weight, bias, *extra),
                    test_utils=checks,
                )
                torch.library.opcheck(
                    ops.norm_silu_backward.default,
                    (g, beside, g, coefficient, rstd, weight, bias, *extra),
                    test_utils=checks,
                )
        for x, h in ((g, g + 1), (g + 1, g)):
            torch.library.opcheck(ops.merge.default, (x, h, bias, 0.5), test_utils=checks)
        torch.library.opcheck(ops.merge_backward.default, (g, bias, 0.5), test_utils=checks)
