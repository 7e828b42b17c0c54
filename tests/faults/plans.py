"""What is to be done to a run directory, and where a scenario gets such plans from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import TypeAlias

from attrs import frozen

from faults.bench import Bench, Trial


@frozen
class Plan:
    """One trial, not yet carried out."""

    name: str
    job: str
    carry_out: Callable[[Trial], None]


Scenario: TypeAlias = Callable[[Bench, Random], Iterator[Plan]]
"""Plans in a random order, so that the first few are a sample of all."""
