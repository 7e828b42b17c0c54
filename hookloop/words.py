"""Types, values and near misses as a person would say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'decay'?``, where something known is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def type_in_words(kind: Any) -> str:
    """Say a type as a person would."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (Union, UnionType):
        arms = (type_in_words(arm) for arm in get_args(kind) if arm is not type(None))
        return " or ".join(dict.fromkeys(arms))
    if get_origin(kind) in (list, tuple, Sequence):
        return "a list"
    if get_origin(kind) in (dict, Mapping):
        return "names with values"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path"}
    return words.get(kind, "options") if isinstance(kind, type) else str(kind)


def value_in_words(value: object) -> str:
    """Say what was found."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "options"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value!r:.60}"
