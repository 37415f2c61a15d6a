"""AdaCache's gate: each computed step chooses how many of the next steps are skipped.

"Adaptive Caching for Faster Video Generation with Diffusion Transformers", Kahatapitiya et al. 2024
(arXiv:2411.02397). Nothing is looked at on skipped steps; it fails where the rate of change turns
up right after a step that looked quiet.

With D the span's feature and a_1 > a_2 the last computed steps of a sample,
    c = mean|D_a1 - D_a2| / mean|D_a2| / (a_1 - a_2),
    the next computed step is a_1 + n, n = codebook(c): the first entry (limit, n) with c < limit.
A rate above every limit, or one that is not finite, computes the next step.

Differs from the authors' code: D is the residual of the whole stack instead of one middle block's,
and c is relative to D; no motion score (MoReg); every sample has its own rate.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step
from skipstep.caching.history import keep_rows
from skipstep.kernels.relative_l1 import relative_l1

__all__ = ["AdaCacheGate", "AdaCacheState", "Codebook"]

Codebook = Annotated[
    tuple[
        tuple[
            Annotated[float, Field(gt=0, allow_inf_nan=False)], Annotated[int, Field(ge=1, le=100)]
        ],
        ...,
    ],
    Field(
        min_length=1, max_length=50, description="(limit of the rate, steps to the next) ascending."
    ),
]


@dataclass(slots=True)
class AdaCacheState:
    """Hold D_a1, a_1, the rate c and the next computed step of every row."""

    feature: Tensor | None
    last: list[int | None]
    rate: list[float | None]
    next: list[int]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AdaCacheGate(Gate[AdaCacheState]):
    """Compute a sample at the steps that its own rate of change sets."""

    looks_at: ClassVar[LooksAt] = "step"
    learns: ClassVar[bool] = True

    type: Annotated[Literal["adacache"], Field(description="Tag of this gate.")] = "adacache"
    codebook: Codebook = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2))

    def __post_init__(self) -> None:
        """Refuse a codebook whose limits do not ascend, or whose intervals grow with the rate."""
        limits, intervals = zip(*self.codebook, strict=True)
        if list(limits) != sorted(set(limits)) or list(intervals) != sorted(intervals)[::-1]:
            raise ValueError(
                f"codebook {self.codebook}: limits must ascend and intervals must not grow"
            )

    def init(self, rows: int) -> AdaCacheState:
        """Return a state that computes the next step of every row."""
        return AdaCacheState(None, [None] * rows, [None] * rows, [0] * rows)

    def decide(
        self, state: AdaCacheState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Compare the step with every row's next one; nothing is read from the device."""
        return [
            Choice(step.index >= due, "no history" if rate is None else "interval", rate)
            for due, rate in zip(state.next, state.rate, strict=True)
        ]

    def observe(self, state: AdaCacheState, seen: Seen) -> None:
        """Measure the computed rows' rates and set their next steps; one host synchronisation."""
        if seen.feature is None:
            raise ValueError("adacache was shown no feature: its span must give one")
        now, feature = seen.step.index, seen.feature.detach()
        rates: list[float | None] = [None] * len(seen.rows)
        if state.feature is not None:
            before = state.feature
            if len(seen.rows) < len(state.next):
                before = before.index_select(0, torch.tensor(seen.rows, device=before.device))
            changes = relative_l1(feature, before).tolist()
            for j, row in enumerate(seen.rows):
                last = state.last[row]
                if last is not None:
                    rates[j] = changes[j] / (now - last)
        state.feature = keep_rows(state.feature, feature, seen.rows, len(state.next))
        for row, rate in zip(seen.rows, rates, strict=True):
            state.last[row], state.rate[row] = now, rate
            state.next[row] = now + self.interval(rate)

    def interval(self, rate: float | None) -> int:
        """Return the steps to the next computed one.

        >>> gate = AdaCacheGate()
        >>> [gate.interval(rate) for rate in (0.0, 0.1, 0.39, 0.5, float("nan"), None)]
        [6, 5, 2, 1, 1, 1]
        """
        if rate is None or not math.isfinite(rate):
            return 1
        return next((steps for limit, steps in self.codebook if rate < limit), 1)
