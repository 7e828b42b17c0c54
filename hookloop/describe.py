"""What is installed and what can be hooked, as text; ``docs/hooks.md`` is written from here."""

from __future__ import annotations

import inspect
import json
from importlib.metadata import entry_points
from typing import Any, get_args, get_origin

import attrs

from hookloop import hookspecs, manager
from hookloop.config import resolved_fields
from hookloop.settings import RunConfig
from hookloop.words import type_in_words


def plugins() -> str:
    """Every installed plugin: version, where from, on by default or not, its hooks, its options; first the core's."""
    core = "\n  ".join(["run  (the core's own section)", *_options(RunConfig, "", {})])
    return "\n\n".join([core, *(_plugin(name) for name in sorted(manager.installed()))])


def _plugin(name: str) -> str:
    entry = manager.installed()[name]
    when = "on by default" if name in manager.ALWAYS else "off by default"
    head = f"{name}  ({manager.source(entry)}, {entry.value}, {when})"
    try:
        cls = manager.load(name)
    except Exception as error:  # noqa: BLE001 - one broken plugin must not hide the others
        return f"{head}\n  broken: {' '.join(str(error).split())}"
    where = " (on rank 0 only)" if manager.is_leader_only(cls) else ""
    hooked = f"hooks: {', '.join(_hooks_of(cls)) or 'none'}{where}"
    lines = [_first_line(cls), hooked, *_options(cls, "", {})]
    return "\n  ".join([head, *lines])


def _hooks_of(cls: type) -> list[str]:
    return [
        name
        for name in manager.hook_names()
        if hasattr(inspect.getattr_static(cls, name, None), "hookloop_impl")
    ]


def _options(cls: type, prefix: str, listed: dict[type | str, str]) -> list[str]:
    """List the options of *cls*, with those within them.

    :param listed: by class, the option where its own have been listed; that is done once, but for options with
        defaults of their own. By group of entry points, the option where its choices have been.
    """
    lines: list[str] = []
    for a in resolved_fields(cls):
        if not a.init:
            continue
        name = f"{prefix}{a.alias or a.name}"
        line = f"{name}: {_default(a)}  # {a.metadata.get('help', '')}".rstrip(" #")
        if "group" in a.metadata:
            lines += [line, *_choices(a, name, listed)]
            continue
        within = _within(a.type, name)
        known = [listed[one] for one in within if one in listed and one != a.type]
        if known:
            line += f"{';' if '  # ' in line else '  #'} options as of {', '.join(known)}"
        lines.append(line)
        for one, place in within.items():
            if one not in listed or one == a.type:
                listed.setdefault(one, place)
                lines += _options(one, f"{place}.", listed)
    return lines


def _within(kind: object, option: str) -> dict[type, str]:
    """Classes of options that *option* may hold, each with where it holds them: ``x``, ``x[]`` or ``x.NAME``."""
    if isinstance(kind, type) and attrs.has(kind):
        return {kind: option}
    held_as = {list: "[]", tuple: "[]", dict: ".NAME"}
    place = next((option + held_as[holder] for holder in held_as if get_origin(kind) is holder), option)
    found: dict[type, str] = {}
    for part in get_args(kind):
        found = {**_within(part, place), **found}
    return found


def _choices(a: attrs.Attribute[Any], option: str, listed: dict[type | str, str]) -> list[str]:
    """Every class that may be chosen as *option*, by name, with the options it then has; once for each group."""
    lines: list[str] = []
    group = a.metadata["group"]
    if group in listed:
        return lines
    option = f"{option}[]" if get_origin(a.type) is list else option
    listed[group] = option
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            cls = entry.load()
        except Exception as error:  # noqa: BLE001 - one broken choice must not hide the others
            lines.append(f"{option}.name: {entry.name}  # broken: {' '.join(str(error).split())}")
            continue
        lines += [f"{option}.name: {entry.name}  # {_first_line(cls)}", *_options(cls, f"{option}.", listed)]
    return lines


def _default(a: attrs.Attribute[Any]) -> str:
    if a.default is attrs.NOTHING:
        return f"<{type_in_words(a.type)}, required>"
    make = getattr(a.default, "factory", None)
    value = make() if make else a.default
    if isinstance(value, str):
        return value
    if attrs.has(type(value)):
        return _chosen(value)
    return json.dumps(value, default=_chosen)


def _chosen(value: object) -> str:
    """Name the class that is chosen."""
    return str(getattr(value, "chosen_as", "...") if attrs.has(type(value)) else value)


def _first_line(item: object) -> str:
    return (inspect.getdoc(item) or "").split("\n", maxsplit=1)[0]


def order(listing: list[str]) -> str:
    """Who answers each hook, in firing order."""
    rows = manager.firing_order(listing)
    width = max(len(hook) for hook, _ in rows)
    table = "\n".join(f"{hook:<{width}}  {_nested(names)}" for hook, names in rows)
    return f"{table}\n\nname( … ) is a wrapper: it is called before and after what it holds"


def _nested(names: list[str]) -> str:
    """Write callers with their wrappers, which come first, around the others."""
    wrappers = [name.removeprefix("(") for name in names if name.startswith("(")]
    inner = " > ".join(names[len(wrappers) :]) or "-"
    return "".join(f"{name}( " for name in wrappers) + inner + " )" * len(wrappers)


def hooks() -> str:
    """Write the hook reference, in Markdown, from the specifications' own words."""
    parts = ["# Hooks", inspect.getdoc(hookspecs) or ""]
    for name in manager.hook_names():
        function = getattr(hookspecs, name)
        kind = "the first answer counts" if function.hookloop_spec["firstresult"] else "all are called"
        signature = str(inspect.signature(function)).replace("'", "")
        parts.append(
            f"## {name}\n\n```python\ndef {name}{signature}\n```\n\n*{kind}*\n\n{inspect.getdoc(function)}"
        )
    return "\n\n".join(parts) + "\n"
