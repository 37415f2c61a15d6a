"""First-block gate: skip while the first block's residual stays close to its last computed value.

First Block Cache (ParaAttention, Cheng 2024; no paper), in the family of TeaCache (Liu et al. 2024,
arXiv:2411.19108). It saves all blocks but the first on quiet steps and needs no calibration; it
fails where the first block does not show what the later ones do, and on models whose first block
costs much of the whole.

With p_i = out_0 - in_0 of block 0 at step i and a_1 the last computed step of the same sample,
    d = mean|p_i - p_a1| / mean|p_a1|,    skip iff d < threshold.
p is kept on computed steps only, so slow drift adds up against p_a1 until it is noticed.

DBCache (cache-dit) is this gate with three options more: p is taken behind the first `front`
blocks, out_(front-1) - in_0; at most `max_cached` steps of a run are skipped; and the distances of
the steps skipped in a row may not add up to more than `max_accumulated`. The order of checks is
cache-dit's: warm-up and the limit of skips in a row (the engine's), cached steps, accumulated
distance, d.

Differs from the authors' code: every sample of a batch decides for itself, and a distance that is
not a finite number is computed and said, instead of being compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pydantic
from jaxtyping import Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step
from skipstep.caching.history import keep_rows
from skipstep.kernels.relative_l1 import relative_l1

__all__ = ["FirstBlockGate", "FirstBlockState", "compare"]


def compare(value: float, threshold: float) -> Choice:
    """Return the choice for a change of size `value`: skip iff it is finite and below `threshold`.

    >>> compare(0.04, 0.05).compute, compare(0.05, 0.05).why, compare(float("nan"), 1.0).why
    (False, 'changed', 'not finite')
    """
    if not math.isfinite(value):
        return Choice(True, "not finite", value, threshold)
    if value < threshold:
        return Choice(False, "small change", value, threshold)
    return Choice(True, "changed", value, threshold)


@dataclass(slots=True)
class FirstBlockState:
    """Hold p_a1 of every row, and which rows have one.

    `cached` counts a row's skips, `total` sums their distances since its last computed step;
    `before` is both as they were before the step in progress.
    """

    anchor: Tensor | None
    known: list[bool]
    cached: list[int]
    total: list[float]
    before: list[tuple[int, float]]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FirstBlockGate(Gate[FirstBlockState]):
    """Skip a sample while its first block's residual is near the one of its last computed step."""

    looks_at: ClassVar[LooksAt] = "first_block"

    type: Annotated[Literal["first_block"], Field(description="Tag of this gate.")] = "first_block"
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="Largest relative change of the first block that is skipped; 0 skips none.",
        ),
    ] = 0.1
    front: Annotated[
        int, Field(ge=1, le=100, description="F: blocks that always run and are looked at.")
    ] = 1
    max_cached: Annotated[
        int | None, Field(ge=1, description="Most steps skipped in a run; None means no limit.")
    ] = None
    max_accumulated: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Most that the changes of skips in a row add up to; None means no limit.",
        ),
    ] = None

    def init(self, rows: int) -> FirstBlockState:
        """Return a state that knows no row."""
        return FirstBlockState(
            anchor=None,
            known=[False] * rows,
            cached=[0] * rows,
            total=[0.0] * rows,
            before=[(0, 0.0)] * rows,
        )

    def decide(
        self, state: FirstBlockState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Compare every row with its own last computed step; one host synchronisation."""
        if signal is None:
            raise ValueError("the first_block gate was given no signal: pass the first residual")
        if state.anchor is None:
            return [Choice(True, "no history")] * len(state.known)
        distances: Sequence[float] = relative_l1(signal, state.anchor).tolist()
        return [self._decide_row(state, row, d) for row, d in enumerate(distances)]

    def _decide_row(self, state: FirstBlockState, row: int, d: float) -> Choice:
        """Check one row in cache-dit's order, and count the skip until `observe` takes it back."""
        state.before[row] = state.cached[row], state.total[row]
        if not state.known[row]:
            return Choice(True, "no history")
        if self.max_cached is not None and state.cached[row] >= self.max_cached:
            return Choice(True, "cached limit", d, self.threshold)
        total = state.total[row] + d
        if self.max_accumulated is not None and total > self.max_accumulated:
            return Choice(True, "accumulated", total, self.max_accumulated)
        choice = compare(d, self.threshold)
        if not choice.compute:
            state.cached[row], state.total[row] = state.cached[row] + 1, total
        return choice

    def observe(self, state: FirstBlockState, seen: Seen) -> None:
        """Take the computed rows' residuals as their new reference."""
        if seen.signal is None:
            raise ValueError("the first_block gate was shown no signal: pass the first residual")
        state.anchor = keep_rows(state.anchor, seen.signal, seen.rows, len(state.known))
        for row in seen.rows:
            state.known[row] = True
            # The engine may have computed a step that this gate had counted as skipped.
            state.cached[row], state.total[row] = state.before[row][0], 0.0
