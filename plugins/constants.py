"""Kind "constants": hand out again what a module computed from inputs that have not changed.

It stands inside the caches (a skipped block asks for nothing) and beside them: any number of kinds
may be active with it, because it changes no value.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from skipstep.caching.textkv import Identity, TextKV, identity, reusable_modules
from skipstep.caching.tree import tensors_in
from skipstep.plugins.profile import Denoiser, Profile, parameters_of
from skipstep.plugins.report import Report
from skipstep.plugins.run import Run

__all__ = ["EXCLUSIVE", "ORDER", "attach", "why_not"]

ORDER = 25
EXCLUSIVE = True
INSIDE = 40


@dataclass
class _Entry:
    """One remembered call; the inputs are held so that their memory stays theirs."""

    inputs: tuple[Tensor, ...]
    output: Tensor
    version: int


@dataclass
class _Constants:
    """What one run knows on one denoiser."""

    storages: dict[int, Tensor] = field(default_factory=dict)
    entries: dict[int, dict[Identity, _Entry]] = field(default_factory=dict)
    reused: int = 0
    calls: int = 0


def why_not(plugin: TextKV, found: Profile) -> str | None:
    """Return why no denoiser of this pipeline has constants, or None."""
    reasons = [_why_not_one(plugin, denoiser) for denoiser in found.denoisers]
    return next(iter(reasons), None) if all(reasons) else None


def _why_not_one(plugin: TextKV, denoiser: Denoiser) -> str | None:
    if denoiser.is_compiled or denoiser.has_compiled_blocks:
        return (
            f"{denoiser.name} ({denoiser.class_name}) is compiled, which inlines the layers whose "
            "results would be reused: do not compile it, or leave this plugin out"
        )
    return plugin.why_not(denoiser)


def attach(plugin: TextKV, site: Any) -> None:
    """Stand in for every module that may see nothing but constants."""
    for denoiser in site.profile.denoisers:
        if _why_not_one(plugin, denoiser) is None:
            _Reuse(plugin, denoiser, site)


class _Reuse:
    """The plugin on one denoiser; what a run remembers stays on the Run."""

    def __init__(self, plugin: TextKV, denoiser: Denoiser, site: Any) -> None:
        self.plugin = plugin
        self.denoiser = denoiser
        self.site = site
        self.parameters = parameters_of(denoiser.inner)
        site.wrap(denoiser.module, self.root, ORDER)
        modules = {id(module): module for module in reusable_modules(denoiser)}
        for module in modules.values():
            site.wrap(module, functools.partial(self.inside, module), INSIDE)
        site.on_report(self.report)

    def root(self, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Note what the pipeline hands to the denoiser."""
        run = self.site.run()
        if run is None:
            return call_next(*args, **kwargs)
        known = run.state.setdefault((self, "constants"), _Constants())
        batches = [x for x in self._in_order(args, kwargs) if x.ndim > 1]
        noisy = {x.untyped_storage().data_ptr() for x in batches[:1]}
        given = {x.untyped_storage().data_ptr(): x for x in batches[1:]}
        given = {address: x for address, x in given.items() if address not in noisy}
        computed = {
            entry.output.untyped_storage().data_ptr(): entry.output
            for entries in known.entries.values()
            for entry in entries.values()
        }
        known.storages = given | computed
        return call_next(*args, **kwargs)

    def _in_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the tensors of a call by parameter: the noisy picture is the first batch."""
        named = dict(zip(self.parameters, args, strict=False)) | kwargs
        in_order = [named[name] for name in self.parameters if name in named]
        return tensors_in([*in_order, kwargs])

    def inside(
        self, module: nn.Module, call_next: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Return what the module returned for these inputs, or let it run."""
        run = self.site.run()
        known: _Constants | None = run.state.get((self, "constants")) if run is not None else None
        inputs = tuple(tensors_in([args, kwargs]))
        if (
            known is None
            or module.training
            or not inputs
            or any(x.untyped_storage().data_ptr() not in known.storages for x in inputs)
        ):
            return call_next(*args, **kwargs)
        parts = [identity(x) for x in inputs]
        key = (*parts, repr([v for v in (*args, *kwargs.values()) if not isinstance(v, Tensor)]))
        entries = known.entries.setdefault(id(module), {})
        known.calls += 1
        entry = entries.get(key)
        if entry is not None and entry.output._version == entry.version:
            known.reused += 1
            return entry.output
        output = call_next(*args, **kwargs)
        entries.pop(key, None)
        if None not in parts and isinstance(output, Tensor) and not output.is_inference():
            entries[key] = _Entry(inputs, output, output._version)
            known.storages[output.untyped_storage().data_ptr()] = output
            while len(entries) > self.plugin.entries:
                entries.pop(next(iter(entries)))
        return output

    def report(self, run: Run, report: Report) -> None:
        """Say how often something was handed out again, and count what is held."""
        known: _Constants | None = run.state.get((self, "constants"))
        if known is None:
            return
        outputs = [e.output for entries in known.entries.values() for e in entries.values()]
        held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in outputs}
        report.bytes_held += sum(held.values())
        report.notes.append(
            f"textkv reused {known.reused} of {known.calls} projections of constant inputs on "
            f"{self.denoiser.name}."
        )
