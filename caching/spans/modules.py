"""The outputs of attention and feed-forward modules, block by block, as the skipped part (FORA,
TaylorSeer).

On a skip each module's output is forecast before the block multiplies its gate and adds it to the
stream, so the modulation by the current timestep stays exact. Single-stream blocks (FLUX) end in
one projection of attention and MLP together: that projection is what is cached, and the two in
front of it hand on zeros that nothing reads.

With `intervals` a kind is computed every so many steps even where the gate skips, each kind at its
own rhythm (Pyramid Attention Broadcast).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import ConfigDict, Field
from torch import nn

from skipstep.caching.base import Gate, Span, front_of
from skipstep.caching.passes import Pass, Place, Target
from skipstep.caching.tree import map_tensors, tensors_in

__all__ = ["ModuleKind", "ModulePlace", "Modules", "blocks_of", "keep_output", "kind_of"]
__all__ += ["modules_in", "next_key", "no_modules", "replay"]

ModuleKind = Literal["attention", "temporal_attention", "cross_attention", "feed_forward"]


@dataclass(frozen=True)
class ModulePlace:
    """One module's place: its path, its kind, the number of its block, and whether its output is
    stored or only its shape.

    `clock` is the path of the module whose stored output tells when this one was last computed.
    """

    path: str
    kind: ModuleKind
    block: int
    is_stored: bool
    clock: str


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Modules(Span):
    """Cache what the modules of the chosen kinds return, in every block."""

    reaches_into_blocks: ClassVar[bool] = True

    type: Annotated[Literal["modules"], Field(description="Tag of this span.")] = "modules"
    kinds: Annotated[
        tuple[ModuleKind, ...],
        Field(min_length=1, max_length=4, description="Which modules are cached."),
    ] = ("attention", "temporal_attention", "cross_attention", "feed_forward")
    intervals: Annotated[
        dict[ModuleKind, Annotated[int, Field(ge=1, le=100)]],
        Field(description="Steps after which a kind is computed also where the gate skips."),
    ] = Field(default_factory=dict)

    def why_not(self, target: Target, gate: Gate[Any]) -> str | None:
        """Return why this denoiser has no such modules, or None."""
        if gate.looks_at == "first_block" and target.kind != "dit":
            return f"gate {gate.type!r} needs a chain of blocks; {target.class_name} has none"
        if gate.looks_at == "modulated" or front_of(gate) > 1:
            return (
                f"gate {gate.type!r} decides inside or behind several blocks; span 'modules' waits "
                "for one block: use span 'residual'"
            )
        if self.intervals and gate.type != "window":
            return (
                f"intervals of module kinds go with gate 'window', which treats all samples alike; "
                f"gate {gate.type!r} may not: use gate 'window' or leave intervals out"
            )
        if not any(True for _ in modules_in(target, self.kinds)):
            return no_modules(target, self.kinds)
        return None

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return the modules; with a gate on the first block that block is watched and none of its
        modules cached.
        """
        found: list[tuple[nn.Module, Any]] = list(modules_in(target, self.kinds))
        if gate.looks_at != "first_block":
            return found
        first, second = target.stacks[0][:2]
        inside = {id(module) for module in first.modules()}
        rest = [(module, role) for module, role in found if id(module) not in inside]
        return [
            (first, Place(0, 0, False, True, len(found) - len(rest))),
            (second, Place(0, 1, False, True)),
            *rest,
        ]

    def full_work(self, target: Target) -> float:
        """Count the cached modules of an uncached call."""
        return float(sum(1 for _ in modules_in(target, self.kinds)))

    def visit(
        self,
        place: Any,
        pass_: Pass,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run or replay one module."""
        if isinstance(place, Place):
            return self._watch(place, pass_, call_next, args, kwargs)
        key = next_key(place.path, pass_)
        is_due = pass_.mode == "skip" and self._is_due(place, pass_, (place.clock, key[1], 0))
        if pass_.mode == "skip" and pass_.knows_shape(key) and not is_due:
            pass_.spare(place)
            return replay(place, pass_, key)
        output = pass_.run(call_next, args, kwargs)
        if pass_.mode == "compute" or is_due:
            keep_output(place, pass_, key, output)
        return output

    def _is_due(self, place: ModulePlace, pass_: Pass, clock: tuple[str, int, int]) -> bool:
        """Say whether a module's own interval is over."""
        interval = self.intervals.get(place.kind)
        return interval is not None and pass_.has(clock) and pass_.age(clock) >= interval

    def _watch(
        self,
        place: Place,
        pass_: Pass,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Look at the first block's residual, and learn from the second block's inputs what that
        is.
        """
        known = pass_.contract.stacks[0]
        named = known.bind(args, kwargs)
        if place.index == 1:
            if "first" in pass_.trace:
                first_inputs, first_outputs = pass_.trace.pop("first")
                known.learn(first_outputs, named)
                pass_.signal = known.main_change(first_inputs, first_outputs)
                if not known.carry:
                    pass_.give_up(
                        f"the outputs of {known.block} are not the inputs of the next block"
                    )
            return call_next(*args, **kwargs)
        if pass_.lead is not None:
            return pass_.lead
        output = call_next(*args, **kwargs)
        pass_.work += place.units * len(pass_.rows)
        if pass_.mode == "probe":
            outputs = known.as_tuple(output)
            if not known.carry:
                pass_.trace["first"] = named, outputs
            pass_.decide_on(known.main_change(named, outputs), output)
        return output


Key = tuple[str, int]


def next_key(path: str, pass_: Pass) -> Key:
    """Return under what a module's output is stored: a module may run several times in a pass."""
    nth: int = pass_.trace.get(path, 0)
    pass_.trace[path] = nth + 1
    return path, nth


def replay(place: ModulePlace, pass_: Pass, key: Key) -> Any:
    """Return the forecast of a module's output, or zeros where nothing reads it."""
    if not place.is_stored:
        return pass_.placeholder(key)
    position = iter(range(len(tensors_in(pass_.placeholder(key)))))
    return map_tensors(pass_.placeholder(key), lambda _: pass_.guess((*key, next(position))))


def keep_output(place: ModulePlace, pass_: Pass, key: Key, output: Any) -> None:
    """Store what a module returned."""
    pass_.remember_shape(key, output)
    for i, value in enumerate(tensors_in(output) if place.is_stored else []):
        pass_.keep((*key, i), value)
        pass_.feature = value


def modules_in(
    target: Target, kinds: tuple[ModuleKind, ...]
) -> Iterator[tuple[nn.Module, ModulePlace]]:
    """Yield the modules of these kinds with their places, block by block.

    The three parts of a single-stream block are one unit of kind "attention", found where both
    attention and feed-forward are asked for.
    """
    names = {id(module): path for path, module in target.inner.named_modules()}
    for number, block in enumerate(blocks_of(target)):
        children = dict(block.named_children())
        joins = _is_linear(children.get("proj_out")) and _is_linear(children.get("proj_mlp"))
        for name, child in children.items():
            kind, path = kind_of(name, child), names[id(child)]
            if kind == "attention" and ("temporal" in path or "motion_modules" in path):
                kind = "temporal_attention"
            if joins and (name in ("proj_out", "proj_mlp") or kind):
                if set(kinds) >= {"attention", "feed_forward"}:
                    clock = names[id(children["proj_out"])]
                    yield child, ModulePlace(path, "attention", number, name == "proj_out", clock)
            elif kind in kinds:
                yield child, ModulePlace(path, kind, number, True, path)


def no_modules(target: Target, kinds: tuple[ModuleKind, ...]) -> str:
    """Say that a denoiser has no modules of these kinds."""
    return f"{target.class_name} has no {' or '.join(kinds)} modules in its blocks"


def blocks_of(target: Target) -> list[nn.Module]:
    """Return the transformer blocks: the stacks of a DiT, or every module with attention and feed-
    forward children.
    """
    if target.stacks:
        return [block for stack in target.stacks for block in stack]
    return [
        module
        for module in target.inner.modules()
        if {"attention", "feed_forward"}
        <= {kind_of(name, child) for name, child in module.named_children()}
    ]


def _is_linear(module: nn.Module | None) -> bool:
    """Say whether a module is a linear layer, with or without a LoRA around it."""
    return isinstance(getattr(module, "base_layer", module), nn.Linear)


def kind_of(name: str, module: nn.Module) -> ModuleKind | None:
    """Return what kind of module a block's child is, by its name and its class's, or None."""
    class_name = type(module).__name__.lower()
    if "norm" in class_name or not any(isinstance(m, nn.Linear) for m in module.modules()):
        return None
    if "attention" in class_name or "attn" in class_name:
        return "cross_attention" if name == "attn2" or "cross" in name else "attention"
    if any(word in class_name for word in ("feedforward", "mlp", "ffn", "swiglu")):
        return "feed_forward"
    return None
