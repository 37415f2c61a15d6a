"""Compute every N-th step: the static gate of FORA, TaylorSeer, AB-Cache and DeepCache.

Selvaraju et al. 2024 (FORA, arXiv:2407.01425); Ma, Fang, Wang 2023 (DeepCache, arXiv:2312.00858).
It saves the same share on every sample and looks at nothing, so it needs no host synchronisation;
it fails where the features change fast at steps the rhythm happens to skip.

Uniform, with warm-up w: step i is computed iff i < w or (i - w + 1) mod N = 0, that is N steps
after the last warm-up step and every N from there; w = 1 gives FORA's i mod N = 0.

Non-uniform (DeepCache, section 3.3): steps are computed most often around a centre c,
    { floor(sp(x, p) + c) : x = K evenly spaced values from sp(-c, 1/p) to below sp(T - c, 1/p) },
    sp(x, p) = sign(x) |x|^p,   K = ceil(T / N),   power p >= 1 (1 is uniform).
Values that fall on one step are computed once, so there can be fewer than K. N = 1 computes every
step in both forms.

Differs from the authors' code: the centre is a share of the run instead of a step number, so one
setting serves any number of steps; the power is used as given and not lowered until K distinct
steps come out.
"""

import math
from typing import Annotated, ClassVar, Literal

import pydantic
from jaxtyping import Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step

__all__ = ["IntervalGate", "centred_steps", "is_on_interval"]


def is_on_interval(index: int, *, interval: int, warmup_steps: int) -> bool:
    """Tell whether step `index` is computed by the uniform rhythm.

    >>> [i for i in range(12) if is_on_interval(i, interval=3, warmup_steps=2)]
    [0, 1, 4, 7, 10]
    """
    return index < warmup_steps or (index - warmup_steps + 1) % interval == 0


def centred_steps(count: int, *, interval: int, center: float, power: float) -> list[int]:
    """Return the steps of a run of `count` that the non-uniform rhythm computes, in order.

    `center` is a share of the run, 0 to 1.

    >>> centred_steps(20, interval=4, center=0.5, power=2.0)
    [0, 6, 9, 10, 13]
    """
    c = center * count
    start, stop = _signed_power(-c, 1 / power), _signed_power(count - c, 1 / power)
    refreshes = math.ceil(count / interval)
    grid = (start + (stop - start) * k / refreshes for k in range(refreshes))
    # The small shift undoes rounding such as 2.9999999999999996 for 3.
    steps = {math.floor(_signed_power(x, power) + c + 1e-9) for x in grid}
    return sorted(steps | {0})


def _signed_power(x: float, exponent: float) -> float:
    return math.copysign(abs(x) ** exponent, x)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class IntervalGate(Gate[int]):
    """Compute every `interval`-th step, the same for all samples."""

    looks_at: ClassVar[LooksAt] = "step"

    type: Annotated[Literal["interval"], Field(description="Tag of this gate.")] = "interval"
    interval: Annotated[int, Field(ge=1, description="N: one step in N is computed.")] = 3
    warmup_steps: Annotated[
        int | None,
        Field(ge=1, description="w: steps before the rhythm starts; None takes the plugin's."),
    ] = None
    center: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="c as a share of the run, for the non-uniform rhythm; None is uniform.",
        ),
    ] = None
    power: Annotated[
        float,
        Field(
            ge=1,
            le=4,
            allow_inf_nan=False,
            description="p: how strongly computed steps gather around the center.",
        ),
    ] = 1.4

    def init(self, rows: int) -> int:
        """Return the number of rows: the rhythm depends on the step alone."""
        return rows

    def decide(
        self, state: int, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Return the rhythm's choice, the same for every row."""
        return [Choice(self.computes(step), "interval")] * state

    def observe(self, state: int, seen: Seen) -> None:
        """Learn nothing."""

    def computes(self, step: Step) -> bool:
        """Tell whether the rhythm computes `step`, without running anything."""
        if self.center is not None and self.interval > 1:
            steps = centred_steps(
                step.count, interval=self.interval, center=self.center, power=self.power
            )
            return step.index in steps
        return is_on_interval(
            step.index, interval=self.interval, warmup_steps=self.warmup_steps or 1
        )
