"""The residual of a stack of blocks: what all its blocks together add to the stream.

    skip:  h_out = h_in + forecast(Delta),   Delta = h_out - h_in - (what the model added between
    the blocks)

for every stack of the model and every stream a stack carries (text and image). With a gate that
looks at the first block, that block always runs and Delta starts behind it (First Block Cache).
ControlNet adds its residuals between the blocks: they are left out of Delta on the way in and added
fresh on the way out.

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

from skipstep.caching.base import Gate, Span
from skipstep.caching.passes import Pass, Place, StackContract, Target

__all__ = ["Residual"]


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

    def why_not(self, target: Target, gate: Gate[Any]) -> str | None:
        """Return why this denoiser has no residual to cache, or None."""
        if target.kind == "dit":
            return None
        if target.kind == "unet":
            return (
                f"{target.class_name} is a UNet and has no chain of equal blocks; "
                "its span is 'deep_features' (plugin 'deepcache')"
            )
        return f"{target.class_name} has no list of two or more equal blocks"

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return every block with its place."""
        watches = gate.looks_at == "first_block"
        return [
            (block, Place(s, j, j == len(stack) - 1, is_watched=watches and s == j == 0))
            for s, stack in enumerate(target.stacks)
            for j, block in enumerate(stack)
        ]

    def full_work(self, target: Target) -> float:
        """Count the blocks of an uncached call."""
        return float(sum(len(stack) for stack in target.stacks))

    def visit(
        self,
        place: Place,
        pass_: Pass,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run or replay one block."""
        known = pass_.contract.stacks[place.stack]
        named = known.bind(args, kwargs)
        is_lead = place.is_watched
        if pass_.mode == "skip" and not is_lead and known.carry:
            return _replay(place, pass_, known, named)
        output = (
            pass_.lead if is_lead and pass_.lead is not None else pass_.run(call_next, args, kwargs)
        )
        if pass_.mode == "skip":
            return output
        outputs = known.as_tuple(output)
        trace = pass_.trace.setdefault(place.stack, _Trace())
        if place.index == 0:
            trace.inputs, trace.first = named, outputs
        else:
            if place.index == 1:
                known.learn(trace.previous, named)
            _note_additions(trace, known, named)
        trace.previous = outputs
        if is_lead and pass_.mode == "probe":
            mode = pass_.decide_on(known.main_change(named, outputs), output)
            if mode == "skip":
                return output
        if place.is_last:
            _finish(place, pass_, known, trace)
        return output


def _replay(place: Place, pass_: Pass, known: StackContract, named: dict[str, Any]) -> Any:
    """Hand the streams through; the last block adds the forecast residual."""
    outputs: list[Any] = [None] * (max(known.carry) + 1)
    for i, name in known.carry.items():
        key = ("stack", place.stack, i)
        if not place.is_last:
            outputs[i] = named[name]
        elif pass_.has(key):
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
    """Store the residual of every stream, once the last block has run."""
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
