"""Attach, run, detach: the one place where a pipeline is changed, and where every change is undone.

A `Manager` belongs to one pipeline and lives in a weak side table, so nothing is stored on the
pipeline itself: copies, pickles and saved files are clean. A `Site` (plugin_site.py) records all
that one plugin does to the pipeline.
"""

import contextlib
import functools
import inspect
import reprlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from skipstep.plugins import kinds
from skipstep.plugins.errors import Incompatible, PipelineBusy, PluginError
from skipstep.plugins.plugin_site import Site
from skipstep.plugins.profile import Profile, profile
from skipstep.plugins.report import Report
from skipstep.plugins.run import Run, StepTap, in_any_run, running

__all__ = ["Handle", "Manager", "last_report", "manager_for", "manager_of"]


class Handle:
    """A plugin attached to one pipeline."""

    def __init__(self, manager: "Manager", plugin: Any, site: Site) -> None:
        self.plugin = plugin
        self._manager = manager
        self._site = site

    @property
    def is_attached(self) -> bool:
        return self._manager.handles.get(self.plugin.name) is self

    def detach(self) -> None:
        """Take the plugin off; a second call does nothing."""
        if self.is_attached:
            self._manager.disable(self.plugin.name)

    def report(self) -> Report | None:
        """Return what the pipeline's last run did, or None before the first."""
        return self._manager.last_report

    def __repr__(self) -> str:
        state = "attached" if self.is_attached else "detached"
        return f"<{self.plugin!r} {state}>"


class Manager:
    """Everything that is switched on for one pipeline."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = weakref.ref(pipe)
        self.handles: dict[str, Handle] = {}
        self.last_report: Report | None = None
        self.is_paused = False
        self.is_running = False
        self.lock = threading.RLock()
        # Its components may live on in another pipeline.
        weakref.finalize(pipe, Manager._drop, self.handles, type(pipe)).atexit = False

    @staticmethod
    def _drop(handles: dict[str, Handle], cls: type) -> None:
        while handles:
            handles.popitem()[1]._site.undo()
        _unwrap_call(cls)

    @property
    def pipe(self) -> Any:
        return self._pipe()

    def enable(self, plugin: Any, *, replace: bool = False) -> Handle:
        """Attach a plugin or change nothing; the same name again reconfigures in place."""
        self._refuse_while_running("enable")
        found = profile(self.pipe)
        why = why_not(plugin, found)
        if why:
            raise Incompatible(f"{plugin.name}: {why}")
        leaving = self._leaving(plugin, replace)
        site = self._attach(plugin, found)
        for handle in leaving:
            self._take_off(handle)
        self.handles[plugin.name] = Handle(self, plugin, site)
        _wrap_call(type(self.pipe))
        return self.handles[plugin.name]

    def _attach(self, plugin: Any, found: Profile) -> Site:
        site = Site(self, found)
        try:
            kinds.attach(plugin, site)
        except BaseException:
            site.undo()
            raise
        return site

    def _follow(self) -> None:
        """Attach anew what stands on a denoiser that the user has replaced or compiled since."""
        for handle in self.handles.values():
            site = handle._site
            if all(denoiser.is_current(self.pipe) for denoiser in site.profile.denoisers):
                continue
            found = profile(self.pipe)
            why = why_not(handle.plugin, found)
            if why:
                raise Incompatible(f"{handle.plugin.name}: {why}")
            handle._site = self._attach(handle.plugin, found)
            site.undo()

    def _leaving(self, plugin: Any, replace: bool) -> list[Handle]:
        same = [h for h in self.handles.values() if h.plugin.name == plugin.name]
        if same or not kinds.is_exclusive(plugin.kind):
            return same
        rivals = [h for h in self.handles.values() if h.plugin.kind == plugin.kind]
        if rivals and not replace:
            active = rivals[0].plugin.name
            raise Incompatible(
                f"{plugin.name}: the {plugin.kind} plugin {active!r} is already active and two of "
                "one kind do not "
                f"combine: disable_plugin({active!r}) first, or enable_plugin({plugin.name!r}, "
                "replace=True)"
            )
        return rivals

    def disable(self, name: str) -> None:
        """Take one plugin off."""
        self._refuse_while_running("disable")
        if name not in self.handles:
            active = ", ".join(self.handles) or "none"
            raise PluginError(f"plugin {name!r} is not active on this pipeline (active: {active})")
        self._take_off(self.handles[name])

    def _take_off(self, handle: Handle) -> None:
        del self.handles[handle.plugin.name]
        try:
            handle._site.undo()
        finally:
            _unwrap_call(type(self.pipe))

    def disable_all(self) -> None:
        """Take every plugin off, the last one first."""
        for name in reversed(list(self.handles)):
            self.disable(name)

    def _refuse_while_running(self, verb: str) -> None:
        if self.is_running:
            raise PipelineBusy(
                f"cannot {verb} a plugin while {type(self.pipe).__name__} is running: do it before "
                "or after the call"
            )

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the pipeline's own `__call__` inside a Run."""
        if self.is_paused or not self.handles:
            with running(None):
                return function(self.pipe, *args, **kwargs)
        if not self.lock.acquire(blocking=False):
            raise PipelineBusy(
                f"this {type(self.pipe).__name__} is already running in another thread: its "
                "scheduler and caches "
                "serve one call at a time; wait for it, or give each thread its own pipeline "
                "(from_pipe shares weights)"
            )
        outer, self.is_running = self.is_running, True
        try:
            return self._call(function, args, kwargs)
        finally:
            self.is_running = outer
            self.lock.release()

    def _call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        pipe = self.pipe
        self._follow()
        handles = sorted(self.handles.values(), key=lambda h: kinds.order(h.plugin.kind))
        sites = [handle._site for handle in handles]
        kwargs = _completed(function, pipe, args, kwargs, sites)
        run = Run(self, pipe, _bound(function, pipe, args, kwargs))
        report = Report(type(pipe).__name__, [repr_plugin(h.plugin) for h in handles])
        started = time.perf_counter()
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(running(run))
                for site in sites:
                    stack.callback(site.end, run)
                    site.begin(run)
                for scheduler in _schedulers(pipe):
                    stack.enter_context(StepTap(scheduler, run).installed())
                try:
                    return function(pipe, *args, **kwargs)
                finally:
                    report.steps, report.seconds = run.finished, time.perf_counter() - started
                    for site in sites:
                        site.report(run, report)
        except BaseException as error:
            report.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            run.state.clear()
            self.last_report = report


_MANAGERS: "weakref.WeakKeyDictionary[Any, Manager]" = weakref.WeakKeyDictionary()
_WRAPPED: dict[type, tuple[Callable[..., Any], Callable[..., Any]]] = {}
"""Class -> the `__call__` we gave it, and the one it had."""


def manager_of(pipe: Any) -> Manager | None:
    """Return the pipeline's manager, or None if it never had a plugin."""
    return _MANAGERS.get(pipe)


def manager_for(pipe: Any) -> Manager:
    """Return the pipeline's manager, made now if it has none."""
    if pipe not in _MANAGERS:
        _MANAGERS[pipe] = Manager(pipe)
    return _MANAGERS[pipe]


def last_report(pipe: Any) -> Report | None:
    """Return the report of the pipeline's last run with plugins, or None."""
    manager = manager_of(pipe)
    return manager.last_report if manager else None


def why_not(plugin: Any, found: Profile) -> str | None:
    """Return why a plugin cannot serve a pipeline, in words, or None."""
    at_all = None if plugin.kind == "views" else found.why_not_at_all()
    return at_all or kinds.why_not(plugin, found)


@contextlib.contextmanager
def paused(pipe: Any) -> Iterator[None]:
    """Let the pipeline run without its plugins for a while; they stay attached."""
    manager = manager_of(pipe)
    if manager is None:
        yield
        return
    before, manager.is_paused = manager.is_paused, True
    try:
        yield
    finally:
        manager.is_paused = before


def repr_plugin(plugin: Any) -> str:
    """Return `name(option=value, ...)` with the options that differ from their defaults."""
    from skipstep.plugins.options import to_dict

    options = ", ".join(
        f"{key}={reprlib.repr(value)}" for key, value in to_dict(plugin).get("options", {}).items()
    )
    return f"{plugin.name}({options})" if options else str(plugin.name)


def _schedulers(pipe: Any) -> list[Any]:
    """Return the components that step, each once."""
    steps = {
        id(component): component
        for component in pipe.components.values()
        if hasattr(component, "set_timesteps") and hasattr(component, "step")
    }
    return list(steps.values())


def _completed(
    function: Callable[..., Any],
    pipe: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sites: list[Site],
) -> dict[str, Any]:
    """Return keyword arguments, with the plugins' defaults for what the call leaves out."""
    wanted = {name: value for site in sites for name, value in site.defaults.items()}
    if not wanted:
        return kwargs
    parameters = list(inspect.signature(function).parameters.values())
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    given = {p.name for p in parameters[: len(args) + 1]} | set(kwargs)
    known = {p.name for p in parameters}
    return {
        name: value
        for name, value in wanted.items()
        if name not in given and (takes_all or name in known)
    } | kwargs


def _bound(
    function: Callable[..., Any], pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    try:
        bound = inspect.signature(function).bind(pipe, *args, **kwargs)
    except TypeError:
        return dict(kwargs)
    bound.apply_defaults()
    named = dict(bound.arguments)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name, {}))
    return named


def _wrap_call(cls: type) -> None:
    """Send the calls of managed pipelines of this class through their manager; all others pass
    straight on.

    Python looks `__call__` up on the class, so it is the class that is wrapped: once, inert without
    a manager, and only while one of its pipelines has a plugin. A subclass that calls
    `super().__call__` has opened its run already, so the inner call passes straight on too.
    """
    original = cls.__call__
    if _is_ours(original):
        return

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        outermost = type(self).__call__
        if outermost is not __call__ and _is_ours(outermost):
            return original(self, *args, **kwargs)
        manager = _MANAGERS.get(self)
        if manager is not None:
            return manager.call(original, *args, **kwargs)
        if in_any_run():
            with running(None):
                return original(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    _WRAPPED[cls] = __call__, original
    type.__setattr__(cls, "__call__", __call__)


def _is_ours(function: Callable[..., Any]) -> bool:
    return any(function is ours for ours, _ in _WRAPPED.values())


def _unwrap_call(cls: type) -> None:
    """Give a class and its bases back their own `__call__` when the last of their plugins is gone.

    What someone else has wrapped since stays, and passes through us.
    """
    in_use = [type(pipe) for pipe, manager in _MANAGERS.items() if manager.handles]
    for base in cls.__mro__:
        ours, original = _WRAPPED.get(base, (None, None))
        if ours is None or any(issubclass(used, base) for used in in_use):
            continue
        if vars(base).get("__call__") is ours:
            del _WRAPPED[base]
            type.__delattr__(base, "__call__")
            if base.__call__ is not original:
                type.__setattr__(base, "__call__", original)
