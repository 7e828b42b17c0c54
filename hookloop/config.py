"""Plain data into attrs classes, strictly: every problem at once, each with its place and a suggestion."""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import entry_points
from itertools import repeat
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import attrs
import cattrs

from hookloop.errors import ConfigError
from hookloop.words import suggestion, type_in_words, value_in_words
from hookloop.yamlfile import dotted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hookloop.yamlfile import Document, Plain
    from hookloop.yamlfile import Path as Place

T = TypeVar("T")


class _Invalid(Exception):  # noqa: N818 - a carrier, caught here
    """Problems by path below the value at hand."""

    def __init__(self, problems: list[tuple[Place, str]]) -> None:
        super().__init__(problems)
        self.problems = problems


class _Mistyped(_Invalid):
    """A value of another kind than its option expects."""

    def __init__(self, expected: str, value: object, hint: str = "") -> None:
        self.expected, self.value, self.hint = expected, value, hint
        super().__init__([((), self.said())])

    def said(self, example: str | None = None) -> str:
        """Say so, with an example of what is expected where the option has one."""
        return f"expected {_such(self.expected, example)}, found {value_in_words(self.value)}{self.hint}"


def _such(expected: str, example: str | None) -> str:
    return f"{expected} such as {example}" if example else expected


def build(cls: type[T], document: Document, section: str) -> T:
    """Structure one section of a configuration into *cls*; an absent section is an empty one.

    :raises ConfigError: with every problem of the section, a line each.
    """
    value = document.data.get(section)
    try:
        return _converter.structure({} if value is None else value, cls)
    except _Invalid as invalid:
        raise ConfigError(
            [
                f"{document.place((section, *path))}: {dotted((section, *path))}: {' '.join(message.split())}"
                for path, message in invalid.problems
            ]
        ) from None


def options_of(instance: object) -> dict[str, Plain]:
    """Give the options of an attrs object as plain data: what to write to make the same object."""
    return {
        name: cast("Plain", _plain(getattr(instance, a.name))) for name, a in _option_fields(type(instance))
    }


def learned_options(instance: object) -> dict[str, Plain]:
    """Give the options that change what is learnt or in which order, flat, by dotted name."""
    flat: dict[str, Plain] = {}
    for name, a in _option_fields(type(instance)):
        if a.metadata.get("learned"):
            flat.update(_flat(name, getattr(instance, a.name)))
    return flat


def _option_fields(cls: type) -> list[tuple[str, attrs.Attribute[Any]]]:
    """Pair each option of an attrs class with the name it has in a configuration; none for other classes."""
    return [(a.alias or a.name, a) for a in attrs.fields(cls) if a.init] if attrs.has(cls) else []


def _flat(name: str, value: object) -> dict[str, Plain]:
    """Name every value within *value*; options by which nothing is learnt are left out."""
    parts: dict[str, object] = dict(value) if isinstance(value, Mapping) else {}
    if attrs.has(type(value)):
        parts = {
            option: getattr(value, a.name)
            for option, a in _option_fields(type(value))
            if a.metadata.get("learned") is not False
        }
        if chosen := getattr(type(value), "chosen_as", None):
            parts["name"] = chosen
    if not parts:
        return {name: cast("Plain", _plain(value))}
    return {k: v for key, part in parts.items() for k, v in _flat(f"{name}.{key}", part).items()}


def _plain(value: object) -> object:
    if attrs.has(type(value)):
        chosen = getattr(type(value), "chosen_as", None)
        return {**({"name": chosen} if chosen else {}), **options_of(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def resolved_fields(cls: type) -> tuple[attrs.Attribute[Any], ...]:
    """Give the fields of an attrs class with the types of its options resolved.

    State (``init=False``) keeps whatever it was annotated with, so a plugin may annotate it with types
    that are only imported for checking.
    """
    fields = attrs.fields(cls)
    names = dict(vars(typing))
    for base in reversed(cls.__mro__):  # an inherited option was annotated in another module
        names.update(vars(sys.modules[base.__module__]))
    for a in fields:
        if isinstance(a.type, str):
            kind = eval(a.type, names) if a.init else object  # noqa: S307 - an annotation of our own class
            object.__setattr__(a, "type", kind)  # as attrs.resolve_types does
    return cast("tuple[attrs.Attribute[Any], ...]", fields)


def _structure_attrs(cls: type) -> Callable[[object, object], object]:
    resolved_fields(cls)
    fields = dict(_option_fields(cls))

    def structure(value: object, _: object) -> object:
        if not isinstance(value, Mapping):
            raise _Invalid(
                [((), f"expected options ({', '.join(fields) or 'none'}), found {value_in_words(value)}")]
            )
        problems: list[tuple[Place, str]] = [
            ((key,), f"unknown option{suggestion(key, fields)}") for key in value if key not in fields
        ]
        found: dict[str, object] = {}
        for name, a in fields.items():
            if name in value:
                problems.extend(_structure_field(a, name, value[name], found))
            elif a.default is attrs.NOTHING:
                expected = _such(type_in_words(a.type), a.metadata.get("example"))
                problems.append(((name,), f"missing; expected {expected}"))
        if problems:
            raise _Invalid(problems)
        try:
            return cls(**found)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise _Invalid([((), _words(error))]) from None

    return structure


def _structure_field(
    a: attrs.Attribute[Any], name: str, value: object, found: dict[str, object]
) -> list[tuple[Place, str]]:
    """Structure one option into *found*; the problems are what comes back."""
    kind: Any = a.type
    try:
        found[name] = _choosing(a)(value) if "group" in a.metadata else _converter.structure(value, kind)
    except _Mistyped as wrong:
        return [((name,), wrong.said(a.metadata.get("example")))]
    except _Invalid as invalid:
        return [((name, *path), message) for path, message in invalid.problems]
    if a.validator is not None:
        try:
            a.validator(None, a, found[name])
        except (ValueError, TypeError, ArithmeticError) as error:
            return [((name,), _words(error))]
        except AttributeError:
            pass  # it looks at other options too: it runs when the object is made
    return []


def _words(error: Exception) -> str:
    """What a validator says, without what attrs' own validators tell machines beside it."""
    return str(error.args[0] if error.args and isinstance(error.args[0], str) else error)


def _choosing(a: attrs.Attribute[Any]) -> Callable[[object], object]:
    """Find what structures an option whose class is chosen by name, or a list of such."""
    choose = partial(_choose, a.metadata["group"], a.metadata.get("unnamed"))
    if get_origin(a.type) is not list:
        return choose
    return lambda value: _each(enumerate(_listed(value)), repeat(choose))


def _choose(group: str, unnamed: str | None, value: object) -> object:
    """Structure ``name`` or ``{name: …, **options}`` into the class that entry point *name* of *group* offers.

    :param unnamed: the name where none is given; ``None`` demands one.
    """
    offered = {entry.name: entry for entry in entry_points(group=group)}
    if isinstance(value, str):
        value = {"name": value}
    if unnamed is not None and isinstance(value, Mapping):
        value = {"name": unnamed, **value}
    if not isinstance(value, Mapping) or "name" not in value:
        raise _Invalid(
            [
                (
                    (),
                    f"expected a name ({', '.join(sorted(offered))}) and its options, found {value_in_words(value)}",
                )
            ]
        )
    name = value["name"]
    if not isinstance(name, str) or name not in offered:
        message = f"expected one of {', '.join(sorted(offered))}, found {value_in_words(name)}"
        raise _Invalid([(("name",), message + suggestion(str(name), offered))])
    try:
        cls = offered[name].load()
    except (ImportError, AttributeError) as error:
        raise _Invalid([(("name",), f"{name} cannot be imported: {error}")]) from error
    if getattr(cls, "chosen_as", None) != name:  # else what is written down could not be read again
        raise _Invalid([(("name",), f"{offered[name].value} must say chosen_as = {name!r}")])
    return _converter.structure({k: v for k, v in value.items() if k != "name"}, cls)


def _scalar(kind: type, accepts: tuple[type, ...]) -> Callable[[object, object], object]:
    def structure(value: object, _: object) -> object:
        if not isinstance(value, accepts) or (isinstance(value, bool) and kind is not bool):
            raise _Mistyped(type_in_words(kind), value)
        return kind(value)

    return structure


def _structure_sequence(kind: Any) -> Callable[[object, object], object]:
    arguments = [a for a in get_args(kind) if a is not Ellipsis]
    pair = get_origin(kind) is tuple and Ellipsis not in get_args(kind)
    into = tuple if get_origin(kind) is tuple else list

    def structure(value: object, _: object) -> object:
        values = _listed(value)
        if pair and len(values) != len(arguments):
            raise _Invalid([((), f"expected {len(arguments)} values, found {len(values)}")])
        kinds = arguments if pair else [arguments[0]] * len(values)
        return into(_each(enumerate(values), map(_structuring, kinds)))

    return structure


def _listed(value: object) -> Sequence[object]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _Mistyped("a list", value)
    return value


def _structuring(kind: Any) -> Callable[[object], object]:
    return lambda value: _converter.structure(value, kind)


def _structure_mapping(kind: Any) -> Callable[[object, object], object]:
    item = get_args(kind)[1]

    def structure(value: object, _: object) -> object:
        if not isinstance(value, Mapping):
            raise _Mistyped("names with values", value)
        return dict(zip(value, _each(value.items(), repeat(_structuring(item))), strict=True))

    return structure


def _each(
    items: Iterable[tuple[Any, object]], structures: Iterable[Callable[[object], object]]
) -> list[object]:
    problems: list[tuple[Place, str]] = []
    found: list[object] = []
    for (key, value), structure in zip(items, structures, strict=False):  # one may be repeated for ever
        try:
            found.append(structure(value))
        except _Invalid as invalid:
            problems.extend(((key, *path), message) for path, message in invalid.problems)
    if problems:
        raise _Invalid(problems)
    return found


def _structure_literal(kind: Any) -> Callable[[object, object], object]:
    allowed = get_args(kind)

    def structure(value: object, _: object) -> object:
        for one in allowed:
            if value == one and type(value) is type(one):
                return one
        hint = suggestion(str(value), map(str, allowed))
        raise _Mistyped(type_in_words(kind), value, hint)

    return structure


def _structure_union(kind: Any) -> Callable[[object, object], object]:
    arms = get_args(kind)

    def structure(value: object, _: object) -> object:
        if value is None and type(None) in arms:
            return None
        tries = [arm for arm in arms if arm is not type(None)]
        alike = [arm for arm in tries if _shape_of(arm) == _shape_of(type(value))]
        if len(tries) == 1 or len(alike) == 1:  # then its own words say best what is wrong
            return cast("object", _converter.structure(value, (alike or tries)[0]))
        for arm in tries:
            with suppress(_Invalid):
                return cast("object", _converter.structure(value, arm))
        raise _Mistyped(type_in_words(kind), value)

    return structure


def _shape_of(kind: Any) -> str:
    """Tell what a value of *kind* looks like in a file: options, a list or a scalar."""
    origin = get_origin(kind) or kind
    if not isinstance(origin, type):
        return "scalar"
    if attrs.has(origin) or issubclass(origin, Mapping):
        return "options"
    return "list" if issubclass(origin, Sequence) and origin is not str else "scalar"


def _comes_from(origins: set[Any], kind: Any) -> bool:
    return get_origin(kind) in origins


def _strict_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    for kind, accepts in {bool: (bool,), int: (int,), float: (int, float), str: (str,), Path: (str,)}.items():
        converter.register_structure_hook(kind, _scalar(kind, accepts))
    by_origin: list[tuple[set[Any], Callable[[Any], Any]]] = [
        ({list, tuple, Sequence}, _structure_sequence),
        ({dict, Mapping}, _structure_mapping),
        ({Literal}, _structure_literal),
        ({Union, UnionType}, _structure_union),
    ]
    for origins, factory in by_origin:
        converter.register_structure_hook_factory(partial(_comes_from, origins), factory)
    converter.register_structure_hook_factory(attrs.has, _structure_attrs)
    return converter


_converter = _strict_converter()
