"""Controls for the options of a plugin, made from its JSON schema, and the recipe they spell.

The schema that checks an option in Python, in recipes and on the command line also says how it is
asked for here: a range makes a slider, a choice a list, a switch a box; what has parts of its own
is written as YAML, as on the command line.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from skipstep.files.artefact import refusing_files
from skipstep.pipelines.plugin_tables import allowed
from skipstep.plugins import catalog, options
from skipstep.plugins.errors import BadOption

__all__ = ["Control", "controls_of", "recipe_words", "with_values"]

# A slider has a handle that can be put on every step by hand: not more than so many.
MOST_PLACES = 200


@dataclass(frozen=True)
class Control:
    """How one option is asked for; `about` says what it means and what is allowed.

    The value of "text" is YAML, empty for none.
    """

    name: str
    sort: Literal["slider", "number", "box", "list", "text"]
    value: Any
    about: str
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[Any, ...] = ()

    @property
    def label(self) -> str:
        """Return the option's name for people."""
        return self.name.replace("_", " ")

    def read(self, value: Any) -> Any:
        """Return what a widget holds as the value of the option.

        Raises BadOption if a text is not YAML.
        """
        if self.sort == "text" and isinstance(value, str):
            try:
                return yaml.safe_load(value)
            except (yaml.YAMLError, RecursionError, ValueError):
                raise BadOption(f"{self.name}={options.show(value)} is not a YAML value") from None
        if self.sort in ("slider", "number") and isinstance(value, float) and self.step == 1:
            return int(value) if value.is_integer() else value
        return value


def controls_of(name: str, values: Mapping[str, Any] | None = None) -> list[Control]:
    """Return the controls of a plugin, set to `values` and else to the defaults.

    Raises UnknownPlugin.
    """
    schema = options.schema(catalog.load(name))
    given = dict(values or {})
    return [
        control_of(option, about, schema.get("$defs", {}), given)
        for option, about in schema.get("properties", {}).items()
    ]


def control_of(
    name: str, about: Mapping[str, Any], definitions: dict[str, Any], given: Mapping[str, Any]
) -> Control:
    """Return the control of one option."""
    value = given.get(name, about.get("default"))
    words = [str(about.get("description", "")).strip().rstrip(".")]
    parts = [part for part in about.get("anyOf", []) if part.get("type") != "null"]
    takes_none = len(parts) == 1 and len(about.get("anyOf", [])) == 2
    rule = {**about, **parts[0]} if takes_none else dict(about)
    rule.pop("anyOf", None) if takes_none else None
    sort = rule.get("type")
    if "enum" in rule:
        return Control(name, "list", value, words[0], choices=tuple(rule["enum"]))
    if sort == "boolean":
        return Control(name, "box", bool(value), words[0])
    if sort in ("integer", "number"):
        low = rule.get("minimum", rule.get("exclusiveMinimum"))
        high = rule.get("maximum", rule.get("exclusiveMaximum"))
        words.append(allowed(rule, definitions).replace("integer", "whole number"))
        if takes_none:
            # A field of numbers cannot be empty: gradio's page shows 0 there, and sends it.
            words.append("empty is none")
            told = "; ".join(word for word in words if word)
            return Control(name, "text", "" if value is None else json.dumps(value), told)
        step = 1.0 if sort == "integer" else 0.01
        is_open = "exclusiveMinimum" in rule or "exclusiveMaximum" in rule
        is_slider = (
            low is not None
            and high is not None
            and not is_open
            and (high - low) / step <= MOST_PLACES
        )
        return Control(
            name,
            "slider" if is_slider else "number",
            value,
            "; ".join(word for word in words if word),
            minimum=low,
            maximum=high,
            step=step,
        )
    if sort == "string":
        return Control(name, "text", value, words[0])
    words.append("as in a recipe")
    return Control(name, "text", json.dumps(value), "; ".join(words))


def with_values(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Return a plugin as recipe data from what its widgets hold; defaults are left out.

    Raises BadOption, as `build` does.
    """
    known = controls_of(name)
    given = {
        control.name: control.read(value) for control, value in zip(known, values, strict=True)
    }
    properties = options.schema(catalog.load(name)).get("properties", {})
    given = {
        option: value
        for option, value in given.items()
        if value is not None or "default" in properties[option]
    }
    with refusing_files():
        return options.to_dict(options.build(name, given))


def recipe_words(listed: Sequence[Mapping[str, Any]]) -> str:
    """Write plugins as the one line that the command line takes too.

    >>> recipe_words([{"name": "easycache", "options": {"threshold": 0.1}}, {"name": "textkv"}])
    'easycache:threshold=0.1 + textkv'
    """
    return " + ".join(
        entry["name"]
        + (":" if entry.get("options") else "")
        + ",".join(
            f"{option}={json.dumps(value)}"
            for option, value in (entry.get("options") or {}).items()
        )
        for entry in listed
    )
