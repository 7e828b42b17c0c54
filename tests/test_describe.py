"""What is installed and what can be hooked, as text."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest

from hookloop import __version__, describe, hookspecs
from hookloop.errors import HookloopError
from hookloop.manager import ALWAYS, hook_names, listing_of

if TYPE_CHECKING:
    from conftest import Site

PLUGIN = '''
from pathlib import Path
import attrs
from hookloop import hookimpl
from hookloop.settings import doc

@attrs.frozen
class Part:
    """Options within options."""
    mean: float = attrs.field(default=0.5, metadata=doc("the mean"))

@attrs.define(eq=False)
class Plugin:
    """Say something.

    At length.
    """
    needed: int = attrs.field(metadata=doc("must be given"))
    flag: bool = attrs.field(default=True, metadata=doc("on or off"))
    text: str = "plain"
    nothing: int | None = None
    pair: tuple[float, float] = (0.5, 1.0)
    where: Path = Path("a/b")
    names: list[str] = attrs.field(factory=lambda: ["x"])
    part: Part = attrs.field(factory=Part, metadata=doc("a part"))
    state: int = attrs.field(default=0, init=False)

    @hookimpl(wrapper=True)
    def validate(self):
        return (yield)

    @hookimpl
    def before_run(self): ...
'''


def block(name: str) -> list[str]:
    """Give the lines about one plugin."""
    (found,) = (part for part in describe.plugins().split("\n\n") if part.startswith(f"{name}  "))
    return found.splitlines()


def test_every_installed_plugin_is_described() -> None:
    """In alphabetical order, a block each, after the core's own options."""
    core, *names = [part.split("  ")[0] for part in describe.plugins().split("\n\n")]
    assert core == "run"
    assert names == sorted(names)
    assert {"ema", "downscaling", "wandb", *ALWAYS} <= set(names)


def test_a_plugin_s_block_says_all_there_is_to_know(site: Site) -> None:
    """Where from, on by default, what it does, its hooks in firing order, its options with defaults."""
    site.install("third", PLUGIN, {"hookloop": {"third": "third:Plugin"}})
    assert block("third") == [
        "third  (third 1.0, third:Plugin, off by default)",
        "  Say something.",
        "  hooks: before_run, validate",
        "  needed: <an integer, required>  # must be given",
        "  flag: true  # on or off",
        "  text: plain",
        "  nothing: null",
        "  pair: [0.5, 1.0]",
        '  where: "a/b"',
        '  names: ["x"]',
        "  part: ...  # a part",
        "  part.mean: 0.5  # the mean",
    ]


WITHIN = '''
import attrs
from hookloop.settings import doc

@attrs.frozen
class Leaf:
    """The innermost."""
    size: int = attrs.field(metadata=doc("how large"))

@attrs.frozen
class Branch:
    """Holds leaves."""
    leaves: list[str | Leaf] = attrs.field(factory=list, metadata=doc("names, or leaves"))

@attrs.define(eq=False)
class Plugin:
    """Hold much."""
    either: Branch | list[Branch] | None = attrs.field(default=None, metadata=doc("one, several or none"))
    by_name: dict[str, Leaf] = attrs.field(factory=dict, metadata=doc("by name"))
    one: Branch = attrs.field(factory=Branch)
    other: Branch | None = None
'''


def test_options_within_lists_names_and_alternatives_are_described_once(site: Site) -> None:
    """Below what holds them; another that may hold the same class says where that was."""
    site.install("within", WITHIN, {"hookloop": {"within": "within:Plugin"}})
    assert block("within")[3:] == [
        "  either: null  # one, several or none",
        "  either.leaves: []  # names, or leaves",
        "  either.leaves[].size: <an integer, required>  # how large",
        "  by_name: {}  # by name; options as of either.leaves[]",
        "  one: ...",
        "  one.leaves: []  # names, or leaves; options as of either.leaves[]",
        "  other: null  # options as of either",
    ]


def test_options_of_downscaling_that_are_held_by_others_are_described() -> None:
    """Sources, blocks of time, static fields, regions and transforms."""
    names = {line.split(":")[0].strip() for line in block("downscaling")}
    assert {"train.coarse[].path", "train.coarse[].rename", "train.coarse[].ensemble"} <= names
    assert {"train.coarse[].storage_options", "train.repeat.take", "statics[].variable"} <= names
    assert {"patch.region.weight", "transforms.NAME.scale", "transforms.NAME.minimum"} <= names
    assert any(line.endswith("options as of train") for line in block("downscaling"))


def test_built_in_plugins_say_so() -> None:
    """With the version of this package."""
    assert block("checkpoint")[0].startswith(f"checkpoint  (hookloop {__version__}, ")
    assert block("checkpoint")[0].endswith(", on by default)")
    assert block("ema")[0].endswith(", off by default)")


def test_an_option_under_another_name_is_described_under_that_name() -> None:
    """As it is written in a configuration."""
    assert any(line.startswith("  validate: true  #") for line in block("ema"))


def test_what_may_be_chosen_is_described_by_name(site: Site) -> None:
    """Each choice with the options it then has, third parties' too; a broken one hides no other."""
    source = """
import attrs
from hookloop.schedules import Schedule
from hookloop.settings import doc

@attrs.frozen(kw_only=True)
class Mine(Schedule):
    'Do as I say.'
    chosen_as = "Mine"
    depth: int = attrs.field(default=3, metadata=doc("how deep"))
"""
    offered = {"Mine": "mine:Mine", "Broken": "mine:nothing"}
    site.install("mine", source, {"hookloop.schedules": offered})
    lines = block("optimization")
    assert "  scheduler: ConstantLR  # the learning rate's course, by name, and its options" in lines
    at = lines.index("  scheduler.name: Mine  # Do as I say.")
    assert lines[at + 3] == "  scheduler.depth: 3  # how deep"
    assert any(line.startswith("  scheduler.name: Broken  # broken: ") for line in lines)
    at = lines.index(
        "  scheduler.name: SequentialLR  # One schedule after another, each from its own beginning."
    )
    assert lines[at + 3].startswith("  scheduler.schedulers: <a list, required>")
    assert lines[at + 5].startswith("  scheduler.name: ")  # the list's own choices are those again


@pytest.mark.parametrize("source", ["import nothing_like_this", "1 / 0", "this is no Python", "Plugin = 1"])
def test_a_broken_plugin_does_not_hide_the_others(site: Site, source: str) -> None:
    """It is described as broken, with the reason, and no more than a line."""
    site.install("third", source, {"hookloop": {"third": "third:Plugin"}})
    head, reason = block("third")
    assert head == "third  (third 1.0, third:Plugin, off by default)"
    assert reason.startswith("  broken: ")
    assert len(block("ema")) > 2


def test_the_reference_holds_every_hook_in_its_own_words() -> None:
    """In firing order, with its signature and what its specification says."""
    text = describe.hooks()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == hook_names()
    assert (inspect.getdoc(hookspecs.after_batch) or "nothing") in text
    assert "def after_batch(run: Run, batch: Batch, losses: Mapping[str, Tensor]) -> None" in text
    assert text.endswith("\n")


def test_the_reference_says_whose_answer_counts() -> None:
    """The first one, or all of them."""
    sections = dict(part.split("\n", maxsplit=1) for part in describe.hooks().split("\n## ")[1:])
    assert "*the first answer counts*" in sections["train_step"]
    assert "*all are called*" in sections["validate"]


def test_the_firing_order_is_a_line_per_hook(site: Site) -> None:
    """Wrappers are marked, and a hook that nobody answers has a dash."""
    site.install("third", PLUGIN, {"hookloop": {"third": "third:Plugin"}})
    lines = describe.order(listing_of(["third", "ema", "validation"])).splitlines()
    rows = dict(line.split(maxsplit=1) for line in lines[: len(hook_names())])
    assert list(rows) == hook_names()
    assert rows["validate"] == "third( ema( validation ) )"
    assert rows["before_run"] == "third > ema > validation"
    assert rows["make_task"] == "-"


def test_the_firing_order_of_what_is_not_installed_is_an_error() -> None:
    """The user's mistake, as for a run."""
    with pytest.raises(HookloopError, match="did you mean 'ema'"):
        describe.order(["emma"])


def test_a_plugin_that_leads_says_so() -> None:
    """Its hooks are called on one of several ranks."""
    assert next(line for line in block("jsonl") if "hooks:" in line).endswith("shutdown (on rank 0 only)")
