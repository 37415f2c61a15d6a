"""Options of plugins: from names and text to checked objects, and back to plain data.

A plugin's options are the fields of its class, a frozen pydantic dataclass. Python calls, recipes,
the command line and the web UI all come through here, so they take the same options and give the
same answers to the same mistakes.
"""

from collections.abc import Mapping
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from skipstep.plugins.catalog import check_class, load
from skipstep.plugins.errors import BadOption
from skipstep.plugins.plugin import Plugin
from skipstep.plugins.spelling import did_you_mean, suggest

__all__ = ["build", "parse_spec", "schema", "suggest", "to_dict"]

BRACKETS = {"[": "]", "{": "}", "(": ")"}
LONGEST_VALUE = 60


def build(name_or_options: object, options: Mapping[str, Any] | None = None) -> Plugin:
    """Make a plugin from a name and options, from a mapping of both, or check a ready object.

    Args:
        name_or_options: a name such as "easycache", a mapping {"name": ..., "options": {...}} as in
            a recipe, or an options object such as `EasyCache(threshold=0.1)`.
        options: option values by name; empty unless a name is given.

    Raises:
        UnknownPlugin: if no plugin has this name.
        BadOption: if an option is unknown, a value is not allowed, or options come twice.
        PluginError: if the object is not a plugin or its class does not load.
    """
    given = dict(options or {})
    if isinstance(name_or_options, str):
        return construct(load(name_or_options), given)
    if isinstance(name_or_options, type):
        plugin = check_class(name_or_options)
        raise BadOption(
            f"{plugin.__name__} is a class: pass an object, {plugin.__name__}(...), "
            f"or the name {plugin.name!r}"
        )
    if isinstance(name_or_options, Mapping):
        name, inside = split_entry(name_or_options)
        refuse_twice(name, given)
        return construct(load(name), inside)
    refuse_twice(check_class(type(name_or_options)).name, given)
    return cast(Plugin, name_or_options)


def refuse_twice(name: str, options: dict[str, Any]) -> None:
    """Refuse options beside an object or a mapping that has its own."""
    if options:
        raise BadOption(
            f"{name}: options were given twice, in the object and as {', '.join(options)}. "
            "Put them all into the object, or pass the name and all options"
        )


def split_entry(entry: Mapping[Any, Any]) -> tuple[str, dict[str, Any]]:
    """Read {"name": ..., "options": {...}} strictly.

    Raises:
        BadOption: if a key is unknown or a value has the wrong type.
    """
    for key in entry:
        if key not in ("name", "options"):
            hint = did_you_mean(str(key), ["name", "options"])
            raise BadOption(f"a plugin has no key {key!r}{hint} Keys: name, options")
    name, options = entry.get("name"), entry.get("options")
    if not isinstance(name, str):
        raise BadOption(f"a plugin needs a name in text, not {show(name)}: name: easycache")
    if options is not None and not isinstance(options, Mapping):
        raise BadOption(f"{name}: options are names with values, not {show(options)}")
    return name, dict(options or {})


def construct(plugin: type[Any], options: dict[str, Any]) -> Plugin:
    """Make the object, with every complaint in our own words."""
    known = list(fields_of(plugin))
    for option in options:
        if option not in known:
            hint = did_you_mean(str(option), known)
            raise BadOption(
                f"{plugin.name}: unknown option {option!r}{hint} "
                f"Options: {', '.join(known) or 'none'}"
            )
    try:
        return cast(Plugin, plugin(**options))
    except ValidationError as error:
        problems = [explain(plugin, problem) for problem in error.errors(include_url=False)]
    raise BadOption(f"{plugin.name}: " + "; ".join(problems))


def explain(plugin: type[Any], problem: Mapping[str, Any]) -> str:
    """Say one complaint of pydantic's as: value, rule, what the option means."""
    kind, path = problem["type"], ".".join(str(part) for part in problem["loc"])
    if kind in ("value_error", "assertion_error"):
        rule = str(problem["msg"]).partition(", ")[2]
        if not path:
            return rule
    elif kind == "missing":
        return f"option {path!r} is needed and has no default"
    elif kind == "unexpected_keyword_argument":
        outer, _, option = path.rpartition(".")
        return f"{outer} has no option {option!r}"
    elif kind == "union_tag_invalid":
        rule = f"its {problem['ctx']['discriminator']} must be {problem['ctx']['expected_tags']}"
    elif kind == "union_tag_not_found":
        rule = f"it must say its {problem['ctx']['discriminator']}"
    else:
        rule = str(problem["msg"]).replace("Input should", "must").replace("a valid ", "a ")
        rule = rule.replace("a integer", "a whole number").replace("an integer", "a whole number")
    about = meaning(plugin, path)
    said = f"{path}={show(problem['input'])} is not allowed: {rule}"
    return f"{said} ({about})" if about else said


def meaning(plugin: type[Any], option: str) -> str:
    """Describe an option in a few words, or not at all where the path leads inside one."""
    field = fields_of(plugin).get(option)
    if field is None:
        return ""
    parts = [field.description.rstrip(".")] if field.description else []
    if not field.is_required():
        parts.append(f"default {show(field.get_default(call_default_factory=True))}")
    return "; ".join(parts)


def fields_of(plugin: type[Any]) -> dict[str, Any]:
    """Map the options of a plugin class to pydantic's description of them."""
    fields: dict[str, Any] = plugin.__pydantic_fields__
    return fields


def show(value: object) -> str:
    """Write a value as Python would, cut where it gets long."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Read a plugin written on a command line; values are YAML.

    >>> parse_spec("easycache:threshold=0.08,warmup_steps=3")
    ('easycache', {'threshold': 0.08, 'warmup_steps': 3})

    Raises:
        BadOption: if a part is not name=value, a name comes twice, or a value is not YAML.
    """
    name, colon, rest = spec.partition(":")
    name = name.strip()
    if not name or (colon and not rest.strip()):
        raise BadOption(f"{spec!r} is not a plugin: write name or name:option=value,option=value")
    options: dict[str, Any] = {}
    for part in split_outside_brackets(rest) if colon else []:
        option, equals, text = part.partition("=")
        option, text = option.strip(), text.strip()
        if not (option and equals and text):
            raise BadOption(
                f"{name}: {part.strip()!r} is not option=value in {spec!r} (for no value: null)"
            )
        if option in options:
            raise BadOption(f"{name}: option {option!r} is given twice in {spec!r}")
        try:
            options[option] = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError):
            raise BadOption(f"{name}: {option}={show(text)} is not a YAML value") from None
    return name, options


def split_outside_brackets(text: str) -> list[str]:
    """Split at commas that are in no bracket and no quotes."""
    parts, closing, quote, start = [], [], "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in BRACKETS:
            closing.append(BRACKETS[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        elif letter == "," and not closing:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def to_dict(plugin: Plugin) -> dict[str, Any]:
    """Write a plugin as plain data that `build` reads back; options at their default are left out.

    Raises:
        PluginError: if the object is not a plugin.
    """
    check_class(type(plugin))
    values = TypeAdapter(type(plugin)).dump_python(plugin, mode="json")
    changed = {
        option: values[option]
        for option, field in fields_of(type(plugin)).items()
        if field.is_required()
        or getattr(plugin, option) != field.get_default(call_default_factory=True)
    }
    return {"name": plugin.name, "options": changed}


def schema(plugin: type[Any]) -> dict[str, Any]:
    """Describe the options of a plugin class as a JSON schema."""
    return TypeAdapter(check_class(plugin)).json_schema()
