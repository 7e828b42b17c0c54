from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hookloop.config import learned_options
from hookloop.errors import ConfigError
from hookloop.manager import assemble
from hookloop.plugins.distributed import Distributed
from hookloop.strategies import Alone
from hookloop.testing import LifeCycle, events_of
from hookloop.yamlfile import Document

if TYPE_CHECKING:
    from pathlib import Path


class TestLifeCycle(LifeCycle):
    plugin = Distributed


class TestLifeCycleOfEverything(LifeCycle):
    plugin = Distributed
    options = {"strategy": "fully_shard", "reduce": "bf16"}

    def test_one_process_needs_no_strategy(self, tmp_path: Path) -> None:
        """Whatever is configured, it learns as ever and nothing is said."""
        run = self.run_once(tmp_path)
        assert type(run.optimization.strategy) is Alone
        assert not [event for event in events_of(run) if event["event"] == "ranks.joined"]


def test_a_run_may_go_on_with_another_strategy() -> None:
    """No option counts as learnt."""
    assert learned_options(Distributed()) == {}


def test_an_unknown_strategy_is_a_mistake() -> None:
    """With what there is."""
    document = Document({"run": {"dir": "x"}, "distributed": {"strategy": "shard"}})
    with pytest.raises(ConfigError, match=r"replicate.*fully_shard"):
        assemble(document, ["distributed"])
