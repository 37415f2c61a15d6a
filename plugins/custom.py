"""Kind "custom": the plugin says itself what it wraps. The door for third parties whose algorithm
fits no other kind.

The plugin class has `attach(site)`, which uses `site.wrap`, `site.on_begin`, `site.on_end` and
`site.on_report`, and may have `why_not(profile)`. All it does through the site is undone on detach.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

from skipstep.plugins.profile import Profile, parameters_of

__all__ = ["EXCLUSIVE", "ORDER", "attach", "why_not"]

ORDER = 70
EXCLUSIVE = False
OUTERMOST = 0


def why_not(plugin: Any, found: Profile) -> str | None:
    """Ask the plugin, if it has an opinion."""
    ask = getattr(plugin, "why_not", None)
    return cast(str | None, ask(found)) if ask else None


def attach(plugin: Any, site: Any) -> None:
    """Count the denoisers' calls, so that `site.run().step` is right, and let the plugin attach."""
    for denoiser in site.profile.denoisers:
        note = functools.partial(_note, site, denoiser.module, parameters_of(denoiser.inner))
        site.wrap(denoiser.module, note, OUTERMOST)
    plugin.attach(site)


def _note(
    site: Any,
    denoiser: object,
    parameters: tuple[str, ...],
    call_next: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    run = site.run()
    if run is None:
        return call_next(*args, **kwargs)
    with run.inside(denoiser, dict(zip(parameters, args, strict=False)) | kwargs):
        return call_next(*args, **kwargs)
