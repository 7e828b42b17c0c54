"""Frozen hooks answer as pluggy does."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import pluggy
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from hookloop import hookimpl
from hookloop.core import train
from hookloop.hot import freeze
from hookloop.manager import register
from hookloop.testing import TinyData, TinyTask, calling, fake_run

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

SPEC = pluggy.HookspecMarker("hookloop")
ARGUMENTS: dict[str, object] = {"run": "r", "batch": "b", "losses": "l"}
SUBSETS = [names for n in range(4) for names in permutations(ARGUMENTS, n)]


class Specs:
    """One hook that tells, one that asks for the first answer."""

    @SPEC
    def tell(self, run: object, batch: object, losses: object) -> None:
        """Tell."""

    @SPEC(firstresult=True)
    def ask(self, run: object, batch: object, losses: object) -> object:
        """Ask."""


@frozen
class Implementation:
    """What a random plugin does in both hooks."""

    names: tuple[str, ...]
    order: str | None
    answer: int | None
    wraps: bool = False

    def plugin(self, number: int, note: Callable[..., None]) -> object:
        """Make a plugin that notes its number and arguments."""

        def called(*found: object) -> int | None:
            note(number, *found)
            return self.answer

        def wrapper(_self: object, run: object) -> Generator[None, object, object]:
            note(number, "in", run)
            answer = yield
            note(number, "out", answer)
            return answer

        # pluggy reads the names of a function's parameters, so they must be real ones
        source = f"lambda self, {', '.join(self.names)}: called({', '.join(self.names)})"
        plain = eval(source, {"called": called})  # noqa: S307 - our own text
        implementation = hookimpl(
            wrapper if self.wraps else plain,
            wrapper=self.wraps,
            tryfirst=self.order == "tryfirst",
            trylast=self.order == "trylast",
        )
        return type(f"Plugin{number}", (), {"tell": implementation, "ask": implementation})()


def implementations(*, wraps: st.SearchStrategy[bool]) -> st.SearchStrategy[list[Implementation]]:
    """Random plugins, in random numbers."""
    one = st.builds(
        Implementation,
        names=st.sampled_from(SUBSETS),
        order=st.sampled_from([None, "tryfirst", "trylast"]),
        answer=st.sampled_from([None, None, 0, 1, 2]),
        wraps=wraps,
    )
    return st.lists(one, max_size=6)


def registered(chosen: list[Implementation]) -> tuple[pluggy.HookRelay, list[tuple[object, ...]]]:
    """Make a relay with these plugins, and the list where their calls are noted."""
    calls: list[tuple[object, ...]] = []
    manager = pluggy.PluginManager("hookloop")
    manager.add_hookspecs(Specs)
    for number, implementation in enumerate(chosen):
        manager.register(implementation.plugin(number, lambda *found: calls.append(found)))
    return manager.hook, calls


@given(implementations(wraps=st.just(value=False)))
def test_a_frozen_hook_that_tells_calls_as_pluggy_does(chosen: list[Implementation]) -> None:
    """The same plugins with the same arguments in the same order."""
    hook, calls = registered(chosen)
    hook.tell(**ARGUMENTS)
    expected = calls.copy()
    calls.clear()
    freeze(hook.tell)(*ARGUMENTS.values())
    assert calls == expected


@given(implementations(wraps=st.just(value=False)))
def test_a_frozen_hook_that_asks_answers_as_pluggy_does(chosen: list[Implementation]) -> None:
    """The first answer that is not None, and nobody is called after it."""
    hook, calls = registered(chosen)
    answer = hook.ask(**ARGUMENTS)
    expected = calls.copy()
    calls.clear()
    assert freeze(hook.ask)(*ARGUMENTS.values()) == answer
    assert calls == expected


@given(implementations(wraps=st.booleans()))
def test_wrappers_are_called_as_pluggy_does(chosen: list[Implementation]) -> None:
    """With wrappers anywhere among the plugins, both kinds of hook are the same as pluggy's."""
    hook, calls = registered(chosen)
    for caller in (hook.tell, hook.ask):
        calls.clear()
        answer = caller(**ARGUMENTS)
        expected = calls.copy()
        calls.clear()
        frozen_answer = freeze(caller)(*ARGUMENTS.values())
        assert calls == expected
        assert frozen_answer in (answer, None if caller is hook.tell else answer)


def test_pluggy_itself_is_asked_where_there_is_a_wrapper() -> None:
    """Nothing of a wrapper's semantics is imitated: pluggy counts that call, and not the one without a wrapper."""

    class Wrapping:
        @hookimpl(wrapper=True)
        def train_step(self) -> Generator[None, object, object]:
            return (yield)

        @hookimpl
        def before_batch(self) -> None:
            pass

    asked: list[str] = []
    manager = register({"wrapping": Wrapping()})
    manager.add_hookcall_monitoring(lambda name, *_: asked.append(name), lambda *_: None)
    freeze(manager.hook.before_batch)(None, None)
    freeze(manager.hook.train_step)(None, None)
    assert asked == ["train_step"]


def test_a_wrapper_of_the_old_kind_counts_too() -> None:
    """``hookwrapper=True`` is a wrapper as well: it lies around what it wraps."""
    calls: list[str] = []

    class Old:
        @hookimpl(hookwrapper=True)
        def after_batch(self) -> Generator[None, object, None]:
            calls.append("in")
            yield
            calls.append("out")

    class Plain:
        @hookimpl
        def after_batch(self) -> None:
            calls.append("plain")

    freeze(calling(Plain(), Old()).after_batch)(None, None, {})
    assert calls == ["in", "plain", "out"]


def test_arguments_are_those_of_the_specification_in_its_order() -> None:
    """The three hooks of a batch pass on what the loop gives them, whatever order a plugin names it in."""
    found: list[object] = []

    class Naming:
        @hookimpl
        def before_batch(self, batch: object, run: object) -> None:
            found.append((run, batch))

        @hookimpl
        def train_step(self, batch: object) -> object:
            found.append(batch)
            return "answer"

        @hookimpl
        def after_batch(self, losses: object, run: object) -> None:
            found.append((run, losses))

    hook = calling(Naming())
    freeze(hook.before_batch)("r", "b")
    assert freeze(hook.train_step)("r", "b") == "answer"
    freeze(hook.after_batch)("r", "b", "l")
    assert found == [("r", "b"), "b", ("r", "l")]


def test_an_error_is_raised_and_nobody_is_called_after_it() -> None:
    """As with pluggy."""
    calls: list[str] = []

    class Failing:
        @hookimpl
        def after_batch(self) -> None:
            raise ZeroDivisionError

    class After:
        @hookimpl
        def after_batch(self) -> None:
            calls.append("after")

    with pytest.raises(ZeroDivisionError):
        freeze(calling(Failing(), After()).after_batch)(None, None, {})
    assert not calls


def test_a_wrapper_around_a_batch_is_honoured_in_a_run(tmp_path: Path) -> None:
    """A plugin that wraps ``train_step`` changes what ``after_batch`` is told."""
    told: list[object] = []

    class Wrapping:
        @hookimpl(wrapper=True)
        def train_step(self) -> Generator[None, object, object]:
            yield
            return "replaced"

        @hookimpl
        def after_batch(self, losses: object) -> None:
            told.append(losses)

    train(fake_run(tmp_path, Wrapping(), task=TinyTask(data={"train": TinyData(2)})))
    assert told == ["replaced", "replaced"]
