"""Kind "custom": the plugin says itself what it wraps. The door for third parties whose algorithm
fits no other kind.

The plugin class has `attach(site)`, which uses `site.wrap`, `site.on_begin`, `site.on_end` and
`site.on_report`, and may have `why_not(profile)`. All it does through the site is undone on detach.
"""

from typing import Any, cast

from skipstep.plugins.profile import Profile

__all__ = ["EXCLUSIVE", "ORDER", "attach", "why_not"]

ORDER = 70
EXCLUSIVE = False


def why_not(plugin: Any, found: Profile) -> str | None:
    """Ask the plugin, if it has an opinion."""
    ask = getattr(plugin, "why_not", None)
    return cast(str | None, ask(found)) if ask else None


def attach(plugin: Any, site: Any) -> None:
    """Let the plugin attach itself."""
    plugin.attach(site)
