"""Options: strict, with the same answers for Python, mappings and command lines."""

import dataclasses
import json
import re
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstep.plugins.errors import BadOption, PluginError, UnknownPlugin
from skipstep.plugins.options import build, parse_spec, schema, to_dict


def message_of(error: type[Exception], call: Any, *args: Any) -> str:
    """Return the message of the error that a call must raise."""
    with pytest.raises(error) as caught:
        call(*args)
    assert type(caught.value) is error
    return str(caught.value)


def test_a_name_and_options_make_an_object(toys: Any) -> None:
    assert build("toy", {"threshold": 0.1}) == toys.Toy(threshold=0.1)
    assert build("bare") == toys.Bare()


def test_an_object_passes_unchanged(toys: Any) -> None:
    toy = toys.Toy(threshold=0.1)
    assert build(toy) is toy


def test_a_mapping_is_read_like_a_recipe(toys: Any) -> None:
    assert build({"name": "toy", "options": {"limit": 3}}) == toys.Toy(limit=3)
    assert build({"name": "bare"}) == toys.Bare()
    assert build({"name": "bare", "options": None}) == toys.Bare()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"treshold": 0.1},
            "toy: unknown option 'treshold', did you mean 'threshold'? "
            "Options: threshold, warmup_steps, metric, label, limit, sizes, gate",
        ),
        (
            {"zzz": 1},
            "toy: unknown option 'zzz'. "
            "Options: threshold, warmup_steps, metric, label, limit, sizes, gate",
        ),
        (
            {"threshold": -3.0},
            "toy: threshold=-3.0 is not allowed: must be greater than 0 "
            "(tau in Eq. (5); default 0.05)",
        ),
        (
            {"threshold": float("nan")},
            "toy: threshold=nan is not allowed: must be less than or equal to 1 "
            "(tau in Eq. (5); default 0.05)",
        ),
        (
            {"threshold": "high"},
            "toy: threshold='high' is not allowed: must be a number, "
            "unable to parse string as a number (tau in Eq. (5); default 0.05)",
        ),
        (
            {"warmup_steps": 2.5},
            "toy: warmup_steps=2.5 is not allowed: must be a whole number, got a number with "
            "a fractional part (first steps, always computed; default 1)",
        ),
        (
            {"threshold": 2, "warmup_steps": 0},
            "toy: threshold=2 is not allowed: must be less than or equal to 1 "
            "(tau in Eq. (5); default 0.05); warmup_steps=0 is not allowed: "
            "must be greater than or equal to 1 (first steps, always computed; default 1)",
        ),
        ({"metric": "l3"}, "toy: metric='l3' is not allowed: must be 'l1' or 'l2' (default 'l1')"),
        ({"sizes": [1, "b"]}, "toy: sizes.1='b' is not allowed: must be a whole number, "),
        ({"limit": 2, "warmup_steps": 5}, "toy: limit=2 is below warmup_steps=5"),
        (
            {"gate": {"type": "rarely"}},
            "toy: gate={'type': 'rarely'} is not allowed: "
            "its 'type' must be 'often', 'seldom' (default Often(",
        ),
        ({"gate": {"every": 3}}, "toy: gate={'every': 3} is not allowed: it must say its 'type'"),
        ({"gate": {"type": "often", "evry": 3}}, "toy: gate.often has no option 'evry'"),
        ({"label": 7 * "x" + "y"}, None),
        ({"metric": "l" * 500}, f"toy: metric='{'l' * 56}... is not allowed"),
    ],
)
def test_every_complaint_names_value_rule_and_cure(
    toys: Any, options: dict[str, Any], message: str | None
) -> None:
    if message is None:
        assert build("toy", options).name == "toy"
    else:
        assert message_of(BadOption, build, "toy", options).startswith(message)


def test_a_plugin_without_options_says_none(toys: Any) -> None:
    message = message_of(BadOption, build, "bare", {"strength": 1})
    assert message == "bare: unknown option 'strength'. Options: none"


def test_an_unknown_name_is_suggested(toys: Any) -> None:
    message = message_of(UnknownPlugin, build, "Toi")
    assert message == "unknown plugin 'Toi': did you mean 'toy'? (3 available: pipe.list_plugins())"
    message = message_of(UnknownPlugin, build, "quantise")
    assert message == "unknown plugin 'quantise' (3 available: pipe.list_plugins())"


def test_options_beside_an_object_are_refused(toys: Any) -> None:
    message = message_of(BadOption, build, toys.Toy(), {"threshold": 0.2})
    assert message.startswith("toy: options were given twice, in the object and as threshold.")
    message = message_of(BadOption, build, {"name": "toy"}, {"limit": 2})
    assert message.startswith("toy: options were given twice, in the object and as limit.")


def test_a_class_is_refused_with_the_cure(toys: Any) -> None:
    message = message_of(BadOption, build, toys.Toy)
    assert message == "Toy is a class: pass an object, Toy(...), or the name 'toy'"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"nam": "toy"}, "a plugin has no key 'nam', did you mean 'name'? Keys: name, options"),
        ({}, "a plugin needs a name in text, not None: name: easycache"),
        ({"name": 3}, "a plugin needs a name in text, not 3: name: easycache"),
        ({"name": "toy", "options": [1]}, "toy: options are names with values, not [1]"),
    ],
)
def test_a_mapping_is_read_strictly(toys: Any, entry: dict[str, Any], message: str) -> None:
    assert message_of(BadOption, build, entry) == message


@pytest.mark.parametrize("thing", [3, None, ["toy"], object()])
def test_what_is_no_plugin_is_refused(thing: object) -> None:
    with pytest.raises(PluginError, match="is not a frozen pydantic dataclass"):
        build(thing)


def test_pydantics_own_error_never_comes_out(toys: Any) -> None:
    with pytest.raises(BadOption) as caught:
        build("toy", {"threshold": []})
    assert not isinstance(caught.value, pydantic.ValidationError)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("toy", ("toy", {})),
        (
            "toy:threshold=0.08,warmup_steps=3",
            ("toy", {"threshold": 0.08, "warmup_steps": 3}),
        ),
        (" toy : limit = null , label = a b ", ("toy", {"limit": None, "label": "a b"})),
        ("toy:label='a,b=c'", ("toy", {"label": "a,b=c"})),
        ("toy:sizes=[1,2],limit=2", ("toy", {"sizes": [1, 2], "limit": 2})),
        (
            "toy:gate={type: often, every: 3},label=x:y",
            ("toy", {"gate": {"type": "often", "every": 3}, "label": "x:y"}),
        ),
        ("toy:label=a]b,limit=1", ("toy", {"label": "a]b", "limit": 1})),
    ],
)
def test_a_command_line_is_read(spec: str, expected: tuple[str, dict[str, Any]]) -> None:
    assert parse_spec(spec) == expected


def test_a_number_in_scientific_notation_is_a_number(toys: Any) -> None:
    assert build(*parse_spec("toy:threshold=1e-3")) == toys.Toy(threshold=0.001)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "'' is not a plugin: write name or name:option=value,option=value"),
        ("toy:", "'toy:' is not a plugin: write name or name:option=value,option=value"),
        (":a=1", "':a=1' is not a plugin"),
        ("toy:limit", "toy: 'limit' is not option=value in 'toy:limit' (for no value: null)"),
        ("toy:limit=", "toy: 'limit=' is not option=value"),
        ("toy:limit=1,,", "toy: '' is not option=value"),
        ("toy:limit=1,limit=2", "toy: option 'limit' is given twice in 'toy:limit=1,limit=2'"),
        ("toy:sizes=[1,2", "toy: sizes='[1,2' is not a YAML value"),
        ("toy:label=!!python/object:os.system x", "toy: label='!!python/object:os.system x' is"),
        ("toy:sizes=" + "[" * 5000, "toy: sizes='[[[[["),
        ("toy:label=2026-13-40", "toy: label='2026-13-40' is not a YAML value"),
    ],
)
def test_a_malformed_command_line_is_refused(spec: str, message: str) -> None:
    assert message_of(BadOption, parse_spec, spec).startswith(message)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_in_words(spec: str) -> None:
    try:
        name, options = parse_spec(spec)
    except BadOption:
        return
    assert name == spec.partition(":")[0].strip()
    assert all(re.fullmatch(r"\S(.*\S)?", option, re.DOTALL) for option in options)


def test_only_what_is_not_the_default_is_written(toys: Any) -> None:
    assert to_dict(toys.Toy()) == {"name": "toy", "options": {}}
    toy = toys.Toy(sizes=(1, 2), gate=toys.Seldom())
    written = to_dict(toy)
    assert written == {
        "name": "toy",
        "options": {"sizes": [1, 2], "gate": {"type": "seldom", "chance": 0.5}},
    }
    assert build(json.loads(json.dumps(written))) == toy


def test_what_is_no_plugin_is_not_written() -> None:
    @dataclasses.dataclass(frozen=True)
    class Almost:
        name = "almost"
        kind = "custom"
        summary = ""
        paper = ""

    with pytest.raises(PluginError, match="Almost is not a frozen pydantic dataclass"):
        to_dict(Almost())  # type: ignore[arg-type]


def test_the_schema_has_bounds_defaults_and_descriptions(toys: Any) -> None:
    threshold = schema(toys.Toy)["properties"]["threshold"]
    assert threshold["exclusiveMinimum"] == 0
    assert threshold["maximum"] == 1
    assert threshold["default"] == 0.05
    assert threshold["description"] == "tau in Eq. (5)"
    assert schema(toys.Toy)["additionalProperties"] is False
