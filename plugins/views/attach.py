"""Kind "views": how a reconstructor fuses the tokens of its views; it stands around its forward."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from skipstep.plugins.profile import Profile
from skipstep.plugins.report import Report
from skipstep.plugins.run import Run
from skipstep.plugins.views.base import ViewPlugin

__all__ = ["EXCLUSIVE", "ORDER", "attach", "why_not"]

ORDER = 29
EXCLUSIVE = True


def why_not(plugin: ViewPlugin, found: Profile) -> str | None:
    """Return why no component of this pipeline fuses views, or None."""
    if any(fuses_views(module) for _, module in found.reconstructors):
        return None
    if found.reconstructors:
        name, module = found.reconstructors[0]
        return f"{name} ({type(module).__name__}) takes a single picture: it has no views to fuse"
    return (
        f"{found.pipeline} makes pictures, and fusing views needs a reconstructor of posed "
        "pictures: GaussianReconstructionPipeline(load_reconstructor())"
    )


def fuses_views(module: nn.Module) -> bool:
    """Say whether a reconstructor works in the three parts that `views.base` names."""
    return all(callable(getattr(module, name, None)) for name in ("encode", "fuse", "decode"))


def attach(plugin: ViewPlugin, site: Any) -> None:
    """Stand in for the forward of every reconstructor that fuses views."""
    for _, module in site.profile.reconstructors:
        if fuses_views(module):
            site.wrap(module, functools.partial(reconstruct, plugin, site, module), ORDER)
    site.on_report(functools.partial(say, plugin))


def reconstruct(
    plugin: ViewPlugin,
    site: Any,
    module: nn.Module,
    call_next: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Let the plugin reconstruct inside a run; outside of one the model is as it was."""
    run = site.run()
    if run is None:
        return call_next(*args, **kwargs)
    result, note = plugin.reconstruct(module, *args, **kwargs)
    run.state[plugin, "note"] = note
    return result


def say(plugin: ViewPlugin, run: Run, report: Report) -> None:
    """Add to the report what was done."""
    note = run.state.get((plugin, "note"))
    if note is not None:
        report.notes.append(note)
