"""YAML means what it looks like, or is refused with its place."""

from __future__ import annotations

import math
import os
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hookloop.errors import ConfigError
from hookloop.yamlfile import Document, dotted, read


def value(text: str) -> object:
    """Read what *text* means as the value of an option."""
    return read(f"a: {text}", "cfg.yaml").data["a"]


def problems(text: str, *overrides: str) -> list[str]:
    """Tell what is wrong with *text*."""
    with pytest.raises(ConfigError) as raised:
        read(text, "cfg.yaml", overrides)
    return raised.value.problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 0.0001),
        ("2.e-4", 0.0002),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("2.9", 2.9),
        ("-3.0", -3.0),
        ("+7", 7),
        ("010", 10),  # not 8: it means what it looks like
        ("-" + "0" * 5000 + "7", -7),  # more digits than int() takes
        ("-0", 0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("9007199254740993", 9007199254740993),  # a float would lose the last digit
    ],
)
def test_numbers_mean_what_they_look_like(text: str, expected: float) -> None:
    """An integer stays one, everything with a point or an exponent is a float."""
    found = value(text)
    assert (found, type(found)) == (expected, type(expected))


def test_nan_is_a_number() -> None:
    """``.nan`` is the float."""
    found = value(".nan")
    assert isinstance(found, float)
    assert math.isnan(found)


@pytest.mark.parametrize(
    "text",
    [
        *("no", "off", "yes", "on", "y", "tRUE"),
        *("2020-01-01", "2020-01-01T12:00:00Z", "12:30:00"),
        *("0x10", "0o10", "1_000", "e5", "1e", ".", "1.2.3", "--1", "nan", "inf", "١٢"),
        *("=", "<<"),
    ],
)
def test_everything_else_is_text(text: str) -> None:
    """Nothing that a person may read as text becomes a boolean, a date or a number behind their back."""
    assert value(text) == text


@pytest.mark.parametrize("text", ["1", "1e-4", "true", "null", "~", ""])
@pytest.mark.parametrize("quote", ["'", '"'])
def test_what_is_quoted_is_text(text: str, quote: str) -> None:
    """Quotes make text of anything."""
    assert value(f"{quote}{text}{quote}") == text


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("False", False), ("null", None), ("~", None), ("", None)]
)
def test_booleans_and_nothing(text: str, expected: object) -> None:
    """Only true and false are booleans, and an empty value is nothing."""
    assert value(text) is expected


def test_blocks_are_text() -> None:
    """A block scalar is text even where it looks like a number."""
    assert value("|\n  1\n") == "1\n"


def test_an_empty_file_is_an_empty_configuration() -> None:
    """So is one of comments."""
    assert read("# nothing yet\n", "cfg.yaml") == Document({}, {}, "cfg.yaml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "cfg.yaml:3: a: given twice; keep one"),
        ("a:\n  b: 1\n  b: 2", "cfg.yaml:3: a.b: given twice; keep one"),
        ("a: 1\nb: !!python/name:os.system x", "cfg.yaml:2: tag tag:yaml.org,2002:python/name:os.system: "),
        ("a: !mine x", "cfg.yaml:1: tag !mine: expected a plain value; leave the tag out"),
        ("a: !!str 1", "cfg.yaml:1: tag tag:yaml.org,2002:str: expected a plain value; leave the tag out"),
        ("a: !!map {}", "cfg.yaml:1: tag tag:yaml.org,2002:map: expected a plain value; leave the tag out"),
        ("\n- a\n- b", "cfg.yaml:1: expected sections such as 'run:', found a list"),
        ("run", "cfg.yaml:1: expected sections such as 'run:', found a str"),
        ("a: 1\n? [a, b]\n: 1", "cfg.yaml:2: expected a name as key, found a list"),
        ("{{a: b}: c}", "cfg.yaml:1: expected a name as key, found options"),
        ("a:\n  ?\n  : 1", "cfg.yaml:2: expected a name as key, found nothing"),
        ("a: [1\nb: 2", "cfg.yaml:2: not YAML: "),
        ("a: *b", "cfg.yaml:1: not YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2", "cfg.yaml:2: not YAML: but found another document"),
        ("a:\n\t- b", "cfg.yaml:2: not YAML: "),
        ("a: \x07", "cfg.yaml: not YAML: unacceptable character #x0007"),
        ('a: "\\UFFFFFFFF"', "cfg.yaml: not YAML: an escape or a version in it is out of range"),
        (f"%YAML 1.{'9' * 5000}\n--- a", "cfg.yaml: not YAML: an escape or a version in it is out of range"),
        ("a: 1\nb: 1e999", "cfg.yaml:2: 1e999: too large a number"),
        (f"a: {'9' * 5000}", f"cfg.yaml:1: {'9' * 20}: too large a number"),
        ('a: "\\0"', "cfg.yaml:1: expected text, found the character '\\x00'"),
        ('a: "\\uD800"', "cfg.yaml:1: expected text, found the character '\\ud800'"),
        ('a: "\\e[31m"', "cfg.yaml:1: expected text, found the character '\\x1b'"),
        ('"a\\nb": 1', "cfg.yaml:1: expected a name as key, found 'a\\nb'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(text: str, problem: str) -> None:
    """One problem, one line, where it stands."""
    (found,) = problems(text)
    assert found.startswith(problem)
    assert "\n" not in found


def test_every_problem_is_told_at_once() -> None:
    """Two duplicates and an unset variable are three lines."""
    variable = "environment variable HOOKLOOP_UNSET is not set; set it or write ${HOOKLOOP_UNSET:-default}"
    assert problems("a: 1\na: 2\nb:\n  c: 1\n  c: 2\nd: ${HOOKLOOP_UNSET}") == [
        "cfg.yaml:2: a: given twice; keep one",
        "cfg.yaml:5: b.c: given twice; keep one",
        f"cfg.yaml:6: {variable}",
    ]


def test_an_alias_stands_for_its_value() -> None:
    """Aliases are fine where they are few."""
    assert read("a: &x [1, 2]\nb: *x", "cfg.yaml").data == {"a": [1, 2], "b": [1, 2]}


def test_an_alias_bomb_is_refused() -> None:
    """A few lines that mean a billion values are no configuration."""
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]
    (found,) = problems("\n".join(lines))
    assert re.fullmatch(r"cfg.yaml:\d+: more than 10000 values; expected a configuration", found)


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a, c: *a}"])
def test_an_alias_to_what_it_stands_in_is_refused(text: str) -> None:
    """Endless data has no end."""
    assert problems(text) == ["cfg.yaml:1: nested more than 50 levels deep"]


@pytest.mark.parametrize("text", ["a: " + "[" * 100_000, "a: " + "{x: " * 5_000, "- " * 100_000])
def test_deep_nesting_is_refused(text: str) -> None:
    """Before anything recurses."""
    assert problems(text) == ["cfg.yaml:1: nested more than 50 levels deep"]


def test_variables_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anywhere in text, quoted or not, and never as anything but text."""
    monkeypatch.setenv("HOOKLOOP_A", "12")
    assert value("${HOOKLOOP_A}") == "12"
    assert value('"x/${HOOKLOOP_A}/y-${HOOKLOOP_A}"') == "x/12/y-12"


def test_a_variable_brings_in_no_character_that_the_file_may_not_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as an escape sequence for the terminal, or what is no UTF-8."""
    monkeypatch.setitem(os.environb, b"HOOKLOOP_A", b"\xff")
    assert problems("a: ${HOOKLOOP_A}") == ["cfg.yaml:1: expected text, found the character '\\udcff'"]


def test_what_a_variable_holds_is_not_read_as_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its quotes nor its own variables mean anything."""
    monkeypatch.setenv("HOOKLOOP_A", "{b: ${HOOKLOOP_A}} # !!x")
    assert value("${HOOKLOOP_A}") == "{b: ${HOOKLOOP_A}} # !!x"


def test_a_default_stands_for_an_unset_or_empty_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell; without a default an empty variable is empty text."""
    monkeypatch.delenv("HOOKLOOP_A", raising=False)
    monkeypatch.setenv("HOOKLOOP_B", "")
    assert value("${HOOKLOOP_A:-some/where}") == "some/where"
    assert value("${HOOKLOOP_A:-}") == ""
    assert value("${HOOKLOOP_B:-other}") == "other"
    assert value("x${HOOKLOOP_B}") == "x"


def test_a_place_is_known_for_every_value() -> None:
    """The key's line; the item's own line in a list; the nearest one for what is not there."""
    document = read("a:\n  b:\n    - 1\n    - 2\nc: 3", "cfg.yaml")
    assert document.place(("a", "b")) == "cfg.yaml:2"
    assert document.place(("a", "b", 1)) == "cfg.yaml:4"
    assert document.place(("a", "b", 1, "x")) == "cfg.yaml:4"
    assert document.place(("c",)) == "cfg.yaml:5"
    assert document.place(("d", "e")) == "cfg.yaml:1"


def test_paths_are_written_as_people_do() -> None:
    """Names with dots, numbers in brackets."""
    assert dotted(("a", 0, "b", 1)) == "a[0].b[1]"


def test_an_override_replaces_a_value() -> None:
    """Its value is YAML, and everything beside it stays."""
    document = read("a: {b: 1, c: 2}", "cfg.yaml", ["a.b=[1e-4, no]"])
    assert document.data == {"a": {"b": [0.0001, "no"], "c": 2}}


def test_an_override_makes_the_sections_it_needs() -> None:
    """Also in place of an empty one, and nested ones."""
    document = read("a:", "cfg.yaml", ["a.b.c=1", "d.e={f: g}", "h="])
    assert document.data == {"a": {"b": {"c": 1}}, "d": {"e": {"f": "g"}}, "h": None}


def test_the_last_override_wins() -> None:
    """In the order of the command line."""
    assert read("", "cfg.yaml", ["a.b=1", "a.b=2"]).data == {"a": {"b": 2}}


def test_an_override_may_hold_equals_signs() -> None:
    """Only the first one divides."""
    assert read("", "cfg.yaml", ["a.b=c=d"]).data == {"a": {"b": "c=d"}}


def test_an_override_is_its_own_place() -> None:
    """An error in it or below it points at the command line, what is beside it at the file."""
    document = read("a:\n  b: {x: 1}\n  c: 2", "cfg.yaml", ["a.b={x: 2}"])
    assert document.place(("a", "b", "x")) == "--set a.b"
    assert document.place(("a", "c")) == "cfg.yaml:3"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("a", "--set a: expected SECTION.KEY=VALUE"),
        ("=1", "--set =1: expected SECTION.KEY=VALUE"),
        ("a..b=1", "--set a..b=1: expected SECTION.KEY=VALUE"),
        ("x.y=1", "--set x.y: x holds a value, not options"),
        ("a.b=[1", "--set a.b:1: not YAML: "),
        ("a.b=!x 1", "--set a.b:1: tag !x: expected a plain value; leave the tag out"),
        ("a.b=${HOOKLOOP_UNSET}", "--set a.b:1: environment variable HOOKLOOP_UNSET is not set; "),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(override: str, problem: str) -> None:
    """It points at the command line."""
    (found,) = problems("x: 1", override)
    assert found.startswith(problem)


def test_problems_of_the_file_and_of_overrides_are_told_at_once() -> None:
    """Each with its place."""
    assert problems("a: 1\na: 2", "b", "c..d=1") == [
        "cfg.yaml:2: a: given twice; keep one",
        "--set b: expected SECTION.KEY=VALUE",
        "--set c..d=1: expected SECTION.KEY=VALUE",
    ]


ALWAYS_ALIKE = settings(derandomize=True, deadline=None, database=None)
YAMLISH = st.text(
    st.sampled_from("ab01.-+eE:?,[]{}&*!|>'\"%@`#~<=\\xuU$ \n\t\r\x00\x07\x85\u2028\ufeff\ud800é")
)


def refused_or_read(text: str, *overrides: str) -> list[str]:
    """Read *text* and tell the problems: none where it is read."""
    try:
        document = read(text, "cfg.yaml", overrides)
    except ConfigError as error:
        return error.problems or ["refused without a reason"]
    return [] if isinstance(document.data, dict) else ["no mapping"]


@ALWAYS_ALIKE
@given(st.one_of(st.text(), YAMLISH))
def test_no_text_raises_anything_but_a_config_error(text: str) -> None:
    """Whatever is in the file, it is read or refused, each problem with its place."""
    assert all(problem.startswith("cfg.yaml") for problem in refused_or_read(text))


@ALWAYS_ALIKE
@given(st.text(), YAMLISH)
def test_no_override_raises_anything_but_a_config_error(key: str, text: str) -> None:
    """Whatever is on the command line, it is read or refused, each problem with its place."""
    found = refused_or_read("a: {b: 1}", key, f"a.b={text}")
    assert all(problem.startswith("--set ") for problem in found)


def is_unquoted_number(text: str) -> bool:
    """Whether PyYAML writes *text* without quotes although it looks like a number, such as 1e5 and 08."""
    return re.fullmatch(r"[-+.0-9eE]+", text) is not None


def is_plain(text: str) -> bool:
    """Whether *text* means itself: no variables in it, and nothing that YAML allows by an escape only."""
    return "${" not in text and not yaml.reader.Reader.NON_PRINTABLE.search(text)


TEXTS = st.text().filter(lambda text: is_plain(text) and not is_unquoted_number(text))
KEYS = TEXTS.filter(lambda text: text != "" and text.isprintable())
SCALARS = st.one_of(
    TEXTS, st.integers(-(10**300), 10**300), st.floats(allow_nan=False), st.booleans(), st.none()
)
PLAIN = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=20)


@ALWAYS_ALIKE
@given(st.dictionaries(KEYS, PLAIN, max_size=5))
def test_plain_data_survives_being_written_and_read(data: dict[str, object]) -> None:
    """What PyYAML writes is read as the same data, of the same types."""
    found = read(yaml.safe_dump(data, sort_keys=False), "cfg.yaml").data
    assert repr(found) == repr(data)  # unlike ==, it tells 1 from 1.0 and from True
