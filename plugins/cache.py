"""Kind "cache": how a gate, a forecaster and a span meet a pipeline's denoisers.

One denoiser call, from the outside in:
1. the Run names the step and the guidance branch; that branch's memory is found, or made when
shapes changed;
2. the gate chooses per sample, on the input or, inside, on the first block's residual;
3. samples that agree share one pass; samples that disagree are gathered, computed or skipped in a
pass of their own,
   and scattered back, so that a picture does not depend on its batch neighbours;
4. what was computed is kept, the gate is told, and the report gets one line per call.
"""

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from skipstep.caching.base import CachePlugin, Choice, Seen, Step, decides_inside, front_of
from skipstep.caching.passes import Contract, Memory, Pass, Split, StackContract
from skipstep.caching.spans.guidance import Guidance, Pairs
from skipstep.caching.spans.modules import Modules
from skipstep.caching.spans.output import Output
from skipstep.caching.tree import join_rows, map_tensors, rows_of, select_rows, stacked, tensors_in
from skipstep.plugins.errors import Incompatible
from skipstep.plugins.fingerprint import MODEL_ENTRIES, mismatches, of_the_call
from skipstep.plugins.flops import Meter, known_counts
from skipstep.plugins.noise import noise_at
from skipstep.plugins.profile import Denoiser, Profile
from skipstep.plugins.report import Call, Report
from skipstep.plugins.run import Run

__all__ = ["EXCLUSIVE", "ORDER", "attach", "why_not"]

ORDER = 20
EXCLUSIVE = True
INSIDE = 30
WHOLE = "whole denoiser"


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
    if denoiser.is_compiled and not isinstance(parts.span, Output | Guidance):
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
        self.denoiser = denoiser
        self.site = site
        self.parameters = _parameters(denoiser.inner)
        stacks = [StackContract(type(s[0]).__name__, _parameters(s[0])) for s in denoiser.stacks]
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
        call = _DenoiserCall(self, run, main, call_next, args, kwargs)
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
        memory = Memory(rows, forecaster, self.parts.gate.init(rows), self.contract.clone)
        run.state[key] = (shapes, memory)
        return memory, found is not None

    def pairs(self, run: Run, shape: Hashable) -> Pairs | None:
        """Return what is known of the guidance of a batch of this shape, where the span asks."""
        if not isinstance(self.parts.span, Guidance):
            return None
        key = (self, "pairs", shape)
        if key not in run.state:
            run.state[key] = Pairs(self.parts.forecaster)
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


class _DenoiserCall:
    """One call of one denoiser, from its arguments to its output and its line in the report."""

    def __init__(
        self,
        cache: DenoiserCache,
        run: Run,
        main: Any,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.cache, self.run, self.main, self.call_next = cache, run, main, call_next
        self.args, self.kwargs = args, kwargs
        named = dict(zip(cache.parameters, args, strict=False)) | kwargs
        index, self.branch = run.enter(cache.denoiser.module, named)
        self.scheduler_step = Step(index, run.count)
        time_, times, visit = run.time_of(index)
        noise = noise_at(run.pipe, index) if cache.parts.gate.needs_noise else None
        self.step = Step(time_, times, noise)
        tensors = tensors_in([args, kwargs])
        self.shapes = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        self.memory, self.is_reshaped = cache.memory(run, (self.branch, visit), main, self.shapes)
        self.memory.enter(cache.parts.span.era(self.step))
        self._version: int | None = None
        self.x = self._input()
        self.everyone = list(range(self.memory.rows))
        self.choices: list[Choice] = []
        self.work = 0.0
        self.spared: dict[Hashable, float] = {}
        self._is_stale: bool | None = None
        self.signal: Tensor | None = None
        self.feature: Tensor | None = None
        self.pairs = cache.pairs(run, tuple(x.shape for x in tensors_in(main)))
        self.rebuilt: set[int] = set()
        self.conditional: tuple[Tensor, list[int]] | None = None

    def serve(self) -> Any:
        """Choose, run what has to run, forecast the rest."""
        gate = self.cache.parts.gate
        output: Any = None
        lead: Any = None
        if self.pairs is not None:
            self._look(self.pairs)
        if decides_inside(gate):
            try:
                output, pass_ = self._pass("probe", self.everyone)
                self.choices = pass_.choices or self._settle(
                    gate.decide(self.memory.gate_state, self.step, pass_.signal)
                    if pass_.signal is not None
                    else [Choice(True, "first")] * len(self.everyone)
                )
            except Split as split:
                lead = split.lead
        else:
            self.signal = stacked(self.main) if gate.looks_at == "input" else None
            self.choices = self._settle(gate.decide(self.memory.gate_state, self.step, self.signal))
        computed = [row for row in self.everyone if self.choices[row].compute]
        skipped = [row for row in self.everyone if not self.choices[row].compute]
        if output is None:
            groups = [("compute", computed), ("skip", skipped)]
            parts = [(self._group(mode, rows, lead), rows) for mode, rows in groups if rows]
            output = parts[0][0] if len(parts) == 1 else join_rows(parts, len(self.everyone))
        if self.pairs is not None:
            self.pairs.note(self.branch, stacked(_main_output(output)), computed)
        self._remember(computed, output)
        return output

    def _look(self, pairs: Pairs) -> None:
        """Learn which outputs guidance mixes, from the last step and the input of this one."""
        wants = pairs.wants_prediction
        main = stacked(self.main) if wants else self.x
        pairs.look(self.scheduler_step, self.branch, main, self.run.prediction)
        self.rebuilt = set(pairs.rebuilt(self.branch, len(self.everyone)))
        self.run.keeps_prediction = pairs.wants_prediction

    def _input(self) -> Tensor | None:
        """Return the input as the denoiser finds it, where the span asks for it."""
        span = self.cache.parts.span
        if not (isinstance(span, Output) and span.delta):
            return None
        x = stacked(self.main)
        is_own = x is not self.main
        self._version = None if is_own or x.is_inference() else x._version
        return x.clone() if self.memory.clone and not is_own else x

    def record(self, seconds: float) -> Call:
        """Return this call's line of the report."""
        spared = {place: n / len(self.everyone) for place, n in self.spared.items()}
        flops = self.cache.meter.cost(self.shapes, spared)
        return Call(
            step=self.scheduler_step.index,
            denoiser=self.cache.denoiser.name,
            branch=self.branch,
            choices=self.choices,
            work_done=self.work,
            work_full=self.cache.full_work * len(self.everyone),
            seconds=seconds,
            flops_done=flops[0] if flops else None,
            flops_full=flops[1] if flops else None,
        )

    def _settle(self, choices: list[Choice]) -> list[Choice]:
        """Put what every cache obeys above what the gate wants."""
        return [self._settle_row(row, choice) for row, choice in enumerate(choices)]

    def _settle_row(self, row: int, choice: Choice) -> Choice:
        plugin, contract = self.cache.plugin, self.cache.contract
        index, count = self.step.index, self.step.count
        forced = None
        if contract.broken or self.memory.refusal:
            forced = contract.broken or self.memory.refusal
        elif not self.memory.is_filled:
            forced = "shape" if self.is_reshaped else "first"
        elif index < plugin.warmup_steps:
            forced = "warm-up"
        elif self.pairs is not None and row not in self.rebuilt:
            forced = self.pairs.why_not or "conditional"
        elif count and index >= count - plugin.final_steps:
            forced = "final"
        elif not choice.compute and self.is_stale():
            forced = "aliased"
        elif (
            not choice.compute
            and plugin.max_skips is not None
            and self.memory.skips[row] >= plugin.max_skips
        ):
            forced = "limit"
        return choice if forced is None else dataclasses.replace(choice, compute=True, why=forced)

    def is_stale(self) -> bool:
        """Say, looking once per call, whether the model changed what we held; it is gone then."""
        if self._is_stale is None:
            self._is_stale = self.memory.forget_if_stale()
            self.cache.contract.clone |= self._is_stale
        return self._is_stale

    def _decide_inside(self, pass_: Pass, signal: Tensor, lead: Any) -> None:
        """Choose behind the first block: set the pass's mode, or leave it when the samples
        disagree.
        """
        self.signal = signal
        gate = self.cache.parts.gate
        self.choices = pass_.choices = self._settle(
            gate.decide(self.memory.gate_state, self.step, signal)
        )
        votes = {choice.compute for choice in self.choices}
        if len(votes) > 1:
            self._count(pass_)
            raise Split(lead)
        pass_.mode = "compute" if votes.pop() else "skip"
        pass_.at = self._times(self.everyone)

    def _times(self, rows: list[int]) -> list[float] | None:
        """Return the time of each row's forecast, or None where all are for this step."""
        own = [self.choices[row].at for row in rows]
        if all(at is None for at in own):
            return None
        return [float(self.step.index) if at is None else at for at in own]

    def _group(self, mode: Any, rows: list[int], lead: Any) -> Any:
        """Run one pass for some rows of the batch; the output span needs no pass to skip."""
        if mode == "skip" and isinstance(self.cache.parts.span, Output):
            self.spared[WHOLE] = float(len(rows))
            return self._forecast_output(rows)
        if mode == "skip" and self.pairs is not None:
            self.spared[WHOLE] = float(len(rows))
            return self._rebuild(self.pairs, rows)
        if lead is not None:
            lead = select_rows(lead, rows, len(self.everyone), lists_are_rows=False)
        output = self._pass(mode, rows, lead)[0]
        if self.pairs is not None:
            self.conditional = stacked(_main_output(output)), rows
        return output

    def _pass(self, mode: Any, rows: list[int], lead: Any = None) -> tuple[Any, Pass]:
        cache = self.cache
        pass_ = Pass(
            mode=mode,
            step=self.step,
            rows=rows,
            memory=self.memory,
            contract=cache.contract,
            decide=self._decide_inside,
            lead=lead,
            at=self._times(rows) if mode == "skip" else None,
            watches_first_block=cache.parts.gate.looks_at == "first_block",
        )
        args, kwargs = self.args, self.kwargs
        if rows != self.everyone:
            by_list = isinstance(self.main, list)
            frames = self.main.shape[1:3] if not by_list and self.main.ndim == 5 else ()
            args, kwargs = (
                select_rows(part, rows, len(self.everyone), lists_are_rows=by_list, frames=frames)
                for part in (args, kwargs)
            )
        state = self.run.state
        state[(cache, "pass")] = pass_
        try:
            # The first pass of a shape is whole: no sample has anything to skip with yet.
            with cache.meter.watch(self.shapes):
                output = cache.meter.unit(WHOLE, functools.partial(self.call_next, *args, **kwargs))
        finally:
            state.pop((cache, "pass"), None)
        if isinstance(cache.parts.span, Output | Guidance):
            self._note_output(pass_, output)
        if isinstance(cache.parts.span, Output):
            self._keep_output(pass_, output)
        self._count(pass_)
        if pass_.mode != "skip":
            if self.signal is None:
                self.signal = pass_.signal
            if pass_.feature is not None:
                self.feature = pass_.feature
                why = self.memory.forecaster.why_not(tuple(pass_.feature.shape[1:]))
                self.memory.refusal = None if why is None else f"contract not learned: {why}"
        return output, pass_

    def _count(self, pass_: Pass) -> None:
        """Add up what a pass ran and what it spared, times rows."""
        self.work += pass_.work
        for place, n in pass_.spared.items():
            self.spared[place] = self.spared.get(place, 0.0) + n * len(pass_.rows)

    def _note_output(self, pass_: Pass, output: Any) -> None:
        """Count a whole call and remember the form of what it returned."""
        pass_.work += self.cache.full_work * len(pass_.rows)
        by_list = isinstance(self.main, list)
        pass_.remember_shape("output", [] if by_list else output)
        if by_list:
            self.memory.shapes["nesting"] = type(output)
        if self.pairs is not None and not by_list and len(tensors_in(output)) > 1:
            self.pairs.why_not = "the denoiser returns more than one tensor"

    def _keep_output(self, pass_: Pass, output: Any) -> None:
        """Store the tensors a denoiser returned; the first one is what becomes the picture."""
        by_list = isinstance(self.main, list)
        if self._version is not None and self.main._version != self._version:
            self.memory.is_input_changed = not self.memory.clone
        base = self._delta_base(output, pass_.rows)
        values = [stacked(_main_output(output))] if by_list else tensors_in(output)
        for i, value in enumerate(values):
            value = value - base if i == 0 and base is not None else value
            pass_.keep(("output", i), value)
            pass_.feature = value if i == 0 else pass_.feature

    def _delta_base(self, output: Any, rows: list[int]) -> Tensor | None:
        """Return the input that is subtracted from the output, where the span asks for it and
        shapes allow it.
        """
        if self.x is None:
            return None
        x = self.x
        if rows != self.everyone:
            x = select_rows(x, rows, len(self.everyone), lists_are_rows=False)
        if output is not None and stacked(_main_output(output)).shape != x.shape:
            note = (
                f"{self.cache.denoiser.name}: output and input differ in shape, so the output "
                "itself is cached "
                "instead of output minus input"
            )
            if note not in self.cache.contract.notes:
                self.cache.contract.notes.append(note)
                self.cache.contract.has_no_delta = True
            return None
        return None if self.cache.contract.has_no_delta else x

    def _forecast_output(self, rows: list[int]) -> Any:
        """Return what the denoiser would have returned for `rows`."""
        at = self._times(rows) or float(self.step.index)
        base = self._delta_base(None, rows)
        first = self.memory.guess(("output", 0), rows, at)
        first = first if base is None else first + base
        if isinstance(self.main, list):
            return self.memory.shapes["nesting"]([list(first.unbind(0))])
        rest = range(1, len(self.memory.histories))
        values = iter([first, *(self.memory.guess(("output", i), rows, at) for i in rest)])
        return map_tensors(self.memory.shapes["output"], lambda _: next(values))

    def _rebuild(self, pairs: Pairs, rows: list[int]) -> Any:
        """Return the unconditional output of `rows` from the conditional one of this step."""
        total = len(self.everyone)
        if pairs.is_batched:
            if self.conditional is None:
                raise RuntimeError("the conditional rows of this call have not been computed")
            output, computed = self.conditional
            c = output[[computed.index(row) for row in pairs.partners(rows, total)]]
        else:
            if pairs.conditional is None:
                raise RuntimeError("the conditional call of this step has not been made")
            c = pairs.conditional[rows]
        span = self.cache.parts.span
        assert isinstance(span, Guidance)
        at = float(self.scheduler_step.index)
        u = span.rebuild(c, pairs.delta(rows, total, at), self.scheduler_step)
        if isinstance(self.main, list):
            return self.memory.shapes["nesting"]([list(u.unbind(0))])
        return map_tensors(self.memory.shapes["output"], lambda _: u)

    def _remember(self, computed: list[int], output: Any) -> None:
        """Tell the gate, and count who skipped how often and how much is held."""
        memory, gate = self.memory, self.cache.parts.gate
        for row in self.everyone:
            memory.skips[row] = 0 if row in computed else memory.skips[row] + 1
        if not computed:
            return
        memory.is_filled = True
        index = torch.tensor(computed)
        whole = computed == self.everyone

        def pick(value: Tensor) -> Tensor:
            return value if whole else value.index_select(0, index.to(value.device))

        if self.signal is not None or gate.looks_at == "step":
            gate.observe(
                memory.gate_state,
                Seen(
                    step=self.step,
                    rows=computed,
                    signal=None if self.signal is None else pick(self.signal),
                    output=pick(stacked(_main_output(output))),
                    feature=self.feature,
                ),
            )


def adds_noise(pipe: Any) -> bool:
    """Say whether a pipeline's scheduler is stochastic, by its name and its configured algorithm:
    nothing else tells.
    """
    scheduler = getattr(pipe, "scheduler", None)
    algorithm = getattr(getattr(scheduler, "config", None), "algorithm_type", None)
    name = type(scheduler).__name__
    return any(word in name for word in ("Ancestral", "SDE")) or "sde" in str(algorithm)


def _main_output(output: Any) -> Any:
    """Return the first entry of what a denoiser returned: a tensor, or a list with one tensor per
    sample.
    """
    if isinstance(output, Tensor):
        return output
    values = list(output.values()) if isinstance(output, dict) else list(output)
    return values[0]


def _parameters(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of the forward's positional parameters, without self."""
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


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
