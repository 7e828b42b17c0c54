"""Options are strict: every mistake is told at once, with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from attrs import Attribute, define, field, frozen
from attrs.validators import ge, optional

from hookloop.config import build, learned_options, options_of, resolved_fields
from hookloop.errors import ConfigError
from hookloop.manager import assemble
from hookloop.plugins.downscaling import Downscaling
from hookloop.plugins.downscaling.options import ModelConfig, UNetOptions
from hookloop.plugins.ema import EMA
from hookloop.settings import RunConfig, doc
from hookloop.words import suggestion, type_in_words
from hookloop.yamlfile import Document, read

if TYPE_CHECKING:
    from decimal import Decimal


def _even(_instance: object, _attribute: Attribute[int], value: int) -> None:
    if value % 2:
        raise ValueError(f"expected an even number, found {value}")


def _above_low(instance: Pair, _attribute: Attribute[int], value: int) -> None:
    if value <= instance.low:
        raise ValueError(f"high: expected more than low, {instance.low}, found {value}")


@frozen
class Noise:
    """Options within options."""

    mean: float = 0.0
    steps: int = field(default=2, validator=_even)


@frozen
class Pair:
    """Options that look at each other."""

    low: int = 0
    high: int = field(default=1, validator=_above_low)


@define(eq=False)
class Options:
    """One option of each kind, and state."""

    required: int
    flag: bool = False
    number: float = 0.5
    text: str = "x"
    where: Path = Path("here")
    names: list[str] = field(factory=list)
    many: tuple[int, ...] = ()
    weights: dict[str, float] = field(factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    kind: Literal["linear", "cosine"] = "linear"
    level: Literal[1, 2] = 1
    limit: int | None = None
    size: int | Literal["auto"] = "auto"
    noise: Noise = field(factory=Noise)
    pair: Pair = field(factory=Pair)
    parts: list[Noise] = field(factory=list)
    maybe: Noise | None = None
    _hidden: int = 3
    steps: int = field(default=0, init=False)
    total: Decimal | None = field(default=None, init=False)
    """Of a type that is only imported for checking."""


@define(eq=False)
class Derived(EMA):
    """Inherits options that were annotated in another module."""

    factor: float = 1.0


def problems(text: str, cls: type = Options, section: str = "s") -> list[str]:
    """Tell what is wrong with a section."""
    document = read(text, "cfg.yaml")
    with pytest.raises(ConfigError) as raised:
        build(cls, document, section)
    return raised.value.problems


def built(text: str) -> Options:
    """Build a section whose required option is there."""
    return build(Options, read(f"s: {{required: 1, {text}}}", "cfg.yaml"), "s")


def test_an_unknown_option_is_named_with_line_and_suggestion() -> None:
    """As the contract writes it."""
    text = "run: {}\nema:\n  # how slow\n  deacy: 0.9\n"
    assert problems(text, EMA, "ema") == ["cfg.yaml:4: ema.deacy: unknown option; did you mean 'decay'?"]


def test_an_option_with_an_example_shows_it_where_another_type_is_found_or_nothing() -> None:
    """Not where what is within it is wrong, nor where its validator has its own words."""

    @frozen
    class Shown:
        count: int | None = field(validator=optional(_even), metadata=doc("even", example="4"))
        names: list[str] = field(factory=list, metadata=doc("names", example="[a, b]"))

    assert problems("s: {count: x, names: a}", Shown) == [
        "cfg.yaml:1: s.count: expected an integer such as 4, found 'x'",
        "cfg.yaml:1: s.names: expected a list such as [a, b], found 'a'",
    ]
    assert problems("s: {names: [1]}", Shown) == [
        "cfg.yaml:1: s.count: missing; expected an integer such as 4",
        "cfg.yaml:1: s.names[0]: expected text, found 1",
    ]
    assert problems("s: {count: 3}", Shown) == ["cfg.yaml:1: s.count: expected an even number, found 3"]


def test_an_unknown_option_like_no_other_gets_no_suggestion() -> None:
    """A far-fetched suggestion would mislead."""
    assert problems("s: {required: 1, qqq: 1}") == ["cfg.yaml:1: s.qqq: unknown option"]


def test_a_missing_option_is_named() -> None:
    """The nearest place is its section, or the file where there is none."""
    assert problems("\ns:\n  flag: true") == ["cfg.yaml:2: s.required: missing; expected an integer"]
    assert problems("") == ["cfg.yaml: s.required: missing; expected an integer"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("required: true", "s.required: expected an integer, found true"),
        ("required: 2.9", "s.required: expected an integer, found 2.9"),
        ("required: 1.0", "s.required: expected an integer, found 1.0"),
        ("required: '1'", "s.required: expected an integer, found '1'"),
        ("required:", "s.required: expected an integer, found nothing"),
        ("flag: no", "s.flag: expected true or false, found 'no'"),
        ("flag: 1", "s.flag: expected true or false, found 1"),
        ("number: true", "s.number: expected a number, found true"),
        ("number: 1e-4x", "s.number: expected a number, found '1e-4x'"),
        ("text: 1", "s.text: expected text, found 1"),
        ("text: [a]", "s.text: expected text, found ['a']"),
        ("where: 1", "s.where: expected a path, found 1"),
        ("names: a", "s.names: expected a list, found 'a'"),
        ("names: {a: b}", "s.names: expected a list, found options"),
        ("names: [a, 1]", "s.names[1]: expected text, found 1"),
        ("many: [1, x]", "s.many[1]: expected an integer, found 'x'"),
        ("weights: [a]", "s.weights: expected names with values, found ['a']"),
        ("weights: {a: x}", "s.weights.a: expected a number, found 'x'"),
        ("betas: [0.9]", "s.betas: expected 2 values, found 1"),
        ("betas: [0.9, 0.99, 0.999]", "s.betas: expected 2 values, found 3"),
        ("betas: [0.9, x]", "s.betas[1]: expected a number, found 'x'"),
        ("kind: cosin", "s.kind: expected one of linear, cosine, found 'cosin'; did you mean 'cosine'?"),
        ("kind: 7", "s.kind: expected one of linear, cosine, found 7"),
        ("level: true", "s.level: expected one of 1, 2, found true"),
        ("limit: x", "s.limit: expected an integer, found 'x'"),
        ("size: big", "s.size: expected an integer or one of auto, found 'big'"),
        ("noise: 1", "s.noise: expected options (mean, steps), found 1"),
        ("noise: {mean: x}", "s.noise.mean: expected a number, found 'x'"),
        ("noise: {maen: 1}", "s.noise.maen: unknown option; did you mean 'mean'?"),
        ("noise: {steps: 3}", "s.noise.steps: expected an even number, found 3"),
        ("pair: {low: 5}", "s.pair: high: expected more than low, 5, found 1"),
        ("parts: [{}, {mean: x}]", "s.parts[1].mean: expected a number, found 'x'"),
        ("maybe: {mean: x}", "s.maybe.mean: expected a number, found 'x'"),
        ("_hidden: 1", "s._hidden: unknown option; did you mean 'hidden'?"),
    ],
)
def test_a_wrong_value_is_told_with_what_was_expected_and_found(text: str, problem: str) -> None:
    """One line, at the place of the innermost value that is wrong."""
    required = "" if text.startswith("required") else "\n  required: 1"
    assert problems(f"s:\n  {text}{required}") == [f"cfg.yaml:2: {problem}"]


def test_a_section_that_is_no_mapping_is_told_its_options() -> None:
    """A list where options belong."""
    assert problems("s: [1]", Noise) == ["cfg.yaml:1: s: expected options (mean, steps), found [1]"]


@pytest.mark.parametrize("name", ["steps", "total"])
def test_state_cannot_be_set(name: str) -> None:
    """What is no option of the constructor is unknown, also to suggestions."""
    (problem,) = problems(f"s: {{required: 1, {name}: 1}}")
    assert problem.startswith(f"cfg.yaml:1: s.{name}: unknown option")
    assert f"'{name}'" not in problem


def test_every_problem_of_a_section_is_told_at_once() -> None:
    """Unknown, missing, wrong and invalid, however deep."""
    text = "s:\n  nmae: 1\n  flag: no\n  noise:\n    mean: x\n    steps: 1\n    extra: 2\n  betas: [a, b]"
    assert problems(text) == [
        "cfg.yaml:2: s.nmae: unknown option; did you mean 'names'?",
        "cfg.yaml:1: s.required: missing; expected an integer",
        "cfg.yaml:3: s.flag: expected true or false, found 'no'",
        "cfg.yaml:8: s.betas[0]: expected a number, found 'a'",
        "cfg.yaml:8: s.betas[1]: expected a number, found 'b'",
        "cfg.yaml:7: s.noise.extra: unknown option",
        "cfg.yaml:5: s.noise.mean: expected a number, found 'x'",
        "cfg.yaml:6: s.noise.steps: expected an even number, found 1",
    ]


def test_every_problem_of_every_section_is_told_at_once() -> None:
    """Sections of the core and of several plugins, and one that nobody owns."""
    text = "run: {max_epochs: 0}\nema: {decay: 2.0}\noptimization: {lr: fast}\nemma: {}"
    with pytest.raises(ConfigError) as raised:
        assemble(read(text, "cfg.yaml"), ["ema"])
    assert raised.value.problems == [
        "cfg.yaml:4: emma: unknown section; did you mean 'ema'?",
        "cfg.yaml:1: run.dir: missing; expected a path",
        "cfg.yaml:1: run.max_epochs: 'max_epochs' must be >= 1: 0",
        "cfg.yaml:2: ema.decay: 'decay' must be < 1.0: 2.0",
        "cfg.yaml:3: optimization.lr: expected a number, found 'fast'",
    ]


def test_a_mistake_on_the_command_line_points_there() -> None:
    """Not at the file, whose value is overridden."""
    document = read("s:\n  required: 1", "cfg.yaml", ["s.required=x", "s.noise={maen: 1}"])
    with pytest.raises(ConfigError) as raised:
        build(Options, document, "s")
    assert raised.value.problems == [
        "--set s.required: s.required: expected an integer, found 'x'",
        "--set s.noise: s.noise.maen: unknown option; did you mean 'mean'?",
    ]


def test_right_values_are_taken_as_they_are() -> None:
    """An integer serves as a number, a list as a tuple, text as a path; nothing else is converted."""
    options = built(
        "number: 2, betas: [0, 1], many: [1, 2, 3], where: a/b, size: 4, limit: null, maybe: {mean: 1}"
    )
    assert (options.number, type(options.number)) == (2.0, float)
    assert options.betas == (0.0, 1.0)
    assert options.many == (1, 2, 3)
    assert options.where == Path("a/b")
    assert (options.size, options.limit, options.maybe) == (4, None, Noise(mean=1.0))


def test_an_empty_section_is_all_defaults() -> None:
    """So is an absent one."""
    assert build(Noise, read("s:", "cfg.yaml"), "s") == Noise()
    assert build(Noise, read("", "cfg.yaml"), "s") == Noise()


def test_a_private_attribute_is_an_option_under_its_public_name() -> None:
    """As in the constructor."""
    assert built("hidden: 7")._hidden == 7


def test_inherited_options_are_those_of_the_base_class() -> None:
    """Their annotations are read where they were written."""
    plugin = build(Derived, read("s: {decay: 0.5, factor: 2}", "cfg.yaml"), "s")
    assert (plugin.decay, plugin.factor) == (0.5, 2.0)
    assert problems("s: {decay: x}", Derived) == ["cfg.yaml:1: s.decay: expected a number, found 'x'"]


def test_state_of_a_type_that_is_only_imported_for_checking_is_left_alone() -> None:
    """Options are resolved to types, state is not looked at."""
    kinds = {a.name: a.type for a in resolved_fields(Options)}
    assert kinds["total"] is object
    assert kinds["required"] is int
    assert built("").total is None


def test_options_survive_being_written_and_built_again() -> None:
    """What is written down makes the same object, defaults included, and is plain data."""
    text = "betas: [0.1, 0.2], weights: {a: 1}, parts: [{mean: 3}], maybe: {steps: 4}, where: a/b, hidden: 9"
    options = options_of(built(text))
    again = build(Options, read("", "cfg.yaml", [f"s={json.dumps(options)}"]), "s")
    assert options_of(again) == options
    assert options["betas"] == [0.1, 0.2]
    assert (options["where"], options["hidden"], options["parts"]) == ("a/b", 9, [{"mean": 3.0, "steps": 2}])
    assert not {"steps", "total"} & options.keys()


def test_an_option_under_another_name_is_written_under_that_name() -> None:
    """``EMA.validate_with`` is ``validate`` in a configuration."""
    ema = build(EMA, read("s: {validate: false}", "cfg.yaml"), "s")
    assert options_of(ema)["validate"] is False
    assert "validate_with" not in options_of(ema)


def test_what_is_no_attrs_class_has_no_options() -> None:
    """Nor any that are learned."""
    assert (options_of(object()), learned_options(object())) == ({}, {})


def test_learned_options_are_flat() -> None:
    """Only those that change what is learnt, by dotted name, under the names of a configuration."""

    @define(eq=False)
    class Learning:
        seed: int = field(default=1, metadata=doc("learned", learned=True))
        _rate: float = field(default=0.5, metadata=doc("learned", learned=True))
        noise: Noise = field(factory=Noise, metadata=doc("learned", learned=True))
        empty: dict[str, float] = field(factory=dict, metadata=doc("learned", learned=True))
        colour: str = field(default="red", metadata=doc("not learned"))

    assert learned_options(Learning()) == {
        "seed": 1,
        "rate": 0.5,
        "noise.mean": 0.0,
        "noise.steps": 2,
        "empty": {},
    }


def backbone_problems(backbone: str) -> list[str]:
    """Tell what is wrong with a backbone."""
    return problems(f"s:\n  inputs: [t]\n  outputs: [t]\n  backbone: {backbone}", ModelConfig)


def test_a_chosen_part_is_built_from_its_own_options() -> None:
    """``name`` picks the class that an entry point offers; the rest are its options."""
    text = "s: {inputs: [t], outputs: [t], backbone: {name: unet, channels: 32}}"
    model = build(ModelConfig, read(text, "cfg.yaml"), "s")
    assert model.backbone == UNetOptions(channels=32)


def test_a_name_alone_chooses_a_part_with_its_defaults() -> None:
    """No braces are needed where there are no options."""
    model = build(ModelConfig, read("s: {inputs: [t], outputs: [t], backbone: unet}", "cfg.yaml"), "s")
    assert model.backbone == UNetOptions()


def test_a_chosen_part_survives_being_written_and_built_again() -> None:
    """Its name is written too."""
    model = ModelConfig(inputs=["t"], outputs=["t"], backbone=UNetOptions(channels=32))
    options = options_of(model)
    assert isinstance(options["backbone"], dict)
    assert options["backbone"]["name"] == "unet"
    assert build(ModelConfig, read("", "cfg.yaml", [f"s={json.dumps(options)}"]), "s") == model


@pytest.mark.parametrize(
    ("backbone", "problem"),
    [
        ("{name: unet, chanels: 3}", "s.backbone.chanels: unknown option; did you mean 'channels'?"),
        ("{name: unett}", "s.backbone.name: expected one of unet, found 'unett'; did you mean 'unet'?"),
        (
            "{name: [unet]}",
            "s.backbone.name: expected one of unet, found ['unet']; did you mean 'unet'?",
        ),
        ("{channels: 3}", "s.backbone: expected a name (unet) and its options, found options"),
        ("[unet]", "s.backbone: expected a name (unet) and its options, found ['unet']"),
        ("unett", "s.backbone.name: expected one of unet, found 'unett'; did you mean 'unet'?"),
        ("{name: unet, channels: 3}", "s.backbone.channels: 'channels' must be >= 4: 3"),
    ],
)
def test_a_wrong_choice_is_told_with_its_place(backbone: str, problem: str) -> None:
    """Down to the options of what was chosen."""
    assert backbone_problems(backbone) == [f"cfg.yaml:4: {problem}"]


def test_what_an_object_says_when_it_is_made_has_the_place_of_its_section() -> None:
    """Options that do not fit together are the user's mistake too."""

    @frozen
    class Range:
        low: int = 0
        high: int = 1

        def __attrs_post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low: expected at most high, {self.high}, found {self.low}")

    assert problems("a: 1\ns: {low: 5}", Range) == ["cfg.yaml:2: s: low: expected at most high, 1, found 5"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("time_limit: soon", "run.time_limit: expected a duration such as 3h50m, 45m or 90s, found 'soon'"),
        ("time_limit: ''", "run.time_limit: expected a duration such as 3h50m, 45m or 90s, found ''"),
        (
            "time_limit: 1:30:00",
            "run.time_limit: expected a duration such as 3h50m, 45m or 90s, found '1:30:00'",
        ),
        ("time_limit: 90", "run.time_limit: expected text such as 3h50m, found 90"),
        ("validate_every: 4", "run.validate_every: expected text such as '5 epochs', found 4"),
        ("validate_every:", "run.validate_every: expected text such as '5 epochs', found nothing"),
        (
            "allow_changes: optimization.lr",
            "run.allow_changes: expected a list such as [optimization.lr], found 'optimization.lr'",
        ),
        ("allow_changes: [1]", "run.allow_changes[0]: expected text, found 1"),
        ("segment_epochs: 0", "run.segment_epochs: 'segment_epochs' must be >= 1: 0"),
        ("max_epochs: 1e3", "run.max_epochs: expected an integer, found 1000.0"),
    ],
)
def test_the_run_section_is_checked(options: str, problem: str) -> None:
    """Durations and counts are what they look like."""
    assert problems(f"run: {{dir: x, {options}}}", RunConfig, "run") == [f"cfg.yaml:1: {problem}"]


@pytest.mark.parametrize("options", ["validate_every: 0 epochs", "validate_every: often", "device: gpu"])
def test_a_run_section_of_the_wrong_form_is_refused(options: str) -> None:
    """The message names the option."""
    (problem,) = problems(f"run: {{dir: x, {options}}}", RunConfig, "run")
    name = options.split(":", maxsplit=1)[0]
    assert problem.startswith(f"cfg.yaml:1: run.{name}: ")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("3h50m", 13800), ("1d", 86400), ("1d1h1m1s", 90061)]
)
def test_durations_are_seconds(text: str, seconds: int) -> None:
    """Days, hours, minutes and seconds add up."""
    assert RunConfig(dir=Path("x"), time_limit=text).time_limit_seconds == seconds


@pytest.mark.parametrize(
    ("interval", "epochs"),
    [
        ("1 epoch", [1, 2, 3, 4, 5]),
        ("2 epochs", [2, 4, 5]),
        ("10 batches", [1, 2, 3, 4, 5]),
        ("1 batch", [1, 2, 3, 4, 5]),
        ("25 batches", [3, 5]),
        ("1000 batches", [5]),
    ],
)
def test_validated_epochs(interval: str, epochs: list[int]) -> None:
    """Of five epochs of ten batches, those in or after which there is an evaluation, the last one always."""
    assert RunConfig(dir=Path("x"), max_epochs=5, validate_every=interval).validated_epochs(10) == epochs


@pytest.mark.parametrize("interval", ["5", "0 epochs", "1.5 epochs", "2 batche", "epochs", "3 steps"])
def test_what_is_no_interval_is_refused(interval: str) -> None:
    """With an example of one."""
    with pytest.raises(ValueError, match="such as '1 epoch'"):
        RunConfig(dir=Path("x"), validate_every=interval)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "an integer"),
        (int | None, "an integer"),
        (Literal["a", "b"], "one of a, b"),
        (list[str], "a list"),
        (dict[str, int], "names with values"),
        (float | str, "a number or text"),
        (Noise, "options"),
    ],
)
def test_types_are_said_in_words(kind: object, words: str) -> None:
    """No Python in a user's message."""
    assert type_in_words(kind) == words


def test_a_suggestion_is_the_nearest_name() -> None:
    """Or none."""
    assert suggestion("deacy", ["decay", "momentum"]) == "; did you mean 'decay'?"
    assert suggestion("zzz", ["decay"]) == ""


def test_a_validator_of_attrs_is_told_with_its_place() -> None:
    """Any validator's own words are the message."""

    @frozen
    class Counted:
        count: int = field(default=1, validator=ge(1))

    assert problems("s: {count: 0}", Counted) == ["cfg.yaml:1: s.count: 'count' must be >= 1: 0"]


def _refuse(_instance: object, _attribute: Attribute[str], value: str) -> None:
    raise ValueError(f"found {value}")


@frozen
class Choosy:
    """An option that nothing suits."""

    text: str = field(default="", validator=_refuse)


def test_a_problem_is_one_line_whatever_is_quoted_in_it() -> None:
    """So that the lines are as many as the problems."""
    assert problems('s: {text: "a\\n  b"}', Choosy) == ["cfg.yaml:1: s.text: found a b"]


@frozen
class Inverse:
    """An option that its validator cannot always count with."""

    width: float = field(default=1.0, validator=lambda _instance, _attribute, value: value**-2)


@pytest.mark.parametrize("width", ["0.0", "1e-300"])
def test_a_number_that_a_validator_cannot_count_with_is_told_with_its_place(width: str) -> None:
    """Too small, too large: in Python's words."""
    (problem,) = problems(f"s: {{width: {width}}}", Inverse)
    assert re.fullmatch(r"cfg.yaml:1: s.width: .*(negative power|out of range).*", problem)


@frozen
class Deep:
    """Containers of containers."""

    pairs: list[tuple[str, int]] = field(factory=list)
    nested: dict[str, dict[str, int]] = field(factory=dict)


def test_containers_of_containers_are_checked_all_the_way_down() -> None:
    """Each with the path of what is wrong."""
    assert problems("s: {pairs: [[a, 1], [b, x]], nested: {a: {b: x}}}", Deep) == [
        "cfg.yaml:1: s.pairs[1][1]: expected an integer, found 'x'",
        "cfg.yaml:1: s.nested.a.b: expected an integer, found 'x'",
    ]


@frozen
class Source:
    """A source that says more than its path."""

    path: str
    rename: dict[str, str] = field(factory=dict)


@frozen
class Either:
    """Options that may be written in two ways."""

    sources: list[str | Source] = field(factory=list)
    boxes: Source | list[Source] | None = None
    time: tuple[str, str] | list[tuple[str, str]] | None = field(
        default=None, metadata={"example": "[2019, 2020]"}
    )
    workers: int | Literal["auto"] = "auto"


def test_of_two_ways_to_write_an_option_the_one_meant_is_told_wrong() -> None:
    """Options are compared with options and lists with lists, so a misspelt key is found within either."""
    assert build(Either, Document({"s": {"sources": ["a", {"path": "b"}]}}), "s").sources == [
        "a",
        Source("b"),
    ]
    assert problems("s: {sources: [a, {path: b, renam: {}}]}", Either) == [
        "cfg.yaml:1: s.sources[1].renam: unknown option; did you mean 'rename'?"
    ]
    assert problems("s: {boxes: [{}]}", Either) == ["cfg.yaml:1: s.boxes[0].path: missing; expected text"]
    assert problems("s: {boxes: {}}", Either) == ["cfg.yaml:1: s.boxes.path: missing; expected text"]
    assert problems("s: {time: [a, b, c]}", Either) == [
        "cfg.yaml:1: s.time: expected a list such as [2019, 2020], found ['a', 'b', 'c']"
    ]
    assert problems("s: {workers: many}", Either) == [
        "cfg.yaml:1: s.workers: expected an integer or one of auto, found 'many'"
    ]


def test_two_ways_to_write_an_option_are_both_taken() -> None:
    """A pair is a tuple, several pairs are a list of tuples."""
    one, several = (
        build(Either, Document({"s": {"time": time}}), "s").time
        for time in (["a", "b"], [["a", "b"], ["c", "d"]])
    )
    assert one == ("a", "b")
    assert several == [("a", "b"), ("c", "d")]


def test_options_of_unknown_variables_are_refused_before_data_are_opened() -> None:
    """A misspelt variable of a transform would otherwise do nothing."""
    data = "train: {coarse: [a], fine: [b]}, model: {inputs: [t2m, pr], outputs: [pr]}"
    text = f"s: {{{data}, transforms: {{rp: {{name: sqrt}}}}}}"
    assert problems(text, Downscaling) == [
        "cfg.yaml:1: s: transforms: rp neither an input nor an output of the model; expected some of t2m, pr"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("repeat: {every: 7d, take: 8d}", "s.train.repeat: takes 8d of every 7d; expected that much at most"),
        ("repeat: {every: 7d, take: 0d}", "s.train.repeat: takes 0d of every 7d; expected that much at most"),
    ],
)
def test_blocks_of_time_that_overlap_are_refused_before_data_are_opened(options: str, said: str) -> None:
    """What the configuration alone disproves is told by ``config check``."""
    text = f"s: {{train: {{coarse: [a], fine: [b], {options}}}, model: {{inputs: [t2m], outputs: [t2m]}}}}"
    (problem,) = problems(text, Downscaling)
    assert said in problem


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (
            "{random_offset: false, region: {lat: [0, 1], lon: [0, 1], weight: 2}}",
            "region: tiles are not drawn",
        ),
        ("{overlap: [1, 1]}", "overlap: patches at random do not tile"),
    ],
)
def test_patches_that_contradict_themselves_are_refused_before_data_are_opened(patch: str, said: str) -> None:
    """Options without effect are slips."""
    data = "train: {coarse: [a], fine: [b]}, model: {inputs: [t2m], outputs: [t2m]}"
    (problem,) = problems(f"s: {{{data}, patch: {patch}}}", Downscaling)
    assert f"s.patch: {said}" in problem
