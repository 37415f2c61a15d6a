"""EasyCache's gate: accumulate the output change that the input change predicts.

"Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching", Zhou et
al. 2025 (arXiv:2507.02860). It looks only at what enters and leaves the denoiser, so it serves any
model and its skips cost nothing; it fails where the output reacts to the input at a rate that
changes between computed steps.

With x_i and v_i the denoiser's input and output and a_1 > a_2 the last computed steps of a sample,
    rate k  = mean|v_a1 - v_a2| / mean|x_a1 - x_a2|                     on computed steps
    E      += k mean|x_i - x_(i-1)| / mean|v_a1|                        on every step
    skip iff E < threshold; a computed step sets E = 0.
Sums of step-to-step changes do not fall when x turns back, unlike a distance to the last anchor.

Differs from the authors' code: every sample decides for itself; each guidance branch has its own
state, so nothing decides for another branch; the rate is known after two computed steps and until
then the sample is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Float, Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step
from skipstep.caching.gates.first_block import compare
from skipstep.caching.history import keep_rows
from skipstep.kernels.relative_l1 import mean_absolute, mean_absolute_difference

__all__ = ["EasyCacheGate", "EasyCacheState"]


@dataclass(slots=True)
class EasyCacheState:
    """Hold the tensors of the equations for all rows.

    `x` is x_(i-1), `x_anchor` and `v_anchor` are x_a1 and v_a1, `scale` is k / mean|v_a1|, `error`
    is E, `computed` counts a row's computed steps.
    """

    computed: list[int]
    error: list[float]
    x: Tensor | None = None
    x_anchor: Tensor | None = None
    v_anchor: Tensor | None = None
    scale: Float[Tensor, " b"] | None = None


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class EasyCacheGate(Gate[EasyCacheState]):
    """Skip a sample while the accumulated, predicted relative change of its output is small."""

    looks_at: ClassVar[LooksAt] = "input"

    type: Annotated[Literal["easycache"], Field(description="Tag of this gate.")] = "easycache"
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="tau: accumulated relative output change that forces a step; 0 skips none.",
        ),
    ] = 0.05

    def init(self, rows: int) -> EasyCacheState:
        """Return a state that has seen nothing."""
        return EasyCacheState(computed=[0] * rows, error=[0.0] * rows)

    def decide(
        self, state: EasyCacheState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Add this step's predicted change to E and compare; one host synchronisation."""
        if signal is None:
            raise ValueError("the easycache gate was given no signal: pass the denoiser's input")
        previous, scale = state.x, state.scale
        # A pipeline may update its latents in place, so the input is copied.
        state.x = signal.detach().clone()
        if previous is None or scale is None:
            return [Choice(True, "no history")] * len(state.computed)
        changes: Sequence[float] = (scale * mean_absolute_difference(signal, previous)).tolist()
        choices = []
        for row, change in enumerate(changes):
            if state.computed[row] < 2:
                choices.append(Choice(True, "no history"))
                continue
            state.error[row] += change
            choices.append(compare(state.error[row], self.threshold))
        return choices

    def observe(self, state: EasyCacheState, seen: Seen) -> None:
        """Renew the rate and the anchors of the computed rows and set their E to 0."""
        if seen.signal is None:
            raise ValueError("the easycache gate was shown no signal: pass the denoiser's input")
        rows, count = seen.rows, len(state.computed)
        x, v = seen.signal.detach().clone(), seen.output.detach().clone()
        if state.x_anchor is not None and state.v_anchor is not None:
            x_before, v_before = state.x_anchor, state.v_anchor
            if len(rows) < count:
                index = torch.tensor(rows, device=x.device)
                x_before, v_before = (t.index_select(0, index) for t in (x_before, v_before))
            k = mean_absolute_difference(v, v_before) / mean_absolute_difference(x, x_before)
            state.scale = keep_rows(state.scale, k / mean_absolute(v), rows, count)
        state.x_anchor = keep_rows(state.x_anchor, x, rows, count)
        state.v_anchor = keep_rows(state.v_anchor, v, rows, count)
        for row in rows:
            state.computed[row] += 1
            state.error[row] = 0.0
