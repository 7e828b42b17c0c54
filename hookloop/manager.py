"""From names to plugin objects to a run: discovery, selection, construction, firing order.

``NAME@LABEL`` is one more instance of plugin ``NAME``, with a section, a state and a name of its own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Hashable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

import attrs
import pluggy
from attrs import frozen

from hookloop import hookspecs
from hookloop.config import build, options_of
from hookloop.core import Run
from hookloop.distributed import Ranks
from hookloop.errors import ConfigError, HookloopError
from hookloop.settings import RunConfig
from hookloop.words import suggestion

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from importlib.metadata import EntryPoint

    import torch
    from structlog.typing import FilteringBoundLogger

    from hookloop.yamlfile import Document, Plain

GROUP = "hookloop"
ALWAYS = (
    "distributed",
    "optimization",
    "validation",
    "train_evaluation",
    "generation",
    "progress",
    "jsonl",
    "signals",
    "checkpoint",
)
"""The plugins that are on unless ``no:NAME`` is listed, in firing order, after those listed."""

_LABEL = r"[A-Za-z0-9_-]{1,40}"


@frozen
class Assembly:
    """A checked configuration: what to run, with which plugins, and what people should know."""

    config: RunConfig
    plugins: Mapping[str, object]
    document: Mapping[str, Plain]
    """Every option of every part, defaults too."""
    notes: Sequence[str]


def installed() -> dict[str, EntryPoint]:
    """Every plugin that is installed, by name, without importing any.

    :raises HookloopError: where two distributions offer one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise HookloopError(
                f"plugin '{entry.name}': offered by {source(other)} and {source(entry)}; uninstall one"
            )
    return found


def source(entry: EntryPoint) -> str:
    """Name the distribution an entry point comes from, with its version."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def select(listing: Sequence[str]) -> list[str]:
    """Choose the names to run, in firing order: those listed, then those that are always on.

    :raises ConfigError: for names that are not installed, are listed twice or cannot be left out.
    """
    available = installed()
    left_out = {name.removeprefix("no:") for name in listing if name.startswith("no:")}
    labelled = {name for name in left_out if "@" in name}
    left_out -= labelled
    named = [name for name in listing if not name.startswith("no:")]
    problems = [
        f"--plugins: {name}: {fault}"
        for name in dict.fromkeys((*named, *sorted(left_out)))
        if (fault := _fault(name, available))
    ]
    problems += [
        f"--plugins: no:{name}: {name} runs only if it is listed; take no:{name} off the list"
        for name in sorted(labelled)
    ]
    problems += [
        f"--plugins: {name}: listed twice; a second one has a name of its own, such as {plugin_of(name)}@other"
        if plugin_of(name) not in ALWAYS
        else f"--plugins: {name}: listed twice"
        for name in sorted(set(named))
        if named.count(name) > 1
    ]
    problems += [f"--plugins: {name}: both listed and left out" for name in named if name in left_out]
    if problems:
        raise ConfigError(problems)
    return named + [name for name in ALWAYS if name not in named and name not in left_out]


def plugin_of(name: str) -> str:
    """Name the plugin that *name* is an instance of: ``ema`` for ``ema@slow`` and for ``ema``."""
    return name.partition("@")[0]


def _fault(name: str, available: Collection[str]) -> str | None:
    """Say why nothing can run under *name*, if so."""
    if plugin_of(name) not in available:
        return f"not installed{_near(name, available)}; there are {', '.join(sorted(available))}"
    _, at, label = name.partition("@")
    if at and plugin_of(name) in ALWAYS:
        return f"there is one {plugin_of(name)} in a run, and it is on already; expected no label"
    if at and not re.fullmatch(_LABEL, label):
        return f"expected {plugin_of(name)}@LABEL with 1 to 40 letters, digits, '-' or '_', found {label!r}"
    return None


def _near(name: str, known: Iterable[str]) -> str:
    """Suggest the name of a plugin; a label after it is kept and counts for nothing."""
    plugin, at, label = name.partition("@")
    return suggestion(name, [f"{other}{at}{label}" for other in known if suggestion(plugin, [other])])


def listing_of(names: Sequence[str]) -> list[str]:
    """Write the list for ``--plugins`` that selects exactly *names*, in their order."""
    return [*names, *(f"no:{name}" for name in ALWAYS if name not in names)]


def load(name: str) -> type:
    """Import one plugin class.

    :raises HookloopError: where it is not installed, cannot be imported or is no plugin class, or where a
        hook method lacks its mark.
    """
    available = installed()
    if plugin_of(name) not in available:
        raise HookloopError(f"plugin '{name}': not installed{_near(name, available)}")
    entry = available[plugin_of(name)]
    try:
        cls = entry.load()
    except (ImportError, AttributeError) as error:
        raise HookloopError(f"plugin '{name}' ({source(entry)}): cannot be imported: {error}") from error
    if not (isinstance(cls, type) and attrs.has(cls) and issubclass(cls, Hashable)):
        raise HookloopError(
            f"plugin '{name}' ({source(entry)}): {entry.value} is no class marked @attrs.define(eq=False)"
        )
    unmarked = [
        hook
        for hook in hook_names()
        if inspect.isfunction(method := inspect.getattr_static(cls, hook, None))
        and not hasattr(method, "hookloop_impl")
    ]
    if unmarked:
        raise HookloopError(
            f"plugin '{name}': {', '.join(unmarked)}: named like a hook; mark it with @hookimpl"
        )
    return cls


def hook_names() -> list[str]:
    """Every hook, in firing order."""
    return [name for name, item in vars(hookspecs).items() if hasattr(item, "hookloop_spec")]


def assemble(document: Document, listing: Sequence[str] | None) -> Assembly:
    """Check a whole configuration and construct its plugins.

    :param listing: what ``--plugins`` says; else the configuration's own ``plugins:`` list counts.
    :raises ConfigError: with every problem of every section, a line each.
    """
    problems: list[str] = []
    names = select(_listing(document) if listing is None else listing)
    available = installed()
    notes = []
    for section in document.data:
        place = document.place((section,))
        if section in ("run", "plugins", *names):
            continue
        if plugin_of(section) not in available:
            hint = _near(section, available if "@" in section else ("run", "plugins", *available))
            problems.append(f"{place}: {section}: unknown section{hint}")
        elif fault := _fault(section, available):
            problems.append(f"{place}: {section}: {fault}")
        else:
            notes.append(f"{place}: {section}: plugin not listed, its section is left alone")
    parts: dict[str, object] = {}
    for name, cls in (("run", RunConfig), *((name, load(name)) for name in names)):
        try:
            parts[name] = build(cls, document, name)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    config = cast("RunConfig", parts.pop("run"))
    resolved = {"run": options_of(config), **{name: options_of(plugin) for name, plugin in parts.items()}}
    return Assembly(config, parts, resolved, notes)


def _listing(document: Document) -> list[str]:
    listed = document.data.get("plugins")
    if listed is None:
        return []
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ConfigError([f"{document.place(('plugins',))}: plugins: expected a list of names"])
    return [str(name) for name in listed]


def register(plugins: Mapping[str, object]) -> pluggy.PluginManager:
    """Make a plugin manager that calls *plugins* in the order given.

    :raises HookloopError: where a hook is misspelt or takes arguments that it does not have.
    """
    manager = pluggy.PluginManager("hookloop")
    manager.add_hookspecs(hookspecs)
    try:
        for name, plugin in reversed(list(plugins.items())):  # pluggy calls the last registered first
            manager.register(plugin, name=name)
        manager.check_pending()
        for hook in ("make_task", "shutdown"):  # each plugin is asked by itself, so there is nothing to wrap
            for impl in getattr(manager.hook, hook).get_hookimpls():
                if impl.wrapper or impl.hookwrapper:
                    raise HookloopError(
                        f"plugin '{impl.plugin_name}': {hook} cannot be wrapped; implement it"
                    )
    except pluggy.PluginValidationError as error:
        raise HookloopError(" ".join(str(error).split())) from error
    return manager


def make_run(assembly: Assembly, events: FilteringBoundLogger, ranks: Ranks | None = None) -> Run:
    """Make the run that *assembly* describes, ready to be trained.

    :param ranks: the processes that train together; this one alone if not given.
    """
    ranks = ranks or Ranks()
    called = {
        name: plugin for name, plugin in assembly.plugins.items() if ranks.leads or not is_leader_only(plugin)
    }
    return Run(
        config=assembly.config,
        manager=register(called),
        plugins=assembly.plugins,
        device=pick_device(assembly.config.device, ranks),
        events=events,
        document=assembly.document,
        ranks=ranks,
    )


def is_leader_only(plugin: object) -> bool:
    """Whether the hooks of a plugin, or of a class, are called on rank 0 alone: ``leader_only = True``."""
    return getattr(plugin, "leader_only", False) is True


def pick_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """Find the device called *name*; ``auto`` is the first GPU if there is one, or a rank's own of several.

    :raises HookloopError: for a GPU that is not there, or that several ranks would share.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    kind, _, index = name.partition(":")
    several = ranks is not None and ranks.world > 1 and kind != "cpu"
    if several and (kind != "cuda" or index):
        raise HookloopError(f"run.device: {name}: one for several ranks; expected auto, cuda or cpu")
    if not there[kind] or (index and int(index) >= torch.cuda.device_count()):
        raise HookloopError(
            f"run.device: {name}: not on this machine; expected {' or '.join(k for k in there if there[k])}"
        )
    return _own_gpu(ranks) if ranks and several else torch.device(name)


def _own_gpu(ranks: Ranks) -> torch.device:
    """Give a rank the GPU that is its own, and make it the one that is meant where none is named."""
    import torch

    if ranks.local >= torch.cuda.device_count():
        raise HookloopError(
            f"run.device: {torch.cuda.device_count()} GPUs on this host, expected one for each of its ranks; "
            "start fewer processes (--nproc auto), or set run.device to cpu"
        )
    torch.cuda.set_device(ranks.local)
    return torch.device("cuda", ranks.local)


def firing_order(listing: Sequence[str]) -> list[tuple[str, list[str]]]:
    """For each hook, who is called, in order; a wrapper is written ``(name``."""
    plugins: dict[str, object] = {name: object.__new__(load(name)) for name in select(listing)}
    manager = register(plugins)
    return [
        (
            hook,
            [
                f"({impl.plugin_name}" if impl.wrapper or impl.hookwrapper else impl.plugin_name
                for impl in reversed(getattr(manager.hook, hook).get_hookimpls())
            ],
        )
        for hook in hook_names()
    ]
