"""Kind "cache": how a gate, a forecaster and a span meet a pipeline's denoisers.

What happens in one call of a denoiser is in `cache_call`; here is what stays from call to call.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor

from skipstep.caching.base import CachePlugin, front_of
from skipstep.caching.passes import Contract, Memory, StackContract
from skipstep.caching.spans.guidance import Guidance, Pairs
from skipstep.caching.spans.modules import Modules
from skipstep.caching.spans.output import WholeCall
from skipstep.caching.storage import Budget, parse_bytes
from skipstep.caching.tree import rows_of, tensors_in
from skipstep.plugins.cache_call import DenoiserCall
from skipstep.plugins.errors import Incompatible
from skipstep.plugins.fingerprint import MODEL_ENTRIES, mismatches, of_the_call
from skipstep.plugins.flops import Meter, known_counts
from skipstep.plugins.noise import adds_noise
from skipstep.plugins.profile import Denoiser, Profile, parameters_of
from skipstep.plugins.report import Call, Report
from skipstep.plugins.run import Run

__all__ = ["EXCLUSIVE", "ORDER", "attach", "why_not"]

ORDER = 20
EXCLUSIVE = True
INSIDE = 30


def why_not(plugin: CachePlugin, found: Profile) -> str | None:
    """Return why no denoiser of this pipeline can be cached with these options, or None."""
    own = plugin.why_not(found)
    if own:
        return own
    reasons = {denoiser.name: _why_not_one(plugin, denoiser) for denoiser in found.denoisers}
    return next(iter(reasons.values()), None) if all(reasons.values()) else None


def _why_not_one(plugin: CachePlugin, denoiser: Denoiser) -> str | None:
    parts = plugin.parts()
    name = f"{denoiser.name} ({denoiser.class_name})"
    if denoiser.native_cache:
        return (
            f"diffusers' own cache is enabled on {name}: "
            f"call pipe.{denoiser.name}.disable_cache() first"
        )
    if denoiser.is_parallel and parts.gate.looks_at != "step":
        return (
            f"{name} runs in context parallel and gate {parts.gate.type!r} would decide on each "
            "rank alone, "
            "which deadlocks when ranks disagree: use a gate that looks at the step ('interval', "
            "'schedule')"
        )
    if denoiser.is_compiled and not isinstance(parts.span, WholeCall):
        return (
            f"{name} is compiled as a whole, which inlines the blocks this cache would skip: "
            "compile with "
            f"pipe.{denoiser.name}.compile_repeated_blocks(fullgraph=True) instead, or cache the "
            "output "
            "(enable_plugin('cache', span='output'))"
        )
    if denoiser.has_compiled_blocks and parts.gate.looks_at == "modulated":
        return (
            f"{name} has compiled blocks, which inline the attention that gate "
            f"{parts.gate.type!r} looks at: use 'fbcache' or 'easycache', or do not compile"
        )
    if denoiser.has_compiled_blocks and isinstance(parts.span, Modules):
        return (
            f"{name} has compiled blocks, which inline the modules this cache would skip: use a "
            "cache of whole blocks (enable_plugin('cache', gate='interval', span='residual')) or "
            "do not compile"
        )
    return parts.span.why_not(denoiser, parts.gate)


def attach(plugin: CachePlugin, site: Any) -> None:
    """Put the cache around every denoiser it can serve; the report says why not the others."""
    if plugin.refuses_others():
        site.on_begin(functools.partial(_refuse_others, plugin))
    for denoiser in site.profile.denoisers:
        reason = _why_not_one(plugin, denoiser)
        if reason is None:
            DenoiserCache(plugin, denoiser, site)
        else:
            note = f"{denoiser.name} is not cached: {reason}"
            site.on_report(lambda run, report, note=note: report.notes.append(note))


def _refuse_others(plugin: CachePlugin, run: Run) -> None:
    """Raise Incompatible before a run that a calibrated file was not made for.

    The number of steps is not known yet, and is the gate's to refuse.
    """
    made_for = {k: v for k, v in (plugin.made_for() or {}).items() if k in MODEL_ENTRIES}
    unlike = mismatches(made_for, run.pipe)
    if unlike:
        raise Incompatible(
            f"{plugin.name}: the schedule was made for something else: {'; '.join(unlike)}. Plan "
            "one for this pipeline (skipstep.plan_cache), or set the gate's on_mismatch='warn'"
        )


class DenoiserCache:
    """The cache on one denoiser: what was learned about it stays here, what a run remembers stays
    on the Run.
    """

    def __init__(self, plugin: CachePlugin, denoiser: Denoiser, site: Any) -> None:
        self.plugin = plugin
        self.parts = plugin.parts()
        self.storage = plugin.storage()
        self.denoiser = denoiser
        self.site = site
        self.parameters = parameters_of(denoiser.inner)
        stacks = [StackContract(type(s[0]).__name__, parameters_of(s[0])) for s in denoiser.stacks]
        self.contract = Contract(stacks=stacks)
        self.full_work = self.parts.span.full_work(denoiser)
        places = self.parts.span.places(denoiser, self.parts.gate)
        gate = self.parts.gate
        counted = repr(self.parts.span), gate.looks_at, front_of(gate), denoiser.module_count
        self.meter = Meter(
            is_on=not (denoiser.is_compiled or denoiser.has_compiled_blocks),
            known=known_counts(denoiser.inner, counted),
        )
        site.wrap(denoiser.module, self.root, ORDER)
        for module, place in places:
            site.wrap(module, functools.partial(self.inside, place), INSIDE)
        site.on_report(self.report)

    def inside(self, place: Any, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Serve the call of a wrapped module inside the denoiser."""
        run = self.site.run()
        pass_ = run.state.get((self, "pass")) if run is not None else None
        if pass_ is None or (self.contract.broken and pass_.mode != "skip"):
            return call_next(*args, **kwargs)
        visit = self.parts.span.visit
        if not self.meter.is_counting:
            return visit(place, pass_, call_next, args, kwargs)
        return self.meter.unit(place, visit, place, pass_, call_next, args, kwargs)

    def root(self, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Serve a call of the denoiser."""
        run = self.site.run()
        main = None if run is None else self._main_input(args, kwargs)
        if run is None or main is None:
            return call_next(*args, **kwargs)
        started = time.perf_counter()
        call = DenoiserCall(self, run, main, call_next, args, kwargs)
        output = call.serve()
        run.state.setdefault((self, "calls"), []).append(call.record(time.perf_counter() - started))
        return output

    def _main_input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the denoiser's first parameter that is a batch: the noisy picture."""
        named = dict(zip(self.parameters, args, strict=False)) | kwargs
        batches = (
            value
            for value in (named.get(name) for name in self.parameters)
            if isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 1)
        )
        return next(batches, None)

    def memory(
        self, run: Run, branch: tuple[int, int], main: Any, shapes: Hashable
    ) -> tuple[Memory, bool]:
        """Return the memory of this branch, given with the visit to its time, and whether it
        replaces one for other shapes.
        """
        key = (self, "memory", branch)
        found = run.state.get(key)
        if found is not None and found[0] == shapes:
            return found[1], False
        rows = rows_of(main)
        shape = () if isinstance(main, list) else tuple(main.shape[1:])
        forecaster = self.parts.forecaster.for_run(run.count, shape)
        budget = self.budget(run)
        if found is not None:
            budget.dismiss(found[1])
        gate_state = self.parts.gate.init(rows)
        memory = Memory(rows, forecaster, gate_state, self.contract.clone, self.storage, budget)
        run.state[key] = (shapes, memory)
        return memory, found is not None

    def budget(self, run: Run) -> Budget:
        """Return the bytes that all branches share in this run."""
        cap = self.plugin.cache_memory
        found: Budget = run.state.setdefault(
            (self, "budget"), Budget(None if cap is None else parse_bytes(cap))
        )
        return found

    def pairs(self, run: Run, shape: Hashable) -> Pairs | None:
        """Return what is known of the guidance of a batch of this shape, where the span asks."""
        if not isinstance(self.parts.span, Guidance):
            return None
        key = (self, "pairs", shape)
        if key not in run.state:
            run.state[key] = Pairs(self.parts.forecaster, self.storage, self.budget(run))
        found: Pairs = run.state[key]
        return found

    def report(self, run: Run, report: Report) -> None:
        """Add this denoiser's calls to the run's report."""
        calls: list[Call] = run.state.get((self, "calls"), [])
        report.calls += calls
        done = [call.flops_done for call in report.calls if call.flops_done is not None]
        full = [call.flops_full for call in report.calls if call.flops_full is not None]
        is_counted = bool(full) and len(full) == len(report.calls)
        report.flops_done, report.flops_full = (
            (sum(done), sum(full)) if is_counted else (None, None)
        )
        report.bytes_held += _held_bytes(self, run)
        report.notes += [note for note in self.contract.notes if note not in report.notes]
        if adds_noise(run.pipe):
            report.notes.append(
                f"{type(run.pipe.scheduler).__name__} adds noise at every step, which no forecast "
                "knows: expect less fidelity at the same speed than with a scheduler that adds none"
            )
        wanted = self.parts.forecaster.anchors
        anchors = self.budget(run).fits(wanted)
        if anchors < wanted:
            report.notes.append(_says_little_fits(self, anchors, wanted, self.budget(run)))
        made_for = self.plugin.made_for()
        if made_for is not None:
            unlike = mismatches(made_for, run.pipe, steps=run.count, **of_the_call(run.arguments))
            report.notes += [f"{self.plugin.name}: {each}" for each in unlike]
        if any(field.name == "threshold" for field in dataclasses.fields(self.plugin)):
            report.threshold_option = "threshold"
        self._warn(calls, report)

    def _warn(self, calls: Sequence[Call], report: Report) -> None:
        reasons = {choice.why for call in calls for choice in call.choices}
        if "not finite" in reasons:
            report.warnings.append(
                f"{self.denoiser.name} produced values that are not finite; those steps were "
                "computed, not skipped."
            )
        if "aliased" in reasons:
            report.warnings.append(
                f"{self.denoiser.name} changes tensors in place that the cache held; it now keeps "
                "copies."
            )
        full = [call.seconds for call in calls[1:] if call.computed == len(call.choices)]
        if len(full) >= 2 and any(call.computed == 0 for call in calls):
            typical = sorted(full)[len(full) // 2]
            if sum(call.seconds for call in calls[1:]) > typical * len(calls[1:]) * 1.02:
                report.warnings.append(
                    f"Slower than uncached on {self.denoiser.name}: its calls took "
                    f"{sum(call.seconds for call in calls[1:]):.3g} s, {len(calls[1:])} full ones "
                    "would take about "
                    f"{typical * len(calls[1:]):.3g} s. On a model this small switch the cache off."
                )


def _says_little_fits(cache: DenoiserCache, anchors: int, wanted: int, budget: Budget) -> str:
    need = sum(budget.held.values()) / 2**20
    found = f"one value of everything on {cache.denoiser.name} takes {need:.3g} MiB"
    given = f"cache_memory={cache.plugin.cache_memory!r}"
    if anchors == 0:
        return f"{given} holds nothing: {found}, so every step was computed"
    return f"{given} holds {anchors} of the {wanted} values a forecast uses: {found}"


def _held_bytes(cache: DenoiserCache, run: Run) -> int:
    """Sum the storages kept alive by all branches of one denoiser's cache, each counted once."""
    storages: dict[int, int] = {}
    for key, value in run.state.items():
        if isinstance(key, tuple) and key[:2] == (cache, "memory"):
            memory = value[1]
            for history in memory.histories.values():
                storages |= history.storages()
            for tensor in _state_tensors(memory.gate_state):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        if isinstance(key, tuple) and key[:2] == (cache, "pairs"):
            storages |= value.storages()
    return sum(storages.values())


def _state_tensors(state: Any) -> list[Tensor]:
    if not dataclasses.is_dataclass(state):
        return []
    return [
        t for field in dataclasses.fields(state) for t in tensors_in(getattr(state, field.name))
    ]
