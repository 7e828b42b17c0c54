"""What a model must know of its training split: measured right, in one pass, and only once."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import ReferenceType, ref

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from attrs import define, evolve, field
from torch import Tensor

from hookloop.data.normalize import Moments, Scale
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import TransformConfig
from hookloop.plugins.downscaling.measure import Source, measure
from hookloop.plugins.downscaling.options import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CONFIG = ModelConfig(inputs=["t2m", "q", "pr"], outputs=["pr", "t2m"])
FACTOR = 3
QUANTILES: Mapping[str, TransformConfig] = {"pr": TransformConfig("quantile")}


@define(eq=False)
class Fields:
    """Random fields, and which times of them were read by number."""

    n: int = 150
    members: int = 1
    coarse: Tensor = field(init=False)
    fine: Tensor = field(init=False)
    read: list[list[int]] = field(factory=list)
    passes: int = 0

    def __attrs_post_init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        means, units = torch.tensor([280.0, 0.01, 3.0]), torch.tensor([10.0, 0.003, 2.0])
        noise = torch.randn(self.n * self.members, 3, 4, 5, generator=random)
        self.coarse = noise * units[:, None, None] + means[:, None, None]
        own = self.coarse[:: self.members, [2, 0]].repeat_interleave(FACTOR, -1).repeat_interleave(FACTOR, -2)
        self.fine = own + torch.randn(own.shape, generator=random)

    def source(self, *, wraps: bool = False) -> Source:
        """As what is measured."""

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            self.passes += 1
            yield from zip(self.coarse.split(64 * self.members), self.fine.split(64), strict=True)

        def some(times: Sequence[int]) -> tuple[Tensor, Tensor]:
            self.read.append(list(times))
            cases = [time * self.members + member for time in times for member in range(self.members)]
            return self.coarse[cases], self.fine[list(times)]

        return Source(blocks, some, 64, self.n, FACTOR, wraps)


@pytest.fixture
def fields() -> Fields:
    """Give a test fields of its own."""
    return Fields()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("transformed", [False, True])
def test_scales_are_those_of_what_the_network_sees(
    fields: Fields, *, residual: bool, transformed: bool
) -> None:
    """By numpy in float64: of all transformed inputs, and of the transformed fine fields less their origin."""
    options = {"pr": TransformConfig("sqrt"), "q": TransformConfig("log1p", scale=0.1)} if transformed else {}
    found = measure(fields.source(), evolve(CONFIG, residual=residual), options, None)

    coarse, fine = fields.coarse.clone(), fields.fine.clone()
    if transformed:
        coarse[:, 2] = coarse[:, 2].sign() * coarse[:, 2].abs().sqrt()
        coarse[:, 1] = coarse[:, 1].sign() * (coarse[:, 1].abs() / 0.1).log1p()
        fine[:, 0] = fine[:, 0].sign() * fine[:, 0].abs().sqrt()
    if residual:
        fine -= F.interpolate(coarse[:, [2, 0]], scale_factor=3.0, mode="bicubic", align_corners=False)
    for scale, values in ((found.inputs, coarse), (found.targets, fine)):
        exact = values.double().numpy()
        np.testing.assert_allclose(scale.mean, exact.mean((0, 2, 3)), rtol=1e-5, atol=5e-5)
        np.testing.assert_allclose(scale.std, exact.std((0, 2, 3)), rtol=1e-5)


def test_every_member_has_the_fine_field_of_its_time() -> None:
    """What is generated is the difference from each member's own interpolation."""
    fields = Fields(members=3)
    found = measure(fields.source(), CONFIG, {}, None)
    own = F.interpolate(fields.coarse[:, [2, 0]], scale_factor=3.0, mode="bicubic", align_corners=False)
    exact = (fields.fine.repeat_interleave(3, 0) - own).double().numpy()
    np.testing.assert_allclose(found.targets.mean, exact.mean((0, 2, 3)), rtol=1e-5, atol=5e-5)
    np.testing.assert_allclose(found.targets.std, exact.std((0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("members", [1, 3])
def test_large_fields_are_measured_in_pieces(monkeypatch: pytest.MonkeyPatch, members: int) -> None:
    """Seven fields of a variable at once, which may end between members of a time; no more than rounding differs."""
    fields = Fields(members=members)
    options = {"pr": TransformConfig("sqrt")}
    expected = measure(fields.source(), CONFIG, options, None)
    sizes: list[int] = []
    add = Moments.add

    def noted(own: Moments, values: Tensor) -> None:
        sizes.append(values.nbytes)
        add(own, values)

    monkeypatch.setattr(Moments, "add", noted)
    monkeypatch.setattr("hookloop.data.places._BLOCK", 7 * fields.fine[0, 0].nbytes)
    found = measure(fields.source(), CONFIG, options, None)
    assert max(sizes) == 7 * fields.fine[0, 0].nbytes
    for one, other in ((found.inputs, expected.inputs), (found.targets, expected.targets)):
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(one.std, other.std, rtol=1e-6, atol=0)


def test_round_the_globe_the_interpolation_goes_on() -> None:
    """The scale does not depend on where the circle is cut open, as it does for a region."""
    fields = Fields()
    turned = Fields()
    turned.coarse, turned.fine = fields.coarse.roll(2, -1), fields.fine.roll(2 * FACTOR, -1)
    for wraps in (True, False):
        one, other = (
            measure(each.source(wraps=wraps), CONFIG, {}, None).targets.std for each in (fields, turned)
        )
        assert torch.allclose(one, other, rtol=1e-6, atol=0) is wraps


def test_it_takes_one_pass(fields: Fields) -> None:
    """Everything is read once; and how far it is is told."""
    done: list[int] = []
    measure(fields.source(), CONFIG, {}, None, done.append)
    assert (fields.passes, fields.read) == (1, [])
    assert done == [64, 64, 22]


def test_quantiles_are_those_of_the_fine_fields(fields: Fields) -> None:
    """Of what is both given and generated; of what is only given, those of the coarse ones."""
    options = {name: TransformConfig("quantile") for name in ("pr", "q")}
    found = measure(fields.source(), CONFIG, options, None)
    for name, values in (("pr", fields.fine[:, 0]), ("q", fields.coarse[:, 1])):
        knots, _ = found.knots[name]
        assert (knots[0], knots[-1]) == (values.min(), values.max())
    assert found.targets.mean.isfinite().all()


def test_a_skewed_variable_becomes_a_normal_one(fields: Fields) -> None:
    """Without a residual, its scale is 0 and 1, to half the distance of two of its 1024 knots."""
    fields.fine[:, 0] = fields.fine[:, 0].abs() ** 3
    found = measure(fields.source(), evolve(CONFIG, residual=False), QUANTILES, None)
    assert found.targets.mean[0].item() == pytest.approx(0, abs=5e-3)
    assert found.targets.std[0].item() == pytest.approx(1, abs=5e-3)


def test_quantiles_of_long_series_are_of_all_hours() -> None:
    """Of 24,000 fields 64 are looked at, spread evenly, of most hours of the day; five at once are in memory."""
    seen: list[int] = []
    at_once: list[int] = []
    given: list[ReferenceType[object]] = []

    def read(times: Sequence[int]) -> tuple[Tensor, Tensor]:
        seen.extend(times)
        at_once.append(len(times))
        fine = np.random.default_rng(len(seen)).standard_normal((len(times), 1, 160, 160), np.float32)
        given.append(ref(fine))
        assert sum(one() is not None for one in given) <= 2  # this one, and the one before
        return torch.randn(len(times), 1, 8, 8), torch.from_numpy(fine)

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        yield read(range(3))

    config = ModelConfig(inputs=["pr"], outputs=["pr"])
    measure(Source(blocks, read, 5, 24_000, 20, wraps=False), config, QUANTILES, None)
    sampled = seen[1:-3]
    assert [time * 64 // 24_000 for time in sampled] == list(range(64))
    assert len({time % 24 for time in sampled}) >= 16
    assert max(at_once) == 5


def test_given_statistics_are_taken_as_they_are(fields: Fields) -> None:
    """The inputs may then even be constant; targets are measured all the same."""
    given = Scale(torch.arange(3.0), torch.ones(3))
    targets = measure(fields.source(), CONFIG, {}, None).targets
    fields.coarse[:, 1] = 7.0
    found = measure(fields.source(), CONFIG, {}, given)
    assert found.inputs is given
    assert torch.equal(found.targets.std, targets.std)


def test_quantiles_of_a_constant_are_told(fields: Fields) -> None:
    """By the name of the option."""
    fields.fine[:, 0] = 0.0
    with pytest.raises(HookloopError, match=r"downscaling\.transforms\.pr: all \d+ values are 0 in the tr"):
        measure(fields.source(), CONFIG, QUANTILES, None)
