"""What scores of others say of their results: read from their source, so that nothing of theirs is run."""

from __future__ import annotations

import ast
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import EntryPoint

_LISTS = ("smaller_is_better", "comparable", "headline")
"""Attributes of a score's class that name results of it."""


@frozen
class Said:
    """What is known of a result."""

    sentence: str
    smaller_is_better: bool


@cache
def said() -> dict[str, Said]:
    """By result, of all scores that are installed and not hookloop's."""
    found: dict[str, Said] = {}
    for entry in entry_points(group="hookloop.scores"):
        if entry.module.partition(".")[0] != "hookloop":
            found |= _of(entry)
    return found


def _of(entry: EntryPoint) -> dict[str, Said]:
    """What the class at *entry* says; nothing where its source cannot be had."""
    try:
        tree = ast.parse(_source(entry.module))
    except (OSError, ImportError, SyntaxError, ValueError):
        return {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == entry.attr:
            names = dict(_names(node))
            sentence = (ast.get_docstring(node) or "").partition("\n")[0]
            smaller = names.get("smaller_is_better", ())
            return {name: Said(sentence, name in smaller) for own in names.values() for name in own}
    return {}


def _names(node: ast.ClassDef) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Results that the class names, where it writes them out."""
    for statement in node.body:
        target: ast.expr | None = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
        if isinstance(target, ast.Name) and target.id in _LISTS:
            value = getattr(statement, "value", None)
            parts = value.elts if isinstance(value, ast.Tuple | ast.List) else []
            names = [part.value for part in parts if isinstance(part, ast.Constant)]
            yield target.id, tuple(str(name) for name in names)


def _source(module: str) -> bytes:
    """The source of *module*, found without importing it or the packages that hold it.

    :raises ImportError: where it is not found.
    """
    places: list[str] | None = None
    origin: str | None = None
    parts = module.split(".")
    for n in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: n + 1]), places)
        if spec is None:
            raise ModuleNotFoundError(module)
        places, origin = list(spec.submodule_search_locations or ()), spec.origin
    if origin is None:
        raise ModuleNotFoundError(module)
    return Path(origin).read_bytes()
