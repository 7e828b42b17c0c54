"""Batches are brought whole to the device that learns."""

from __future__ import annotations

import pytest
import torch
from attrs import frozen

from hookloop.data.copies import copied_ahead, moved

CPU, META = torch.device("cpu"), torch.device("meta")


@frozen(eq=False)
class Batch:
    fields: torch.Tensor
    hour: torch.Tensor
    name: str


def batches() -> list[Batch]:
    return [Batch(torch.full((2, 3), float(n)), torch.tensor([n]), f"batch {n}") for n in range(4)]


def test_every_tensor_of_a_batch_is_moved_and_nothing_else() -> None:
    """Whatever the tensors are called; what is no tensor stays."""
    there = moved(batches()[3], META)
    assert (there.fields.device, there.hour.device, there.name) == (META, META, "batch 3")


def test_batches_that_are_there_already_are_not_touched() -> None:
    """Where fields are held where they are learnt, no batch is made anew."""
    given = batches()
    found = list(copied_ahead(iter(given), CPU, CPU))
    assert all(one is other for one, other in zip(found, given, strict=True))


def test_batches_come_in_their_order() -> None:
    """Each once, on the device, also without a GPU's streams."""
    found = list(copied_ahead(iter(batches()), CPU, META))
    assert [(batch.name, batch.fields.device) for batch in found] == [(f"batch {n}", META) for n in range(4)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same_numbers() -> None:
    """Copied on a side stream, one batch ahead: the same batches, the last one too."""
    found = list(copied_ahead(iter(batches()), CPU, torch.device("cuda")))
    assert [(batch.name, batch.fields.tolist(), batch.hour.tolist()) for batch in found] == [
        (f"batch {n}", [[float(n)] * 3] * 2, [n]) for n in range(4)
    ]
