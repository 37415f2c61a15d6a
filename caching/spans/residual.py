"""The residual of a stack of blocks: what all its blocks together add to the stream.

    skip:  h_out = h_in + forecast(Delta),   Delta = h_out - h_in - (what the model added between
    the blocks)

for every stack of the model and every stream a stack carries (text and image). With a gate that
looks at the first block, or the first `front` blocks, those always run and Delta starts behind them
(First Block Cache, DBCache). The last `back` blocks always run too and Delta ends in front of them.
ControlNet adds its residuals between the blocks: they are left out of Delta on the way in and added
fresh on the way out.

A gate that looks at the modulated input decides when the first block calls its attention; on a skip
that block is left from inside and adds its part of Delta like the others (TeaCache).

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

from skipstep.caching.base import Gate, Span, front_of
from skipstep.caching.passes import Leave, Pass, Place, StackContract, Target
from skipstep.caching.spans.modules import kind_of
from skipstep.caching.tree import tensors_in

__all__ = ["Residual"]


@dataclass(frozen=True)
class _Attention:
    """The place of the first block's attention, whose input is the modulated one."""

    is_watched: bool = True


@dataclass
class _Trace:
    """What one pass has seen of one stack so far."""

    inputs: dict[str, Any] = field(default_factory=dict)
    first: tuple[Any, ...] = ()
    previous: tuple[Any, ...] = ()
    added: dict[int, Tensor] = field(default_factory=dict)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Residual(Span):
    """Skip the blocks of a transformer and add what they added before."""

    type: Annotated[Literal["residual"], Field(description="Tag of this span.")] = "residual"
    back: Annotated[
        int, Field(ge=0, le=100, description="Last blocks of the model that always run.")
    ] = 0

    def why_not(self, target: Target, gate: Gate[Any]) -> str | None:
        """Return why this denoiser has no residual to cache, or None."""
        if target.kind == "unet":
            return (
                f"{target.class_name} is a UNet and has no chain of equal blocks; "
                "its span is 'deep_features' (plugin 'deepcache')"
            )
        if target.kind != "dit":
            return f"{target.class_name} has no list of two or more equal blocks"
        front, last = front_of(gate), len(target.stacks) - 1
        for s, stack in enumerate(target.stacks):
            watched = (front if s == 0 else 0) + (self.back if s == last else 0)
            if watched >= len(stack):
                return (
                    f"{target.class_name} has {len(stack)} blocks in list {s} and {watched} of "
                    f"them would always run (front {front}, back {self.back}): lower front or back"
                )
        if gate.looks_at == "modulated" and _first_attention(target) is None:
            return (
                f"the first block of {target.class_name} has no attention module, so what gate "
                f"{gate.type!r} looks at is not found: use 'fbcache' or 'easycache'"
            )
        return None

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return every block with its place."""
        front = front_of(gate)
        found: list[tuple[nn.Module, Any]] = []
        for s, stack in enumerate(target.stacks):
            end = len(stack) - (self.back if s == len(target.stacks) - 1 else 0)
            for j, block in enumerate(stack):
                is_front, is_back = s == 0 and j < front, j >= end
                place = Place(
                    s,
                    j,
                    is_last=j == end - 1,
                    is_watched=is_front or is_back,
                    is_lead=is_front and j == front - 1,
                    is_back=is_back,
                )
                found.append((block, place))
        attention = _first_attention(target) if gate.looks_at == "modulated" else None
        return found if attention is None else [*found, (attention, _Attention())]

    def full_work(self, target: Target) -> float:
        """Count the blocks of an uncached call."""
        return float(sum(len(stack) for stack in target.stacks))

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
        if place.is_back:
            unfinished = pass_.trace.get(place.stack)
            if unfinished is not None and pass_.mode != "skip":
                known.learn(unfinished.previous, named)
                _finish(place, pass_, known, unfinished)
            return pass_.run(call_next, args, kwargs)
        is_front = place.is_watched
        if pass_.mode == "skip" and not is_front and known.carry:
            return _replay(place, pass_, known, named)
        if is_front and pass_.lead is not None:
            output = pass_.lead if place.is_lead else _hand_on(known, named)
        else:
            try:
                output = pass_.run(call_next, args, kwargs)
            except Leave:
                return _replay(place, pass_, known, named)
        if pass_.mode == "skip":
            return output
        outputs = known.as_tuple(output)
        trace = pass_.trace.setdefault(place.stack, _Trace())
        if place.index == 0:
            trace.inputs = named
        if place.index == 1:
            known.learn(trace.previous, named)
        if place.index > 0 and not is_front:
            _note_additions(trace, known, named)
        trace.previous = outputs
        if place.is_lead:
            trace.first = outputs
            if pass_.mode == "probe":
                mode = pass_.decide_on(known.main_change(trace.inputs, outputs), output)
                if mode == "skip":
                    return output
        # The carry of a single skipped block is learned from the block behind it, which finishes.
        if place.is_last and (place.index > 0 or known.carry):
            _finish(place, pass_, known, trace)
        return output


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


def _hand_on(known: StackContract, named: dict[str, Any]) -> Any:
    """Return a block's inputs as its outputs."""
    outputs: list[Any] = [None] * (max(known.carry) + 1)
    for i, name in known.carry.items():
        outputs[i] = named[name]
    return known.as_output(outputs)


def _replay(place: Place, pass_: Pass, known: StackContract, named: dict[str, Any]) -> Any:
    """Hand the streams through; the last block adds the forecast residual."""
    if not place.is_last:
        return _hand_on(known, named)
    outputs: list[Any] = [None] * (max(known.carry) + 1)
    for i, name in known.carry.items():
        key = ("stack", place.stack, i)
        if pass_.has(key):
            outputs[i] = named[name] + pass_.guess(key)
    return known.as_output(outputs)


def _note_additions(trace: _Trace, known: StackContract, named: dict[str, Any]) -> None:
    """Sum up what the model itself added to a stream between two blocks."""
    for i, name in known.carry.items():
        before, now = trace.previous[i], named[name]
        if now is not before and isinstance(before, Tensor):
            extra = now - before
            trace.added[i] = trace.added[i] + extra if i in trace.added else extra


def _finish(place: Place, pass_: Pass, known: StackContract, trace: _Trace) -> None:
    """Store the residual of every stream, once its last block has run."""
    if not known.carry:
        pass_.give_up(
            f"the outputs of {known.block} are not the inputs of the next block, so nothing can "
            "stand in for it"
        )
        return
    behind_lead = place.stack == 0 and pass_.watches_first_block
    for i, name in known.carry.items():
        end = trace.previous[i] if i < len(trace.previous) else None
        if not isinstance(end, Tensor):
            continue
        delta = end - (trace.first[i] if behind_lead else trace.inputs[name])
        if i in trace.added:
            delta = delta - trace.added[i]
        pass_.keep(("stack", place.stack, i), delta)
        if place.stack == 0 and i == known.main()[0]:
            pass_.feature = delta
    if behind_lead and pass_.signal is None:
        pass_.signal = known.main_change(trace.inputs, trace.first)
    del pass_.trace[place.stack]
