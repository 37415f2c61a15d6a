"""What a plugin is, how it is found and checked, and how each kind attaches to a pipeline.

The names below are imported when they are first used, so that `import skipstep` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipstep.plugins.catalog import names
    from skipstep.plugins.errors import (
        BadOption,
        Incompatible,
        NotRestored,
        PipelineBusy,
        PluginError,
        UnknownPlugin,
    )
    from skipstep.plugins.options import build, parse_spec, schema, to_dict
    from skipstep.plugins.plugin import Plugin

__all__ = [
    "BadOption",
    "Incompatible",
    "NotRestored",
    "PipelineBusy",
    "Plugin",
    "PluginError",
    "UnknownPlugin",
    "build",
    "names",
    "parse_spec",
    "schema",
    "to_dict",
]

HOMES = {
    "catalog": ("names",),
    "errors": (
        "BadOption",
        "Incompatible",
        "NotRestored",
        "PipelineBusy",
        "PluginError",
        "UnknownPlugin",
    ),
    "plugin": ("Plugin",),
    "options": ("build", "parse_spec", "schema", "to_dict"),
}


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name, once."""
    for home, defined in HOMES.items():
        if name in defined:
            value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
