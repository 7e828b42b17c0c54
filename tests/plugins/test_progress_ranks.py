"""What several ranks log is what one would, and each of them finds a loss that is no number."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from ranks import on_ranks

from hookloop.core import prepare
from hookloop.distributed import Ranks
from hookloop.errors import Diverged
from hookloop.plugins.distributed import Distributed
from hookloop.plugins.progress import ProgressReport
from hookloop.testing import Recorder, TinyData, TinyTask, fake_run


def first_loss(ranks: Ranks, directory: Path, size: int, value: float) -> object:
    """What the log before training says of a first batch of *size* samples, on one rank of several."""
    data = {"train": TinyData(size, 4), "validation": TinyData(2)}
    recorder = Recorder()
    run = fake_run(directory, recorder, Distributed(), ProgressReport(), task=TinyTask(data))
    run.ranks = ranks
    prepare(run)
    with torch.no_grad():
        run.task.model.get_parameter("weight").fill_(value)
    run.hook.before_epoch(run=run)
    return recorder.metrics("batch/loss")[0]


@pytest.mark.parametrize(("size", "loss"), [(8, (1 + 0 + 1 + 4) / 4), (3, (1 + 0 + 1) / 3), (1, 1.0)])
def test_the_first_loss_of_several_ranks_is_that_of_the_whole_batch(
    tmp_path: Path, size: int, loss: float
) -> None:
    """Of samples 0, 1, 2 … with the weight 1, those that are there; a short batch counts each sample once."""
    assert on_ranks(2, first_loss, tmp_path, size, 1.0) == pytest.approx([loss, loss], rel=1e-6)


def test_a_first_loss_that_is_no_number_ends_every_rank(tmp_path: Path) -> None:
    """Each of them finds it, none waits for another."""
    with pytest.raises(Diverged, match="loss is nan at step 0"):
        on_ranks(2, first_loss, tmp_path, 8, math.nan)
