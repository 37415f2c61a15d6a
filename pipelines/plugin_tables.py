"""Tables of plugins and their options for a terminal, made from the catalogue and the schema."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from skipstep.plugins import catalog, options
from skipstep.plugins.errors import PluginError

__all__ = ["option_table", "plugin_table"]

BOUNDS = (
    ("exclusiveMinimum", "> {}"),
    ("minimum", ">= {}"),
    ("exclusiveMaximum", "< {}"),
    ("maximum", "<= {}"),
)


def plugin_table() -> Table:
    """Return one row a plugin: name, kind, what it does, paper; a broken one says why."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "kind", "what it does", "paper"):
        table.add_column(heading, overflow="fold")
    for name in catalog.names():
        try:
            plugin = catalog.load(name)
        except PluginError as error:
            table.add_row(name, "?", escape(str(error)), "")
        else:
            table.add_row(name, plugin.kind, escape(plugin.summary), escape(plugin.paper))
    return table


def option_table(name: str) -> Table:
    """Return one row an option of a plugin: name, default, what is allowed, meaning.

    Raises UnknownPlugin with a suggestion when there is no such plugin.
    """
    plugin = catalog.load(name)
    schema = options.schema(plugin)
    title = f"{plugin.name} ({plugin.kind}): {plugin.summary}"
    caption = plugin.paper or None
    table = Table(
        title=escape(title),
        caption=caption,
        box=None,
        pad_edge=False,
        title_style="",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("option", "default", "allowed", "meaning"):
        table.add_column(heading, overflow="fold")
    for option, about in schema.get("properties", {}).items():
        table.add_row(
            option,
            escape(default_of(about)),
            escape(allowed(about, schema.get("$defs", {}))),
            escape(about.get("description", "")),
        )
    return table


def default_of(about: dict[str, Any]) -> str:
    """Return the default of an option as it is written in a recipe."""
    if "default" not in about:
        return "(needed)"
    value = about["default"]
    return (
        "null"
        if value is None
        else str(value).lower()
        if value is True or value is False
        else str(value)
    )


def allowed(about: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return what values a JSON schema allows, in a few words.

    >>> allowed({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}, {})
    'integer >= 1 or null'
    >>> allowed({"type": "integer", "minimum": 1, "maximum": 9}, {})
    'integer 1 to 9'
    """
    if "$ref" in about:
        return allowed(definitions.get(about["$ref"].rpartition("/")[2], {}), definitions)
    for several in ("anyOf", "oneOf"):
        if several in about:
            return " or ".join(allowed(each, definitions) for each in about[several])
    if "enum" in about:
        return ", ".join(map(str, about["enum"]))
    if "properties" in about:
        tag = about["properties"].get("type", {})
        return str(tag.get("const") or tag.get("default") or about.get("title", "options"))
    words = [str(about.get("const", about.get("type", "any")))]
    if "minimum" in about and "maximum" in about:
        return f"{words[0]} {about['minimum']} to {about['maximum']}"
    words += [form.format(about[bound]) for bound, form in BOUNDS if bound in about]
    return " ".join(words)
