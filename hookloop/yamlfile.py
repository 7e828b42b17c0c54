"""YAML as plain data that remembers where each value stands, and nothing else: no tags, no surprises."""

from __future__ import annotations

import math
import os
import re
from decimal import Decimal
from typing import TYPE_CHECKING

import yaml
from attrs import field, frozen

from hookloop.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from yaml.error import Mark

Path = tuple[str | int, ...]
Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]

_MOST_NODES = 10_000
_DEEPEST = 50
_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_VARIABLE = re.compile(r"\$\{(\w{1,256})(?::-([^}]{0,4096}))?\}")  # bounded, so that no text takes for ever


@frozen
class Document:
    """A configuration: its data, and for each path in it where it was written."""

    data: dict[str, Plain]
    places: dict[Path, str] = field(factory=dict)
    source: str = "configuration"

    def place(self, path: Path) -> str:
        """Where *path* was written, or the nearest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.source)


class _Loader(yaml.SafeLoader):
    """Leave every scalar as it was written; what it means is decided here."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the name and form are PyYAML's


@frozen
class _Reader:
    """Turns composed nodes into plain data and collects every problem on the way."""

    source: str
    places: dict[Path, str] = field(factory=dict)
    problems: list[str] = field(factory=list)

    def read(self, text: str) -> Plain:
        """Parse *text* into plain data."""
        try:
            self._scan(text)
            node = None if self.problems else yaml.compose(text, _Loader)
        except yaml.MarkedYAMLError as error:
            where = self._where(error.problem_mark or error.context_mark)
            self.problems.append(f"{where}: not YAML: {error.problem or error.context}")
            return None
        except yaml.YAMLError as error:
            self.problems.append(" ".join(f"{self.source}: not YAML: {error}".split()))
            return None
        except (ValueError, OverflowError):  # PyYAML lets what chr() and int() raise pass
            self.problems.append(f"{self.source}: not YAML: an escape or a version in it is out of range")
            return None
        return None if node is None else self._build(node, ())

    def _where(self, mark: Mark | None) -> str:
        return f"{self.source}:{mark.line + 1}" if mark else self.source

    def _scan(self, text: str) -> None:
        """Refuse tags and nesting beyond reason before anything recurses into them."""
        depth = 0
        for event in yaml.parse(text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            where = self._where(event.start_mark)  # type: ignore[arg-type]  # or the C parser's, which is alike
            if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
                self.problems.append(f"{where}: tag {event.tag}: expected a plain value; leave the tag out")
            if depth > _DEEPEST:
                self.problems.append(f"{where}: nested more than {_DEEPEST} levels deep")
                return

    def _build(self, node: yaml.Node, path: Path) -> Plain:
        where = self._where(node.start_mark)
        self.places[path] = where
        if len(self.places) > _MOST_NODES:
            raise ConfigError([f"{where}: more than {_MOST_NODES} values; expected a configuration"])
        if len(path) > _DEEPEST:  # by an alias to what it stands in
            raise ConfigError([f"{where}: nested more than {_DEEPEST} levels deep"])
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        quoted = isinstance(node, yaml.ScalarNode) and node.style
        return self._expand(node.value, where) if quoted else self._scalar(node.value, where)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> Plain:
        built: dict[str, Plain] = {}
        for key_node, value_node in node.value:
            where = self._where(key_node.start_mark)
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not key:
                found = {"sequence": "a list", "mapping": "options"}.get(key_node.id, "nothing")
                self.problems.append(f"{where}: expected a name as key, found {found}")
            elif not key.isprintable():
                self.problems.append(f"{where}: expected a name as key, found {key!r:.60}")
            elif key in built:
                self.problems.append(f"{where}: {dotted((*path, key))}: given twice; keep one")
            else:
                built[key] = self._build(value_node, (*path, key))
                self.places[*path, key] = where
        return built

    def _scalar(self, text: str, where: str) -> Plain:
        if text in _NULLS:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if _NUMBER.fullmatch(text):
            return self._number(text, where)
        if _SPECIAL.fullmatch(text):
            return float(text.replace(".", ""))
        return self._expand(text, where)

    def _number(self, text: str, where: str) -> float:
        if math.isinf(value := float(text)):
            self.problems.append(f"{where}: {text:.20}: too large a number")
            return value
        return int(Decimal(text)) if _INT.fullmatch(text) else value  # int() refuses many digits, zeros too

    def _expand(self, text: str, where: str) -> str:
        def value(match: re.Match[str]) -> str:
            name, default = match.groups()
            found = os.environ.get(name)
            if not found and default is not None:  # unset or empty, as in a shell
                return str(default)
            if found is None:
                self.problems.append(
                    f"{where}: environment variable {name} is not set; set it or write ${{{name}:-default}}"
                )
            return found or ""

        expanded = _VARIABLE.sub(value, text)
        if odd := yaml.reader.Reader.NON_PRINTABLE.search(expanded):  # by an escape or from a variable
            self.problems.append(f"{where}: expected text, found the character {odd.group()!r}")
        return expanded


def dotted(path: Path) -> str:
    """Write ``("a", "b", 0)`` as a person does: ``a.b[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def read(text: str, source: str, overrides: Sequence[str] = ()) -> Document:
    """Parse a configuration and apply ``SECTION.KEY=VALUE`` overrides, whose values are YAML.

    :raises ConfigError: with every problem found, a line each.
    """
    reader = _Reader(source)
    data = reader.read(text)
    if data is None and not reader.problems:
        data = {}
    if not isinstance(data, dict):
        if not reader.problems:
            reader.problems.append(
                f"{source}:1: expected sections such as 'run:', found a {type(data).__name__}"
            )
        raise ConfigError(reader.problems)
    document = Document(data, reader.places, source)
    for override in overrides:
        reader.problems.extend(_override(document, override))
    if reader.problems:
        raise ConfigError(reader.problems)
    return document


def _override(document: Document, override: str) -> list[str]:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    source = f"--set {key}"
    if not equals or not all(parts):
        return [f"--set {override}: expected SECTION.KEY=VALUE"]
    reader = _Reader(source)
    value = reader.read(text)
    section = document.data
    for part in parts[:-1]:
        inner = section.get(part)
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            return [f"{source}: {part} holds a value, not options"]
        section = inner
    section[parts[-1]] = value
    here: Path = tuple(parts)
    for stale in [path for path in document.places if path[: len(here)] == here]:
        del document.places[stale]
    document.places[here] = source
    return reader.problems
