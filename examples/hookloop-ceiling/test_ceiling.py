"""The example's own tests: a fake caller, a fake run, and the life-cycle suite."""

import torch
from hookloop_ceiling import Ceiling

from hookloop import train
from hookloop.testing import LifeCycle, calling, check_installed, fake_run


class TestCeiling(LifeCycle):
    """Everything that is asked of any plugin."""

    plugin = Ceiling
    options = {"loss": 1000.0}


def test_stops_above_the_ceiling(tmp_path):
    """A loss of 3 under a ceiling of 2 stops the run; a loss of 1 does not."""
    plugin = Ceiling(loss=2.0, every=1)
    run = fake_run(tmp_path)
    hook = calling(plugin)
    hook.after_batch(run=run, batch=None, losses={"loss": torch.tensor(1.0)})
    assert run.stopping is None
    hook.after_batch(run=run, batch=None, losses={"loss": torch.tensor(3.0)})
    assert run.stopping.code == 1
    assert "above 2.0" in run.stopping.why


def test_stops_a_whole_run(tmp_path):
    """The tiny task's losses are 0, 1, 2.25, …, so a ceiling of 2 stops it after the third batch."""
    run = fake_run(tmp_path, Ceiling(loss=2.0, every=1))
    train(run)
    assert run.progress.step == 3


def test_is_found_by_its_entry_point():
    """An installed plugin is found by name."""
    assert check_installed("ceiling") is Ceiling
