"""Kind "guidance": what a denoiser is asked a step, and how its answers become one.

A guidance stands outside all other plugins, so each of its questions is a call of its own to them:
a cache keeps one state a question, as it does for the two halves of classifier-free guidance.
"""

from typing import Any, cast

from skipstep.plugins.profile import Profile

__all__ = ["EXCLUSIVE", "ORDER", "attach", "why_not"]

ORDER = 5
EXCLUSIVE = True


def why_not(plugin: Any, found: Profile) -> str | None:
    """Ask the plugin whether it suits this pipeline."""
    return cast(str | None, plugin.why_not(found))


def attach(plugin: Any, site: Any) -> None:
    """Let the plugin wrap the denoisers, outside of everything."""
    plugin.attach(site)
