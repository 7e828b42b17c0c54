"""What holds for every input: slices, intervals, durations, interruptions and configurations.

``HOOKLOOP_EXAMPLES=100000`` tries that many of each, others at each start.
"""

from __future__ import annotations

import importlib.util
import sys
from datetime import timedelta
from functools import lru_cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import attrs
import pytest
from attrs import define, evolve
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st

from hookloop import config, manager, yamlfile
from hookloop.core import train
from hookloop.errors import ConfigError, HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.records import masked, write_config
from hookloop.settings import RunConfig, epoch_slice, epochs_in
from hookloop.testing import Recorder
from hookloop.yamlfile import Document

if TYPE_CHECKING:
    from types import ModuleType

    from hookloop.core import Run


INTEGERS = st.one_of(st.integers(-12, 12), st.integers())
SLICES = st.one_of(
    st.lists(st.one_of(st.just(""), INTEGERS.map(str)), min_size=1, max_size=4).map(":".join),
    st.text("0123456789:-"),
)


def by_python(text: str, max_epochs: int) -> list[int] | None:
    """Slice as Python does; ``None`` where it is no slice."""
    parts = text.split(":")
    if len(parts) not in (2, 3):
        return None
    try:
        return list(range(max_epochs + 1))[slice(*(int(part) if part else None for part in parts))]
    except ValueError:
        return None


def accepted(text: str) -> bool:
    """Whether *text* passes as a slice of epochs; what does not raises a ValueError."""
    try:
        epoch_slice(None, attrs.fields(RunConfig).dir, text)  # type: ignore[arg-type]
    except ValueError as error:
        assert "such as '::5'" in str(error)  # noqa: PT017
        return False
    return True


@many(1000)
@given(SLICES, st.integers(0, 30))
def test_epochs_are_sliced_as_python_slices(text: str, max_epochs: int) -> None:
    """Whatever Python takes is taken and means the same, up to numbers of 18 digits."""
    expected = by_python(text, max_epochs)
    short = all(len(part.lstrip("-")) <= 18 for part in text.split(":"))
    assert accepted(text) is (expected is not None and short)
    if accepted(text):
        assert list(epochs_in(text, max_epochs)) == expected


@many(500)
@given(st.text(), st.integers(0, 30))
def test_any_text_is_a_slice_of_epochs_or_refused(text: str, max_epochs: int) -> None:
    """Never anything else."""
    if accepted(text):
        assert list(epochs_in(text, max_epochs)) == by_python(text, max_epochs)


@many(500)
@given(
    st.integers(-2, 40),
    st.sampled_from(["epoch", "epochs", "batch", "batches"]),
    st.integers(1, 12),
    st.integers(1, 7),
)
def test_an_interval_is_what_counting_gives(every: int, unit: str, max_epochs: int, n_batches: int) -> None:
    """Epochs in or after which something is due are those of a walk through all batches, and the last one."""
    text = f"{every} {unit}"
    if every < 1:
        with pytest.raises(ValueError, match="such as '1 epoch'"):
            RunConfig(dir=Path("x"), validate_every=text)
        return
    run = RunConfig(dir=Path("x"), max_epochs=max_epochs, validate_every=text)
    due = {max_epochs}
    for step in range(1, max_epochs * n_batches + 1):
        epoch = (step - 1) // n_batches + 1
        at_its_time = unit.startswith("batch") or step % n_batches == 0
        if at_its_time and (step if unit.startswith("batch") else epoch) % every == 0:
            due.add(epoch)
    assert run.validated_epochs(n_batches) == sorted(due)
    ends = {epoch for epoch in range(1, max_epochs + 1) if run.evaluates_after(epoch, epoch * n_batches)}
    counted = {
        epoch: epoch * n_batches if unit.startswith("batch") else epoch for epoch in range(1, max_epochs)
    }
    assert ends == {max_epochs, *(epoch for epoch, count in counted.items() if count % every == 0)}


DURATIONS = st.tuples(*[st.none() | st.integers(0, 10**9 - 1)] * 4)


@many(500)
@given(DURATIONS)
def test_a_duration_is_the_sum_of_its_parts(parts: tuple[int | None, ...]) -> None:
    """Days, hours, minutes and seconds, any of which may be missing, but not all."""
    text = "".join(f"{part}{unit}" for part, unit in zip(parts, "dhms", strict=True) if part is not None)
    if not text:
        with pytest.raises(ValueError, match="such as 3h50m"):
            RunConfig(dir=Path("x"), time_limit=text)
        return
    days, hours, minutes, seconds = (part or 0 for part in parts)
    expected = timedelta(hours=hours, minutes=minutes, seconds=seconds) / timedelta(seconds=1) + 86400 * days
    assert RunConfig(dir=Path("x"), time_limit=text).time_limit_seconds == expected


@many(500)
@given(st.one_of(st.text(), st.text("0123456789dhms epochbats")))
def test_any_text_is_an_interval_or_a_duration_or_refused(text: str) -> None:
    """What is accepted can be counted with, what is not is a ValueError that shows one."""
    try:
        assert RunConfig(dir=Path("x"), validate_every=text).validated_epochs(3) == [1]
    except ValueError as error:
        assert "such as '1 epoch'" in str(error)  # noqa: PT017
    try:
        limit = RunConfig(dir=Path("x"), time_limit=text).time_limit_seconds
        assert limit is not None
        assert 0 <= float(limit) < float("inf")
    except ValueError as error:
        assert "such as 3h50m" in str(error)  # noqa: PT017


@define(eq=False)
class Interruption:
    """Stops or breaks a run after a batch, or while it validates or infers."""

    how: Literal["stop", "break"]
    where: Literal["after_batch", "validate", "infer"]
    step: int

    def _interrupt(self, run: Run, where: str) -> None:
        if where == self.where and run.progress.step >= self.step:
            if self.how == "break":
                raise InterruptedError
            run.stop("enough", 75)

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Interrupt there."""
        self._interrupt(run, "after_batch")

    @hookimpl
    def validate(self, run: Run) -> None:
        """Interrupt there."""
        self._interrupt(run, "validate")

    @hookimpl
    def infer(self, run: Run) -> None:
        """Interrupt there."""
        self._interrupt(run, "infer")


@pytest.fixture(scope="module")
def resume() -> ModuleType:
    """The runs of ``test_resume.py`` and what compares them."""
    spec = importlib.util.spec_from_file_location("resumed", Path(__file__).with_name("test_resume.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["resumed"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Numbers = dict[tuple[int, str], object]
Undisturbed = tuple[Path, Numbers]


def numbers(recorder: Recorder) -> Numbers:
    """Every number that was logged, by step and name, but for those that a clock gives."""
    logged = [((step, key), value) for step, found in recorder.logged for key, value in found.items()]
    return {place: value for place, value in logged if not place[1].endswith("_seconds")}


INTERRUPTIONS = st.lists(
    st.builds(
        Interruption,
        st.sampled_from(["stop", "break"]),
        st.sampled_from(["after_batch", "after_batch", "validate", "infer"]),
        st.integers(1, 10),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, resume: ModuleType) -> dict[str, Undisturbed]:
    """Directories of runs that nobody interrupted, and what they logged, by when they were validated."""
    runs = {}
    for when in ("1 epoch", "2 epochs", "1 batch", "3 batches"):
        directory = tmp_path_factory.mktemp("undisturbed")
        run = resume.net_run(directory, recorder := Recorder())
        run.config = evolve(run.config, validate_every=when)
        train(run)
        runs[when] = directory, numbers(recorder)
    return runs


@many(25)
@given(
    INTERRUPTIONS,
    st.sampled_from(["1 epoch", "2 epochs", "1 batch", "3 batches"]),
    st.sampled_from([1, 2, 3, 1000]),
    st.sampled_from([None, 1]),
)
def test_a_run_may_be_interrupted_anywhere_and_as_often_as_one_likes(
    undisturbed: dict[str, Undisturbed],
    resume: ModuleType,
    interruptions: list[Interruption],
    when: str,
    every: int,
    segment: int | None,
) -> None:
    """Resumed until it is done, its states and all that it logged are those of a run that nobody interrupted."""
    whole, expected = undisturbed[when]
    logged: Numbers = {}
    with TemporaryDirectory() as name:
        for interruption in [*interruptions, *[None] * resume.EPOCHS]:  # it may have to go on once an epoch
            extra = [] if interruption is None else [interruption]
            run = resume.net_run(Path(name), recorder := Recorder(), *extra, every=every)
            run.config = evolve(run.config, validate_every=when, segment_epochs=segment)
            try:
                train(run)
            except InterruptedError:
                assert interruption is not None
            found = numbers(recorder)
            assert found == {place: expected[place] for place in found}
            logged |= found
        resume.assert_same_runs(Path(name), whole)
    assert logged == expected


@pytest.fixture(autouse=True)
def _plugins_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed does not change meanwhile, and finding it takes ten times as long as all the rest."""

    @lru_cache
    def found(**by: str) -> EntryPoints:
        return entry_points(**by)

    for module in (manager, config):
        monkeypatch.setattr(module, "entry_points", found)


def assembled(document: Document) -> manager.Assembly | None:
    """Check a configuration; ``None`` where it is refused as people are to be told."""
    try:
        return manager.assemble(document, None)
    except HookloopError as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        assert problems
        assert all(problem.startswith(("cfg.yaml", "--plugins: ")) for problem in problems), problems
        return None


def assert_reads_back(assembly: manager.Assembly) -> None:
    """The record of an accepted configuration is accepted and is the same."""
    with TemporaryDirectory() as name:
        write_config(Path(name), assembly.document, manager.listing_of(list(assembly.plugins)))
        text = (Path(name) / "config.yaml").read_text(encoding="utf-8")
    again = manager.assemble(yamlfile.read(text, "config.yaml"), None)
    assert repr(masked(again.document)) == repr(masked(assembly.document))
    assert list(again.plugins) == list(assembly.plugins)


WORDS = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=10,
)
NAMES = ["run", *sorted(manager.installed())]


@many(300)
@given(st.dictionaries(st.one_of(st.sampled_from([*NAMES, "plugins"]), WORDS), PLAIN, max_size=4))
def test_any_plain_data_is_a_configuration_or_refused(data: dict[str, Any]) -> None:
    """Whatever stands in whatever section."""
    assembly = assembled(Document(data, {}, "cfg.yaml"))
    if assembly is not None:
        assert_reads_back(assembly)


@many(300)
@given(st.text(st.sampled_from("run:plgis,[]{}&*!|>'\"%@-# \n\t0e.\\"), max_size=200))
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    """Whatever stands in the file."""
    try:
        document = yamlfile.read(text, "cfg.yaml")
    except ConfigError as error:
        assert all(problem.startswith("cfg.yaml") for problem in error.problems)  # noqa: PT017
        return
    assembled(document)


TEXTS = st.sampled_from(
    ["x", "::2", "-1:", "5 epochs", "3h50m", "cpu", "2019-03-01", "1e5", "no", "é", "'", "#"]
)
SOUND = {
    bool: st.booleans(),
    int: st.integers(-1, 9),
    float: st.floats(0, 2) | st.integers(0, 9),
    str: TEXTS,
    Path: TEXTS,
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Give values of a kind that an option may have, most of them sound."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return st.sampled_from(arguments)
    if get_origin(kind) in (list, tuple):
        return sequences([a for a in arguments if a is not Ellipsis])
    if get_origin(kind) is dict:
        return st.dictionaries(st.sampled_from(["t2m", "a.b", "1"]), values(arguments[1]), max_size=2)
    if arguments:
        return st.one_of(*(st.none() if arm is type(None) else values(arm) for arm in arguments))
    return options(kind) if attrs.has(kind) else SOUND.get(kind, PLAIN)


def sequences(kinds: list[Any]) -> st.SearchStrategy[list[Any]]:
    """Give lists of one kind, or of these kinds in this order."""
    if len(kinds) == 1:
        return st.lists(values(kinds[0]), min_size=1, max_size=3)
    return st.tuples(*map(values, kinds)).map(list)


def chosen(a: attrs.Attribute[Any]) -> st.SearchStrategy[Any]:
    """Give values of an option; one whose class is chosen by name is any of those that are offered."""
    if "group" not in a.metadata:
        return values(a.type)
    offered = st.sampled_from(sorted(entry_points(group=a.metadata["group"]), key=lambda entry: entry.name))
    named = offered.flatmap(
        lambda entry: options(entry.load()).map(lambda found: {"name": entry.name, **found})
    )
    return st.lists(named, min_size=1, max_size=2) if get_origin(a.type) is list else named


def options(cls: type) -> st.SearchStrategy[dict[str, Any]]:
    """Give options for a class: all that it demands, some of the others."""
    fields = {a.alias or a.name: a for a in config.resolved_fields(cls) if a.init}
    needed = {name: chosen(a) for name, a in fields.items() if a.default is attrs.NOTHING}
    others = {name: chosen(a) for name, a in fields.items() if name not in needed}
    return st.fixed_dictionaries(needed, optional=others)


def sections(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Give a configuration with one section beside ``run``, which is sound."""
    cls = RunConfig if name == "run" else manager.load(name)
    run = {"dir": "x"} if name != "run" else {}
    return options(cls).map(
        lambda found: {"run": run, "plugins": [name] if name != "run" else [], name: found}
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_accepted_is_recorded_so_that_it_reads_back(name: str) -> None:
    """With options of the right kinds, for the core and for each plugin; some are sound."""
    sound = []

    @many(25)
    @given(sections(name))
    def check(data: dict[str, Any]) -> None:
        assembly = assembled(Document(data, {}, "cfg.yaml"))
        if assembly is not None:
            sound.append(1)
            assert_reads_back(assembly)

    check()
    assert sound
