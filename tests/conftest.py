"""What all tests share: one thread and a cache of their own, as in the processes they start, and packages."""

from __future__ import annotations

import importlib
import os
import sys
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# Sums come out with other bits on another number of threads; real processes are started with one too.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

_CACHE = TemporaryDirectory(prefix="hookloop-cache-", ignore_cleanup_errors=True)
"""Nothing is written to the user's own; it is removed at the end."""
os.environ["HOOKLOOP_CACHE"] = _CACHE.name


@define
class Site:
    """A folder on ``sys.path``, also of processes that are started, with distributions in it."""

    path: Path
    modules: list[str] = field(factory=list)

    def install(self, name: str, source: str, groups: Mapping[str, Mapping[str, str]]) -> None:
        """Install a distribution of one module, which offers entry points by group and name."""
        (self.path / f"{name}.py").write_text(
            "from __future__ import annotations\n" + source, encoding="utf-8"
        )
        information = self.path / f"{name}-1.0.dist-info"
        information.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        (information / "METADATA").write_text(metadata, encoding="utf-8")
        lines = []
        for group, entries in groups.items():
            lines += [f"[{group}]", *(f"{entry} = {value}" for entry, value in entries.items())]
        (information / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        self.modules.append(name)
        importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Give a test a place to install packages into."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("PYTHONPATH", str(path))
    made = Site(path)
    yield made
    for name in made.modules:
        sys.modules.pop(name, None)
