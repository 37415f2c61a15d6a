"""Each module's own choice (Foresight): repeat what changes less than it did in the warm-up.

Adnan, Kurella, Arunkumar, Nair 2025, "Foresight: Adaptive Layer Reuse for Accelerated and
High-Quality Text-to-Video Generation" (arXiv:2506.00329). Layers change at different speeds, so one
decision for all of them reuses some too early and some too late. For module l with output x, and
C the stored one,

    lambda_l = sum over the warm-up steps t of 10^(t - W) MSE(x_t, x_(t-1))
    delta_l = MSE(x_t, C), taken whenever the module is computed
    on a skip: reuse C while delta_l <= gamma lambda_l, else compute, and take delta_l anew

The gate says which steps leave the choice to the modules; the others compute them all. The warm-up
ends with a sample's first skip, and every sample has thresholds of its own. With a forecaster other
than reuse C is its forecast. Decisions are read from the device together: one host synchronisation
a skip.

Differs from the authors' code: the unit is an attention's or a feed-forward's output, so that the
block's modulation by the current timestep stays exact, not a whole block's; lambda looks back over
all of the warm-up, not its last three steps, a difference below 0.1 %.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from skipstep.caching.base import Gate, Span
from skipstep.caching.passes import Pass, Target
from skipstep.caching.spans.modules import (
    Key,
    ModuleKind,
    keep_output,
    modules_in,
    next_key,
    no_modules,
    replay,
)
from skipstep.caching.tree import join_rows, select_rows, tensors_in

__all__ = ["Layers", "Tolerance", "mean_square"]

MEMORY_OF_LAMBDA = 0.1
"""What a step of the warm-up counts for beside the next one."""

Tolerance = Annotated[
    float,
    Field(
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="gamma: change that is repeated, in changes of the warm-up.",
    ),
]


def mean_square(
    x: Float[Tensor, "n ..."], before: Float[Tensor, "n ..."], rows: int
) -> Float[Tensor, " rows"]:
    """Return the mean square of x - before for each of `rows` samples, which share n evenly.

    >>> mean_square(torch.tensor([[1.0], [3.0], [0.0], [0.0]]), torch.zeros(4, 1), 2)
    tensor([5., 0.])
    """
    return (x - before).float().square().reshape(rows, -1).mean(1)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Layers(Span):
    """Let every module repeat its output while it changes less than in the warm-up."""

    reaches_into_blocks: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    type: Annotated[Literal["layers"], Field(description="Tag of this span.")] = "layers"
    kinds: Annotated[
        tuple[ModuleKind, ...],
        Field(min_length=1, max_length=4, description="Which modules are cached."),
    ] = ("attention", "temporal_attention", "cross_attention", "feed_forward")
    tolerance: Tolerance = 4.0

    def why_not(self, target: Target, gate: Gate[Any]) -> str | None:
        """Return why this denoiser has no such modules, or None."""
        if gate.looks_at in ("first_block", "modulated"):
            return (
                f"gate {gate.type!r} decides inside or behind blocks, which span 'layers' does not "
                "watch: use a gate that looks at the step ('interval') or the input ('easycache')"
            )
        found = any(True for _ in modules_in(target, self.kinds))
        return None if found else no_modules(target, self.kinds)

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return the modules."""
        return list(modules_in(target, self.kinds))

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
        """Run or replay one module, each sample by its own choice."""
        key = next_key(place.path, pass_)
        clock = (place.clock, key[1])
        rows = range(len(pass_.rows))
        fresh = list(rows)
        if pass_.mode == "skip" and pass_.knows_shape(key):
            due = self._due(pass_).get(clock, [True] * len(pass_.rows))
            fresh = [j for j in rows if due[j]]
        rest = [j for j in rows if j not in fresh]
        pass_.spare(place, len(rest) / len(pass_.rows))
        if not fresh:
            return replay(place, pass_, key)
        part = _part(pass_, fresh)
        if rest:
            frames = (pass_.memory.per_row.get((*clock, 0), 1),)
            args, kwargs = (
                select_rows(each, fresh, len(rows), lists_are_rows=False, frames=frames)
                for each in (args, kwargs)
            )
        pass_.work += len(fresh)
        output = call_next(*args, **kwargs)
        if place.is_stored:
            _measure(part, key, tensors_in(output)[0])
        keep_output(place, part, key, output)
        pass_.feature = part.feature if pass_.mode == "compute" else pass_.feature
        if not rest:
            return output
        kept = replay(place, _part(pass_, rest), key)
        return join_rows([(output, fresh), (kept, rest)], len(rows))

    def _due(self, pass_: Pass) -> dict[Key, list[bool]]:
        """Return for every module which rows of this pass compute it, found once a pass."""
        if "due" not in pass_.trace:
            memory, rows = pass_.memory, pass_.rows
            keys: list[Key] = [tuple(key[1:]) for key in memory.notes if key[0] == "delta"]
            table = [
                ~(
                    memory.noted(("delta", *key), rows)
                    <= self.tolerance * memory.noted(("lambda", *key), rows)
                )
                for key in keys
            ]
            found = (
                torch.stack([each.to(table[0].device) for each in table]).tolist() if table else []
            )
            pass_.trace["due"] = dict(zip(keys, found, strict=True))
            if keys:
                ended = memory.noted(("delta", *keys[0]), rows).new_ones(len(rows))
                memory.note(("ended",), ended, rows)
        due: dict[Key, list[bool]] = pass_.trace["due"]
        return due


def _part(pass_: Pass, places: list[int]) -> Pass:
    """Return the pass of some of its rows."""
    at = None if pass_.at is None else [pass_.at[j] for j in places]
    return replace(pass_, rows=[pass_.rows[j] for j in places], at=at)


def _measure(pass_: Pass, key: Key, x: Tensor) -> None:
    """Take delta of a computed module, and lambda while the warm-up lasts."""
    memory, rows, stored = pass_.memory, pass_.rows, (*key, 0)
    if not pass_.has(stored) or not all(memory.histories[stored].ready(rows)):
        return
    delta = mean_square(x, pass_.guess(stored), len(rows))
    limit = ("lambda", *key)
    if limit not in memory.notes:
        memory.note(limit, delta.new_zeros(memory.rows), list(range(memory.rows)))
    before = memory.noted(limit, rows)
    now = MEMORY_OF_LAMBDA * before + delta
    if ("ended",) in memory.notes:
        now = torch.where(memory.noted(("ended",), rows).to(now.device) > 0, before, now)
    memory.note(limit, now, rows)
    memory.note(("delta", *key), delta, rows)
