"""The verbs every pipeline gets: thin doors to the lifecycle, which is imported when the first one
is used.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipstep.plugins.lifecycle import Handle
    from skipstep.plugins.listing import Listing
    from skipstep.plugins.report import Report

__all__ = [
    "VERBS",
    "disable_plugin",
    "disable_plugins",
    "enable_plugin",
    "install",
    "list_plugins",
    "load_plugins",
    "plugin_report",
    "plugins",
    "plugins_off",
    "save_plugins",
]


def enable_plugin(self: Any, plugin: Any, *, replace: bool = False, **options: Any) -> "Handle":
    """Switch a plugin on, by name with options or as an options object; again reconfigures it in
    place.

    Raises:
        UnknownPlugin: no plugin has this name. BadOption: an option is unknown or out of range.
        Incompatible: it cannot serve this pipeline, or another of its kind is active (see
        `replace`).
    """
    from skipstep.plugins.lifecycle import manager_for
    from skipstep.plugins.options import build

    built = build(plugin, options)
    manager = manager_for(self)
    return manager.enable(built, replace=replace)


def disable_plugin(self: Any, name: str) -> None:
    """Switch one plugin off; the pipeline is then as it was before it was enabled, to the bit."""
    from skipstep.plugins.errors import PluginError
    from skipstep.plugins.lifecycle import manager_of

    manager = manager_of(self)
    if manager is None:
        raise PluginError(f"plugin {name!r} is not active on this pipeline (active: none)")
    manager.disable(name)


def disable_plugins(self: Any) -> None:
    """Switch every plugin off."""
    from skipstep.plugins.lifecycle import manager_of

    manager = manager_of(self)
    if manager is not None:
        manager.disable_all()


@contextlib.contextmanager
def plugins(self: Any, *wanted: Any) -> Iterator[Any]:
    """Switch plugins on inside a `with` block: names, options objects or {"name": ..., "options":
    {...}}.

    What was active before is active again afterwards, also after an exception.
    """
    from skipstep.plugins.lifecycle import manager_for
    from skipstep.plugins.options import build

    built = [
        build(each["name"], dict(each.get("options", {})))
        if isinstance(each, Mapping)
        else build(each, {})
        for each in wanted
    ]
    manager = manager_for(self)
    before = [handle.plugin for handle in manager.handles.values()]
    try:
        for plugin in built:
            manager.enable(plugin, replace=True)
        yield self
    finally:
        manager.disable_all()
        for plugin in before:
            manager.enable(plugin)


@contextlib.contextmanager
def plugins_off(self: Any) -> Iterator[Any]:
    """Run the plain pipeline inside a `with` block, for A/B on the same seed; the plugins stay
    attached.
    """
    from skipstep.plugins.lifecycle import paused

    with paused(self):
        yield self


def list_plugins(self: Any) -> "Listing":
    """List every known plugin with its kind, whether it works on this pipeline, and why not."""
    from skipstep.plugins.listing import list_for

    return list_for(self)


def plugin_report(self: Any) -> "Report | None":
    """Return what the last run with plugins did, or None before the first."""
    from skipstep.plugins.lifecycle import last_report

    return last_report(self)


def save_plugins(self: Any, path: str | Path) -> None:
    """Write the active plugins and their options to a YAML recipe."""
    from skipstep.plugins import recipe
    from skipstep.plugins.lifecycle import manager_of

    manager = manager_of(self)
    active = [handle.plugin for handle in manager.handles.values()] if manager else []
    recipe.save(path, active, for_pipeline=type(self).__name__)


def load_plugins(self: Any, path: str | Path) -> None:
    """Switch on what a recipe names, or nothing at all if any of it cannot be."""
    from skipstep.plugins import recipe
    from skipstep.plugins.lifecycle import manager_for

    wanted = recipe.load(path)
    manager = manager_for(self)
    before = [handle.plugin for handle in manager.handles.values()]
    try:
        for plugin in wanted:
            manager.enable(plugin, replace=True)
    except BaseException:
        manager.disable_all()
        for plugin in before:
            manager.enable(plugin)
        raise


VERBS = {
    verb.__name__: verb
    for verb in (
        enable_plugin,
        disable_plugin,
        disable_plugins,
        plugins,
        plugins_off,
        list_plugins,
        plugin_report,
        save_plugins,
        load_plugins,
    )
}


def install(**more: Callable[..., Any]) -> None:
    """Add the verbs, and `more` of them, to diffusers' two pipeline bases; again changes nothing.

    A layer above this one has verbs to add too (`compare`).
    """
    from diffusers import DiffusionPipeline, ModularPipeline

    for base in (DiffusionPipeline, ModularPipeline):
        for name, verb in (VERBS | more).items():
            if name not in vars(base):
                setattr(base, name, verb)
