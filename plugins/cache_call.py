"""One call of one cached denoiser.

From the outside in:
1. the Run names the step and the guidance branch; that branch's memory is found, or made when
   shapes changed;
2. the gate chooses per sample, on the input or, inside, on the first block;
3. samples that agree share one pass; samples that disagree are gathered, computed or skipped in a
   pass of their own, and scattered back, so that a picture does not depend on its batch neighbours;
4. what was computed is kept, the gate is told, and the report gets one line per call.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from skipstep.caching.base import Choice, Seen, Step, VerifyingGate, decides_inside
from skipstep.caching.passes import Pass, Split
from skipstep.caching.spans.guidance import Guidance, Pairs
from skipstep.caching.spans.output import Output, WholeCall
from skipstep.caching.tree import join_rows, map_tensors, select_rows, stacked, tensors_in
from skipstep.plugins.noise import noise_at
from skipstep.plugins.report import Call
from skipstep.plugins.run import Run

if TYPE_CHECKING:
    from skipstep.plugins.cache import DenoiserCache

__all__ = ["DenoiserCall"]

WHOLE = "whole denoiser"


class DenoiserCall:
    """One call of one denoiser, from its arguments to its output and its line in the report."""

    def __init__(
        self,
        cache: "DenoiserCache",
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
            self.pairs.note(self.branch, stacked(main_output(output)), computed)
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
        elif not self.memory.anchors:
            forced = "cache memory"
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
            self.conditional = stacked(main_output(output)), rows
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
        if isinstance(cache.parts.span, WholeCall):
            self._note_output(pass_, output)
        if isinstance(cache.parts.span, Output):
            self._keep_output(pass_, output)
        self._count(pass_)
        gate = cache.parts.gate
        if pass_.errors is not None and isinstance(gate, VerifyingGate):
            gate.verify(self.memory.gate_state, rows, pass_.errors)
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
        values = [stacked(main_output(output))] if by_list else tensors_in(output)
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
        if output is not None and stacked(main_output(output)).shape != x.shape:
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
                    output=pick(stacked(main_output(output))),
                    feature=self.feature,
                ),
            )


def main_output(output: Any) -> Any:
    """Return the first entry of what a denoiser returned: a tensor, or a list with one tensor per
    sample.
    """
    if isinstance(output, Tensor):
        return output
    values = list(output.values()) if isinstance(output, dict) else list(output)
    return values[0]
