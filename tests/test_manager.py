"""From names to plugins: who is found, who is chosen, who is called first."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define

from hookloop import hookimpl, hookspecs
from hookloop.config import options_of
from hookloop.distributed import Ranks
from hookloop.errors import ConfigError, HookloopError
from hookloop.manager import (
    ALWAYS,
    Assembly,
    assemble,
    firing_order,
    hook_names,
    installed,
    listing_of,
    load,
    make_run,
    pick_device,
    register,
    select,
)
from hookloop.records import write_config
from hookloop.testing import fake_run
from hookloop.yamlfile import Document, read

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Site

NONE = listing_of([])
"""Leaves out all that is on by default."""

PLUGIN = """
import attrs
from hookloop import hookimpl

@attrs.define(eq=False)
class Plugin:
    size: int = 1
"""


def problems(listing: list[str]) -> list[str]:
    """Tell what is wrong with a list of plugins."""
    with pytest.raises(ConfigError) as raised:
        select(listing)
    return raised.value.problems


def test_finds_what_is_installed_without_importing_it(site: Site) -> None:
    """Built-in and third-party plugins alike."""
    site.install("surprise", "raise ZeroDivisionError", {"hookloop": {"surprise": "surprise:Plugin"}})
    found = installed()
    assert found["surprise"].value == "surprise:Plugin"
    assert {"ema", *ALWAYS} <= found.keys()
    assert "surprise" not in sys.modules


def test_two_distributions_offering_one_name_are_an_error_naming_both(site: Site) -> None:
    """Nobody is run by accident."""
    for name in ("first", "second"):
        site.install(name, PLUGIN, {"hookloop": {"same": f"{name}:Plugin"}})
    expected = r"plugin 'same': offered by (first 1.0 and second|second 1.0 and first) 1.0; uninstall one"
    with pytest.raises(HookloopError, match=expected):
        installed()


def test_a_name_of_ours_offered_by_another_is_an_error_too(site: Site) -> None:
    """A plugin cannot be replaced behind one's back."""
    site.install("rival", PLUGIN, {"hookloop": {"ema": "rival:Plugin"}})
    with pytest.raises(HookloopError, match=r"plugin 'ema': offered by .*rival 1\.0"):
        installed()


def test_what_is_listed_comes_first_then_the_defaults() -> None:
    """In their orders."""
    assert select(["wandb", "ema"]) == ["wandb", "ema", *ALWAYS]


def test_a_default_that_is_listed_keeps_its_place_in_the_list() -> None:
    """It is not there twice."""
    assert select(["checkpoint", "ema"]) == ["checkpoint", "ema", *(n for n in ALWAYS if n != "checkpoint")]


@pytest.mark.parametrize("label", ["", "a b", "x@y", "x.y", "x/y", "x,y", "ä", "x" * 41, "slow\n"], ids=repr)
def test_a_label_that_cannot_be_written_everywhere_is_refused(label: str) -> None:
    """It becomes part of file names and of options on the command line."""
    assert problems([f"ema@{label}"]) == [
        f"--plugins: ema@{label}: expected ema@LABEL with 1 to 40 letters, digits, '-' or '_', found {label!r}"
    ]


@pytest.mark.parametrize("name", ALWAYS)
def test_what_is_on_already_is_there_once(name: str) -> None:
    """A second checkpoint would write over the first one's files."""
    assert problems([f"{name}@b"]) == [
        f"--plugins: {name}@b: there is one {name} in a run, and it is on already; expected no label"
    ]


def test_one_plugin_runs_under_several_names() -> None:
    """Each keeps its place, with or without the plain name; what is always on is there as ever."""
    listing = ["ema@slow", "wandb", "ema", "ema@" + "x" * 40, "ema@A-b_9"]
    assert select(listing) == [*listing, *ALWAYS]
    assert select(["ema@slow", "no:progress"]) == ["ema@slow", *(n for n in ALWAYS if n != "progress")]
    assert load("ema@slow") is load("ema")


def test_the_firing_order_has_every_name() -> None:
    """Wrappers of several instances nest in listing order."""
    order = dict(firing_order(["ema", "ema@slow", *NONE]))
    assert order["after_batch"] == ["ema", "ema@slow"]
    assert order["validate"] == ["(ema", "(ema@slow"]


def test_an_unknown_name_with_a_label_cannot_be_loaded() -> None:
    """The suggestion keeps the label."""
    with pytest.raises(HookloopError, match=r"plugin 'emma@slow': not installed; did you mean 'ema@slow'\?"):
        load("emma@slow")


def test_every_name_has_its_own_section() -> None:
    """Options by the name in the list; a problem is told with the section it is in."""
    text = "run: {dir: x}\nema: {decay: 0.5}\nema@slow: {decay: 0.75}\nema@deep: {deacy: 1}"
    assembly = assemble(read(text, "cfg.yaml"), ["ema", "ema@slow", "ema@new", *NONE])
    decays = {name: options_of(plugin)["decay"] for name, plugin in assembly.plugins.items()}
    assert decays == {"ema": 0.5, "ema@slow": 0.75, "ema@new": 0.9999}
    assert {name: options["decay"] for name, options in _sections(assembly).items()} == decays
    assert list(assembly.notes) == ["cfg.yaml:4: ema@deep: plugin not listed, its section is left alone"]
    assert check(text, ["ema@deep", *NONE]) == [
        "cfg.yaml:4: ema@deep.deacy: unknown option; did you mean 'decay'?"
    ]


def _sections(assembly: Assembly) -> dict[str, dict[str, object]]:
    return {name: dict(options) for name, options in assembly.document.items() if name != "run"}  # type: ignore[arg-type,call-overload]


def test_a_section_under_a_label_can_be_overridden() -> None:
    """``--set`` takes its name as it is."""
    document = read("run: {dir: x}", "cfg.yaml", ["ema@slow.decay=0.25"])
    assembly = assemble(document, ["ema@slow", *NONE])
    assert options_of(assembly.plugins["ema@slow"])["decay"] == 0.25


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("emma@slow", "unknown section; did you mean 'ema@slow'?"),
        ("zzz@slow", "unknown section"),
        ("run@slow", "unknown section"),
        ("ema@a b", "expected ema@LABEL with 1 to 40 letters, digits, '-' or '_', found 'a b'"),
        ("ema@", "expected ema@LABEL with 1 to 40 letters, digits, '-' or '_', found ''"),
    ],
)
def test_a_section_with_a_label_that_nobody_owns_is_an_error(section: str, expected: str) -> None:
    """A typing mistake on either side of the @ must not switch a plugin off."""
    assert check(f"run: {{dir: x}}\n'{section}': {{}}", ["ema", *NONE]) == [
        f"cfg.yaml:2: {section}: {expected}"
    ]


def test_the_record_of_a_run_with_several_names_makes_the_same_run(tmp_path: Path) -> None:
    """Plugins, their order and their options come back from ``config.yaml``."""
    text = f"run: {{dir: {tmp_path}}}\nema: {{decay: 0.5}}\nema@slow: {{sigma_rel: 0.1, validate: false}}"
    first = assemble(read(text, "cfg.yaml"), ["ema@slow", "ema", *NONE])
    write_config(tmp_path, first.document, listing_of(list(first.plugins)))
    again = assemble(read((tmp_path / "config.yaml").read_text(encoding="utf-8"), "config.yaml"), None)
    assert list(again.plugins) == list(first.plugins) == ["ema@slow", "ema"]
    assert (again.document, again.config) == (first.document, first.config)


@pytest.mark.parametrize(
    "names", [[], ["ema"], ["checkpoint", "ema"], [*ALWAYS], ["ema@slow", "signals", "ema"]]
)
def test_any_selection_can_be_listed(names: list[str]) -> None:
    """The list selects exactly that, in that order."""
    assert select(listing_of(names)) == names


def test_a_default_can_be_left_out() -> None:
    """With ``no:NAME``, anywhere in the list."""
    assert select(["no:progress", "ema"]) == ["ema", *(n for n in ALWAYS if n != "progress")]


@pytest.mark.parametrize(
    ("listing", "start"),
    [
        (["emma"], "--plugins: emma: not installed; did you mean 'ema'?; there are "),
        (["emma", "emma"], "--plugins: emma: not installed; did you mean 'ema'?; there are "),
        (["no:progres"], "--plugins: progres: not installed; did you mean 'progress'?; there are "),
        (["ema", "ema"], "--plugins: ema: listed twice"),
        (["ema", "no:ema"], "--plugins: ema: both listed and left out"),
        (["emma@slow"], "--plugins: emma@slow: not installed; did you mean 'ema@slow'?; there are "),
        (["@slow"], "--plugins: @slow: not installed; there are "),
        (["ema@slow", "ema@slow"], "--plugins: ema@slow: listed twice"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(listing: list[str], start: str) -> None:
    """With a suggestion where there is one."""
    assert problems(listing)[0].startswith(start)


@pytest.mark.parametrize("listing", [["no:ema@slow"], ["ema@slow", "no:ema@slow"], ["no:emma@slow"]])
def test_only_plain_names_are_left_out(listing: list[str]) -> None:
    """One more instance is there because it was listed, so there is one thing to say."""
    name = listing[-1].removeprefix("no:")
    assert problems(listing) == [
        f"--plugins: no:{name}: {name} runs only if it is listed; take no:{name} off the list"
    ]


def test_every_problem_of_a_list_is_told_at_once() -> None:
    """A line each."""
    found = problems(["ema", "nobody", "ema", "wandb", "no:wandb"])
    assert [problem.split(": ")[1] for problem in found] == ["nobody", "ema", "wandb"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "import nothing_like_this",
            r"plugin 'third' \(third 1\.0\): cannot be imported: .*nothing_like_this",
        ),
        ("", r"plugin 'third' \(third 1\.0\): cannot be imported: .*Plugin"),
        ("Plugin = 1", r"third:Plugin is no class marked @attrs\.define\(eq=False\)"),
        ("class Plugin: pass", r"third:Plugin is no class marked @attrs\.define\(eq=False\)"),
        ("import attrs\n@attrs.define\nclass Plugin: pass", r"is no class marked @attrs\.define\(eq=False\)"),
    ],
)
def test_what_is_no_plugin_is_refused_naming_where_it_comes_from(
    site: Site, source: str, expected: str
) -> None:
    """Missing imports, missing names, things that are no classes, classes that compare by value."""
    site.install("third", source, {"hookloop": {"third": "third:Plugin"}})
    with pytest.raises(HookloopError, match=expected):
        load("third")


def test_a_hook_without_its_mark_is_an_error_naming_it(site: Site) -> None:
    """Otherwise it would never be called and nobody would know."""
    source = PLUGIN + "    def after_batch(self): ...\n    @hookimpl\n    def before_run(self): ...\n"
    site.install("third", source, {"hookloop": {"third": "third:Plugin"}})
    with pytest.raises(
        HookloopError, match=r"plugin 'third': after_batch: named like a hook; mark it with @hookimpl"
    ):
        load("third")


def test_an_option_may_be_named_like_a_hook() -> None:
    """``ema.validate`` is one: only functions need the mark."""
    assert load("ema").__name__ == "EMA"


def test_a_misspelt_hook_is_an_error() -> None:
    """A marked method must be one of the hooks."""

    @define(eq=False)
    class Misspelt:
        @hookimpl
        def after_bach(self) -> None:
            """Never called."""

    with pytest.raises(HookloopError, match=r"unknown hook 'after_bach' in plugin .*Misspelt"):
        register({"misspelt": Misspelt()})


def test_an_argument_that_a_hook_does_not_have_is_an_error() -> None:
    """The message names the plugin, the hook and the argument."""

    @define(eq=False)
    class Wrong:
        @hookimpl
        def after_batch(self, loss: float) -> None:
            """Never called."""

    with pytest.raises(HookloopError, match=r"'wrong' for hook 'after_batch'.*loss") as raised:
        register({"wrong": Wrong()})
    assert "\n" not in str(raised.value)


def test_plugins_are_called_in_listing_order() -> None:
    """Though pluggy itself calls the last registered first."""
    calls: list[str] = []

    @define(eq=False)
    class Noting:
        name: str

        @hookimpl
        def before_epoch(self) -> None:
            calls.append(self.name)

    register({name: Noting(name) for name in "cab"}).hook.before_epoch(run=None)
    assert calls == ["c", "a", "b"]


def test_hooks_are_listed_in_firing_order() -> None:
    """As the book of hooks has them."""
    names = hook_names()
    assert names[:3] == ["make_task", "make_optimization", "before_run"]
    assert names[-1] == "shutdown"
    written = [
        f for _, f in inspect.getmembers(hookspecs, inspect.isfunction) if f.__module__ == hookspecs.__name__
    ]
    assert names == [f.__name__ for f in sorted(written, key=lambda f: f.__code__.co_firstlineno)]


def test_firing_order_is_the_listing_order_with_wrappers_marked(site: Site) -> None:
    """Nothing is constructed for it, so required options may be missing."""
    for name, mark in {"one": "", "two": "tryfirst=True", "three": "wrapper=True"}.items():
        body = "        yield\n" if mark == "wrapper=True" else "        ...\n"
        source = (
            PLUGIN
            + f"    required: int = attrs.field()\n    @hookimpl({mark})\n    def validate(self):\n{body}"
        )
        site.install(name, source.replace("size: int = 1", ""), {"hookloop": {name: f"{name}:Plugin"}})
    assert dict(firing_order(["one", "two", "three", *NONE]))["validate"] == ["(three", "two", "one"]
    assert dict(firing_order(["one", *NONE]))["infer"] == []


def check(text: str, listing: list[str] | None) -> list[str]:
    """Tell what is wrong with a configuration."""
    with pytest.raises(ConfigError) as raised:
        assemble(read(text, "cfg.yaml"), listing)
    return raised.value.problems


def test_a_section_of_an_unlisted_plugin_is_left_alone_with_a_note() -> None:
    """Even where it is wrong."""
    assembly = assemble(read("run: {dir: x}\nema: {deacy: 1}", "cfg.yaml"), NONE)
    assert list(assembly.notes) == ["cfg.yaml:2: ema: plugin not listed, its section is left alone"]
    assert assembly.plugins == {}


def test_a_section_that_nobody_owns_is_an_error_with_a_suggestion() -> None:
    """A typing mistake must not switch a plugin off."""
    assert check("run: {dir: x}\nchekpoint: {}", []) == [
        "cfg.yaml:2: chekpoint: unknown section; did you mean 'checkpoint'?"
    ]


def test_the_configuration_may_list_its_plugins() -> None:
    """``--plugins`` counts instead where it is given."""
    document = read("run: {dir: x}\nplugins: [ema, no:progress]", "cfg.yaml")
    assert list(assemble(document, None).plugins) == select(["ema", "no:progress"])
    assert list(assemble(document, NONE).plugins) == []


@pytest.mark.parametrize("plugins", ["ema", "[1]", "{ema: 1}"])
def test_a_plugin_list_that_is_none_is_an_error(plugins: str) -> None:
    """With its place."""
    assert check(f"run: {{dir: x}}\nplugins: {plugins}", None) == [
        "cfg.yaml:2: plugins: expected a list of names"
    ]


def test_what_was_checked_holds_every_option_that_counts() -> None:
    """Defaults too, so that it is a whole record of the run."""
    assembly = assemble(read("run: {dir: x}\nema: {decay: 0.5}", "cfg.yaml"), ["ema", *NONE])
    assert assembly.document["ema"] == {
        "decay": 0.5,
        "faster_decay_at_start": True,
        "validate": True,
        "sigma_rel": None,
    }
    run = assembly.document["run"]
    assert isinstance(run, dict)
    assert (run["dir"], run["seed"], run["time_limit"]) == ("x", 0, None)


def test_what_was_checked_can_be_checked_again() -> None:
    """The record makes the same plugins."""
    first = assemble(read("run: {dir: x}\nema: {decay: 0.5}", "cfg.yaml"), ["ema", *NONE])
    again = assemble(Document(dict(first.document)), ["ema", *NONE])
    assert (again.document, again.config) == (first.document, first.config)


def test_a_run_is_made_of_what_was_checked(tmp_path: Path) -> None:
    """Device, plugins and record are the assembly's."""
    assembly = assemble(read(f"run: {{dir: {tmp_path}, device: cpu}}", "cfg.yaml"), ["ema", *NONE])
    run = make_run(assembly, fake_run(tmp_path).events)
    assert (run.device, list(run.plugins), run.document) == (torch.device("cpu"), ["ema"], assembly.document)
    assert run.manager.get_plugin("ema") is assembly.plugins["ema"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_a_device_that_is_not_there_is_an_error() -> None:
    """It says which ones are."""
    with pytest.raises(HookloopError, match=r"run\.device: cuda:1: not on this machine; expected .*cpu"):
        pick_device("cuda:1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU auto is the GPU")
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    """And nothing else needs to be said."""
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


BACKBONE = """
import attrs

@attrs.frozen
class Options:
    {0}
    width: int = 1
"""


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (BACKBONE.format("chosen_as = 'other'"), "mine:Options must say chosen_as = 'mine'"),
        (BACKBONE.format(""), "mine:Options must say chosen_as = 'mine'"),
        ("import nothing_like_this", "mine cannot be imported: No module named 'nothing_like_this'"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_told_with_its_place(
    site: Site, source: str, expected: str
) -> None:
    """A third party's mistake is told like a user's."""
    site.install("mine", source, {"hookloop.backbones": {"mine": "mine:Options"}})
    text = (
        "run: {dir: x}\ndownscaling: {train: {coarse: [a], fine: [b]}, model: {inputs: [t], outputs: [t],\n"
    )
    found = check(text + "  backbone: {name: mine}}}", ["downscaling", *NONE])
    assert found == [f"cfg.yaml:3: downscaling.model.backbone.name: {expected}"]


def test_a_backbone_of_a_third_party_is_chosen_by_name(site: Site) -> None:
    """And written down so that it can be chosen again."""
    site.install(
        "mine", BACKBONE.format("chosen_as = 'mine'"), {"hookloop.backbones": {"mine": "mine:Options"}}
    )
    text = (
        "run: {dir: x}\ndownscaling: {train: {coarse: [a], fine: [b]}, model: {inputs: [t], outputs: [t],\n"
    )
    document = assemble(
        read(text + "  backbone: {name: mine, width: 3}}}", "c"), ["downscaling", *NONE]
    ).document
    downscaling = document["downscaling"]
    assert isinstance(downscaling, dict)
    assert isinstance(downscaling["model"], dict)
    assert downscaling["model"]["backbone"] == {"name": "mine", "width": 3}


def test_plugins_that_lead_are_called_on_rank_0_alone(tmp_path: Path) -> None:
    """Elsewhere they stay in the run, for what is saved and restored."""
    assembly = assemble(
        read(f"run: {{dir: {tmp_path}, device: cpu}}", "cfg.yaml"),
        ["ema", "jsonl", *(name for name in NONE if name != "no:jsonl")],
    )
    for rank, called in enumerate([{"ema", "jsonl"}, {"ema"}]):
        run = make_run(assembly, fake_run(tmp_path).events, Ranks(rank, 2))
        assert set(run.plugins) == {"ema", "jsonl"}
        assert {name for name, _ in run.manager.list_name_plugin()} == called


@pytest.mark.parametrize("name", ["cuda:0", "mps"])
def test_several_ranks_do_not_share_one_device(name: str) -> None:
    """Each has its own, or they are on the CPU."""
    with pytest.raises(
        HookloopError, match=rf"run\.device: {name}: one for several ranks; expected auto, cuda or cpu"
    ):
        pick_device(name, Ranks(1, 2, 1))
    assert pick_device("cpu", Ranks(1, 2, 1)) == torch.device("cpu")


def test_each_rank_has_the_gpu_of_its_number_on_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made the current one; where there are fewer GPUs than ranks it says so."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name in ("auto", "cuda"):
        assert pick_device(name, Ranks(3, 4, 1)) == torch.device("cuda", 1)
    assert current == [1, 1]
    with pytest.raises(
        HookloopError, match=r"run\.device: 2 GPUs on this host, expected one for each of its ranks"
    ):
        pick_device("auto", Ranks(2, 4, 2))
