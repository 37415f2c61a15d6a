"""The kinds of plugin: one file each says how the kind attaches, where it stands, and whether it
stands alone.
"""

import importlib
from types import ModuleType
from typing import Any, cast

from skipstep.plugins.errors import PluginError
from skipstep.plugins.profile import Profile

__all__ = ["attach", "is_exclusive", "order", "why_not"]

KINDS = {
    "guidance": "skipstep.plugins.guidance",
    "sampler": "skipstep.plugins.sampler",
    "cache": "skipstep.plugins.cache",
    "attention": "skipstep.plugins.attention.attach",
    "constants": "skipstep.plugins.constants",
    "tokens": "skipstep.plugins.tokens.attach",
    "views": "skipstep.plugins.views.attach",
    "custom": "skipstep.plugins.custom",
}
"""Kind -> module with ORDER (small is outermost), EXCLUSIVE, why_not(plugin, profile) and
attach(plugin, site).
"""


def attach(plugin: Any, site: Any) -> None:
    """Attach a plugin the way its kind does."""
    _module(plugin.kind).attach(plugin, site)


def why_not(plugin: Any, found: Profile) -> str | None:
    """Return why the plugin's kind cannot serve this pipeline, or None."""
    return cast(str | None, _module(plugin.kind).why_not(plugin, found))


def is_exclusive(kind: str) -> bool:
    """Say whether only one plugin of the kind may be active."""
    return bool(_module(kind).EXCLUSIVE)


def order(kind: str) -> int:
    """Return the kind's place; small is outermost and begins first."""
    return int(_module(kind).ORDER)


def _module(kind: str) -> ModuleType:
    if kind not in KINDS:
        raise PluginError(
            f"unknown plugin kind {kind!r}: kind is one of {', '.join(KINDS)}; set the class "
            "attribute"
        )
    return importlib.import_module(KINDS[kind])
