"""A plan of which module of which block is computed at which step (ECAD), as the skipped part.

Aggarwal, Shrivastava, Gwilliam 2025, "Evolutionary Caching to Accelerate Your Off-the-Shelf
Diffusion Model" (arXiv:2506.15682). The genome S in {0, 1}^(T x B x C) says of every step, block
and component (attention, cross-attention, feed-forward) whether it is computed or its last output
repeated. It looks at nothing, so it costs no host synchronisation and treats all samples alike; it
fails on models, samplers and numbers of steps it was not made for.

The file: {"version": 1, "kind": "skipstep-module-plan", "components": ["attention",
"feed_forward"], "compute": [["111", "111"], ["100", "110"], ...], "fingerprint": {...}} with one
entry a step, in it one string a component, in it one digit a block: 1 is computed. The first step
computes everything. `skipstep.evolve_plan` makes such files.

A run of another number of steps takes the nearest step of the plan for each of its own where that
is allowed; another number of blocks is refused.

Differs from the authors' code: modules of one kind in a block share a digit; the three parts of a
single-stream block are one attention.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, JsonValue
from torch import nn

from skipstep.caching.base import Gate, Span
from skipstep.caching.gates.schedule import nearest_step
from skipstep.caching.passes import Pass, Target
from skipstep.caching.spans.modules import (
    ModuleKind,
    blocks_of,
    keep_output,
    modules_in,
    next_key,
    no_modules,
    replay,
)
from skipstep.files.artefact import load_artefact, save_artefact

__all__ = ["ModulePlan", "PlannedModules", "read_plan", "whole_plan"]

KINDS: tuple[ModuleKind, ...] = (
    "attention",
    "temporal_attention",
    "cross_attention",
    "feed_forward",
)
Bits = Annotated[str, Field(strict=True, min_length=1, max_length=1000, pattern="^[01]+$")]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ModulePlan:
    """Say for every step, component and block whether it is computed, and what that was made for.

    >>> plan = ModulePlan(components=("feed_forward",), compute=(("11",), ("10",)))
    >>> plan.steps, plan.blocks, plan.computes(1, "feed_forward", 1), plan.share
    (2, 2, False, 0.75)
    """

    version: Annotated[Literal[1], Field(description="Version of the file's form.")] = 1
    kind: Annotated[Literal["skipstep-module-plan"], Field(description="Sort of file.")] = (
        "skipstep-module-plan"
    )
    components: Annotated[
        tuple[ModuleKind, ...], Field(min_length=1, max_length=4, description="Kinds of modules.")
    ]
    compute: Annotated[
        tuple[tuple[Bits, ...], ...],
        Field(
            min_length=1,
            max_length=10_000,
            description="Per step and component a string of one digit a block; 1 is computed.",
        ),
    ]
    fingerprint: Annotated[
        dict[str, JsonValue], Field(max_length=64, description="What it was made for.")
    ] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a plan that is no box of digits, or that begins with a skip."""
        if len(set(self.components)) < len(self.components):
            raise ValueError(f"components {list(self.components)} name one twice")
        for step, row in enumerate(self.compute):
            if len(row) != len(self.components):
                raise ValueError(
                    f"step {step} has {len(row)} strings for {len(self.components)} components"
                )
            if any(len(bits) != self.blocks for bits in row):
                raise ValueError(f"step {step} has strings of unlike length: one digit a block")
        if any("0" in bits for bits in self.compute[0]):
            raise ValueError("step 0 must compute everything: before it there is nothing to repeat")

    @property
    def steps(self) -> int:
        """Return the steps of the run it was made for."""
        return len(self.compute)

    @property
    def blocks(self) -> int:
        """Return the blocks of the model it was made for."""
        return len(self.compute[0][0])

    @property
    def share(self) -> float:
        """Return the share of ones."""
        ones = sum(bits.count("1") for row in self.compute for bits in row)
        return ones / (self.steps * self.blocks * len(self.components))

    def computes(self, step: int, component: ModuleKind, block: int) -> bool:
        """Say whether a component of a block is computed at a step."""
        return self.compute[step][self.components.index(component)][block] == "1"

    @classmethod
    def load(cls, path: str | Path) -> "ModulePlan":
        """Read a plan's file; raises ValueError that names the file and the fault."""
        return load_artefact(path, cls, kind="skipstep-module-plan")

    def save(self, path: str | Path) -> None:
        """Write this plan as a file that `load` reads."""
        save_artefact(path, self)


def whole_plan(target: Target, steps: int, **made_for: JsonValue) -> ModulePlan:
    """Return the plan that computes everything, for a denoiser's blocks and the kinds in them.

    Raises ValueError where it has none.
    """
    found = {place.kind for _, place in modules_in(target, KINDS)}
    components = tuple(kind for kind in KINDS if kind in found)
    if not components:
        raise ValueError(no_modules(target, KINDS))
    row = ("1" * len(blocks_of(target)),) * len(components)
    return ModulePlan(components=components, compute=(row,) * steps, fingerprint=made_for)


def read_plan(value: Any) -> Any:
    """Take a path as the plan in that file, and the rest as it is."""
    return ModulePlan.load(value) if isinstance(value, str | Path) else value


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PlannedModules(Span):
    """Compute the modules of a plan and repeat the others."""

    reaches_into_blocks: ClassVar[bool] = True

    type: Annotated[Literal["planned_modules"], Field(description="Tag of this span.")] = (
        "planned_modules"
    )
    plan: Annotated[
        ModulePlan,
        BeforeValidator(read_plan, json_schema_input_type=str | ModulePlan),
        Field(description="Path of a plan's file, or the plan itself."),
    ]
    on_mismatch: Annotated[
        Literal["error", "nearest"],
        Field(description="Another number of steps: refuse it, or take the nearest planned step."),
    ] = "error"

    def why_not(self, target: Target, gate: Gate[Any]) -> str | None:
        """Return why the plan is not one of this denoiser, or None."""
        if gate.type != "interval":
            return (
                "span 'planned_modules' says itself what is computed when, for all samples alike: "
                f"use gate 'interval', not {gate.type!r}"
            )
        if not any(True for _ in modules_in(target, self.plan.components)):
            return no_modules(target, self.plan.components)
        blocks = len(blocks_of(target))
        if blocks != self.plan.blocks:
            return (
                f"the plan is for {self.plan.blocks} blocks and {target.class_name} has {blocks}: "
                "evolve one for this model (skipstep.evolve_plan)"
            )
        return None

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return the modules."""
        return list(modules_in(target, self.plan.components))

    def full_work(self, target: Target) -> float:
        """Count the planned modules of an uncached call."""
        return float(sum(1 for _ in modules_in(target, self.plan.components)))

    def visit(
        self,
        place: Any,
        pass_: Pass,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run or replay one module."""
        key, step, plan = next_key(place.path, pass_), pass_.step, self.plan
        if step.count != plan.steps and self.on_mismatch == "error":
            raise ValueError(
                f"the plan is for {plan.steps} steps and this run has {step.count}: run "
                f"{plan.steps}, or set on_mismatch='nearest'"
            )
        at = min(nearest_step(step.index, step.count, plan.steps), plan.steps - 1)
        is_due = pass_.mode == "compute" or plan.computes(at, place.kind, place.block)
        if not is_due and pass_.knows_shape(key):
            pass_.spare(place)
            return replay(place, pass_, key)
        output = pass_.run(call_next, args, kwargs)
        keep_output(place, pass_, key, output)
        return output
