"""The residual of a range of blocks: what its blocks together add to the stream.

    skip:  h_out = h_in + forecast(Delta),   Delta = h_out - h_in - (what the model added between
    the blocks)

for every stack of the model and every stream a stack carries (text and image). The first
`first_blocks` and the last `last_blocks` of the model always run and Delta is that of the blocks
between them (DBCache: Fn and Bn). The blocks that a gate looks at, the first one or the first
`front` ones, always run as well; it decides behind them. ControlNet adds its residuals between the
blocks: they are left out of Delta on the way in and added fresh on the way out.

A gate that looks at the modulated input decides when the first block calls its attention; on a skip
that block is left from inside and adds its part of Delta like the others (TeaCache).

A gate that verifies (SpeCa) is told on every skip how far the forecast of what the model's last
block adds is from what it adds there; that block is outside the range and runs on the forecast.

With `swap_at` the two counts change places at that share of the run (Delta-DiT): the early steps
skip the rear blocks, the late ones the front blocks. The first step behind the boundary is
computed, because nothing is known of the new range yet, and the old one is forgotten.

No model is known by name. Which output of a block is which input of the next is learned from tensor
identity in the first full pass; a model whose blocks are not such a chain is computed in full and
the report says so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from skipstep.caching.base import Gate, Span, Step, VerifyingGate, front_of
from skipstep.caching.passes import Leave, Pass, StackContract, Target
from skipstep.caching.spans.modules import kind_of
from skipstep.caching.tree import tensors_in
from skipstep.kernels.relative_l1 import relative_l1

__all__ = ["Residual"]


@dataclass(frozen=True)
class _Range:
    """Which blocks of one stack are skipped, from `start` to before `stop`."""

    start: int
    stop: int


@dataclass(frozen=True)
class _Attention:
    """The place of the first block's attention, whose input is the modulated one."""


@dataclass(frozen=True)
class _Block:
    """Where a block stands, its stack's ranges before and behind the boundary, and how many of the
    model's first blocks lead up to the gate's decision (0: it does not decide behind a block).
    `is_check` marks the block that checks forecasts.
    """

    stack: int
    index: int
    ranges: tuple[_Range, _Range]
    lead: int
    is_check: bool = False


@dataclass
class _Trace:
    """What one pass has seen of one stack so far: the streams into it, into its range and out of
    that, the last block's outputs, and what was added in between.
    """

    entered: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    ends: tuple[Any, ...] = ()
    previous: tuple[Any, ...] = ()
    added: dict[int, Tensor] = field(default_factory=dict)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Residual(Span):
    """Skip the blocks of a transformer and add what they added before."""

    type: Annotated[Literal["residual"], Field(description="Tag of this span.")] = "residual"
    first_blocks: Annotated[
        int, Field(ge=0, description="Fn: blocks at the front that always run.")
    ] = 0
    last_blocks: Annotated[
        int, Field(ge=0, description="Bn: blocks at the rear that always run.")
    ] = 0
    swap_at: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            allow_inf_nan=False,
            description="Share of the run from which first_blocks and last_blocks change places.",
        ),
    ] = None

    def why_not(self, target: Target, gate: Gate[Any]) -> str | None:
        """Return why this denoiser has no residual to cache, or None."""
        if target.kind == "unet":
            return (
                f"{target.class_name} is a UNet and has no chain of equal blocks; "
                "its span is 'deep_features' (plugin 'deepcache')"
            )
        if target.kind != "dit":
            return f"{target.class_name} has no list of two or more equal blocks"
        blocks = sum(len(stack) for stack in target.stacks)
        if self.first_blocks + self.last_blocks >= blocks:
            return (
                f"first_blocks={self.first_blocks} and last_blocks={self.last_blocks} leave "
                f"nothing to skip: {target.class_name} has {blocks} blocks"
            )
        if isinstance(gate, VerifyingGate) and (self.last_blocks < 1 or self.swap_at is not None):
            return (
                f"gate {gate.type!r} checks forecasts at the last block, which must run at every "
                "step: give the span last_blocks of 1 or more, and no swap_at"
            )
        front, first = front_of(gate), len(target.stacks[0])
        if front >= first:
            return (
                f"gate {gate.type!r} decides behind {front} blocks, which must be fewer than the "
                f"{first} of {target.class_name}'s first list of blocks: lower front"
            )
        if max(front, self.first_blocks) + self.last_blocks >= blocks:
            return (
                f"front={front} of gate {gate.type!r} and last_blocks={self.last_blocks} leave "
                f"nothing to skip: {target.class_name} has {blocks} blocks"
            )
        if gate.looks_at == "modulated" and _first_attention(target) is None:
            return (
                f"the first block of {target.class_name} has no attention module, so what gate "
                f"{gate.type!r} looks at is not found: use 'fbcache' or 'easycache'"
            )
        return None

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return every block with its place."""
        ranges, front = self._ranges(target, gate), front_of(gate)
        found: list[tuple[nn.Module, Any]] = [
            (
                block,
                _Block(
                    s,
                    j,
                    ranges[s],
                    front if s == 0 else 0,
                    isinstance(gate, VerifyingGate) and block is target.stacks[-1][-1],
                ),
            )
            for s, stack in enumerate(target.stacks)
            for j, block in enumerate(stack)
        ]
        attention = _first_attention(target) if gate.looks_at == "modulated" else None
        return found if attention is None else [*found, (attention, _Attention())]

    def full_work(self, target: Target) -> float:
        """Count the blocks of an uncached call."""
        return float(sum(len(stack) for stack in target.stacks))

    def era(self, step: Step) -> int:
        """Return 0 before the boundary and 1 from there on, where another range is skipped."""
        return int(
            self.swap_at is not None and step.count > 0 and step.index >= self.swap_at * step.count
        )

    def visit(
        self,
        place: Any,
        pass_: Pass,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run or replay one block."""
        if isinstance(place, _Attention):
            return _look(pass_, call_next, args, kwargs)
        known = pass_.contract.stacks[place.stack]
        named = known.bind(args, kwargs)
        span = place.ranges[self.era(pass_.step)]
        if pass_.mode == "skip" and span.start <= place.index < span.stop and known.carry:
            pass_.spare(place)
            return _replay(place, span, pass_, known, named)
        is_lead = place.index == place.lead - 1
        if pass_.lead is not None and place.index < place.lead:
            output = pass_.lead if is_lead else _hand_on(known, named)
        else:
            try:
                output = pass_.run(call_next, args, kwargs)
            except Leave:
                pass_.spare(place)
                return _replay(place, span, pass_, known, named)
        outputs = known.as_tuple(output)
        if place.is_check:
            _check(pass_, known.main_change(named, outputs))
        if pass_.mode == "skip":
            return output
        trace = pass_.trace.get(place.stack)
        if trace is None:
            trace = pass_.trace[place.stack] = _Trace()
        if place.index == 0:
            trace.entered = named
        elif place.index == 1:
            _learn(pass_, known, trace, named, is_watched=place.lead == 1)
        if place.index == span.start:
            trace.inputs = named
        elif span.start < place.index < span.stop:
            _note_additions(trace, known, named)
        trace.previous = outputs
        if place.index == span.stop - 1:
            trace.ends = outputs
        if is_lead and pass_.mode == "probe":
            mode = pass_.decide_on(known.main_change(trace.entered, outputs), output)
            if mode == "skip":
                return output
        # The carry is not known before the second block.
        if span.start < span.stop and place.index == max(span.stop - 1, 1):
            _finish(place, pass_, known, trace)
        return output

    def _ranges(self, target: Target, gate: Gate[Any]) -> list[tuple[_Range, _Range]]:
        """Return each stack's range before and behind the boundary."""
        total, lead = sum(len(stack) for stack in target.stacks), front_of(gate)
        counts = (self.first_blocks, self.last_blocks)
        found, before = [], 0
        for stack in target.stacks:
            pair = []
            for front, rear in (counts, counts[::-1]):
                start = min(max(front, lead) - before, len(stack))
                stop = min(total - rear - before, len(stack))
                pair.append(_Range(max(start, 0), max(stop, 0)))
            found.append((pair[0], pair[1]))
            before += len(stack)
        return found


def _first_attention(target: Target) -> nn.Module | None:
    """Return the first attention module of the first block: what it receives is modulated."""
    children = target.stacks[0][0].named_children()
    return next((child for name, child in children if kind_of(name, child) == "attention"), None)


def _look(
    pass_: Pass, call_next: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Decide on what the first attention receives, and leave its block when all rows skip."""
    if pass_.mode == "probe":
        received = kwargs.get("hidden_states", next(iter(tensors_in([args, kwargs])), None))
        rows = len(pass_.rows)
        signal = None
        if isinstance(received, Tensor) and received.shape[0] % rows == 0:
            signal = received.reshape(rows, -1)
        # The block around this call was counted when it began; it may end here.
        pass_.work -= rows
        mode = pass_.decide_on(signal, None)
        if mode == "skip":
            raise Leave
        pass_.work += rows
    return call_next(*args, **kwargs)


def _replay(
    place: _Block, span: _Range, pass_: Pass, known: StackContract, named: dict[str, Any]
) -> Any:
    """Hand the streams through; the range's last block adds the forecast residual."""
    if place.index < span.stop - 1:
        return _hand_on(known, named)
    outputs: list[Any] = [None] * (max(known.carry) + 1)
    for i, name in known.carry.items():
        key = ("stack", place.stack, i)
        if pass_.has(key):
            outputs[i] = named[name] + pass_.guess(key)
    return known.as_output(outputs)


def _check(pass_: Pass, change: Tensor | None) -> None:
    """Keep what the checking block added, or say how far its forecast is from that."""
    key = ("check",)
    if change is None:
        return
    if pass_.mode != "skip":
        pass_.keep(key, change)
    elif pass_.has(key):
        pass_.errors = relative_l1(pass_.guess(key), change).tolist()


def _hand_on(known: StackContract, named: dict[str, Any]) -> Any:
    """Return a block's inputs as its outputs."""
    outputs: list[Any] = [None] * (max(known.carry) + 1)
    for i, name in known.carry.items():
        outputs[i] = named[name]
    return known.as_output(outputs)


def _learn(
    pass_: Pass, known: StackContract, trace: _Trace, named: dict[str, Any], *, is_watched: bool
) -> None:
    """Learn from the second block's inputs what the first one handed on, and with it the signal
    that a gate could not be shown there.
    """
    known.learn(trace.previous, named)
    if not known.carry:
        pass_.give_up(
            f"the outputs of {known.block} are not the inputs of the next block, so nothing can "
            "stand in for it"
        )
    elif is_watched and pass_.lead is None and pass_.signal is None:
        pass_.signal = known.main_change(trace.entered, trace.previous)


def _note_additions(trace: _Trace, known: StackContract, named: dict[str, Any]) -> None:
    """Sum up what the model itself added to a stream between two blocks."""
    for i, name in known.carry.items():
        before, now = trace.previous[i], named[name]
        if now is not before and isinstance(before, Tensor):
            extra = now - before
            trace.added[i] = trace.added[i] + extra if i in trace.added else extra


def _finish(place: _Block, pass_: Pass, known: StackContract, trace: _Trace) -> None:
    """Store the residual of every stream, once the range's last block has run."""
    for i, name in known.carry.items():
        end = trace.ends[i] if i < len(trace.ends) else None
        if not isinstance(end, Tensor):
            continue
        delta = end - trace.inputs[name]
        if i in trace.added:
            delta = delta - trace.added[i]
        pass_.keep(("stack", place.stack, i), delta)
        if pass_.feature is None and i == known.main()[0]:
            pass_.feature = delta
    trace.inputs, trace.entered, trace.ends = {}, {}, ()
