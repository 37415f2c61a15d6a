"""Fitted weights: least squares over recorded runs, a set of weights of its own for every skipped
step.

A planned schedule says from which computed steps a_1 > .. > a_n a skipped step k is forecast, and
recorded runs say what the feature was there (`skipstep.caching.trajectory`). So no polynomial has
to be assumed, F_hat_k = sum_m w_m F(a_m) with
    w = argmin_w  mean over runs of |sum_m w_m F(a_m) - F_k|^2 + s^2 |F|^2 sum_m w_m^2   (1)
      = (G_aa + s^2 g I)^-1 G_ak,   G the Gram matrix, g the mean of its diagonal over a    (2)
s is the `noise` of a computed value relative to its norm: a run that skips computes from a latent
that is a little off, and rounds. It keeps the weights of nearly equal anchors small, as
`max_noise_gain` does for polynomials.

It errs less than any polynomial where skips are short and falls behind half a line where they are
long, because a run with long skips is no longer like the recorded ones (docs/caching.md). It knows
one schedule of one model only: where a run computed other steps, half a line stands in.

Nothing of a paper: the weights of a linear predictor (Wiener 1949) whose covariance is measured.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

import pydantic
import torch
from jaxtyping import Float, Float64
from pydantic import BeforeValidator, ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Forecaster
from skipstep.caching.forecasters.damped import Damped
from skipstep.caching.gates.schedule import Schedule, read_schedule

__all__ = ["HALF_A_LINE", "Fitted", "fit_weights"]

# Half of the way along the line through the last two computed values. On the reference model it
# beat reuse, whole lines and higher orders at half of the steps (python -m benchmarks.schedules).
HALF_A_LINE = Damped(damping=0.5)


def fit_weights(
    gram: Float[Tensor, "t t"], anchors: Sequence[int], steps: Sequence[int], *, noise: float
) -> Float64[Tensor, "k m"]:
    """Return the weights of `anchors` (newest first) in the forecast of each of `steps`, Eq. (2).

    >>> t = torch.arange(4.0, dtype=torch.float64)
    >>> features = torch.stack([torch.ones(4, dtype=torch.float64), t])
    >>> fit_weights(features.T @ features, [1, 0], [3], noise=0).round(decimals=6)  # a line
    tensor([[ 3., -2.]], dtype=torch.float64)
    """
    a = torch.tensor(list(anchors))
    local = gram.double()[a]
    known = local[:, a]
    ridge = noise**2 * known.diagonal().mean() * torch.eye(len(a), dtype=torch.float64)
    # Equal anchors without noise have no single best weights; the smallest ones are taken.
    weights: Tensor = torch.linalg.lstsq(
        known + ridge, local[:, torch.tensor(list(steps))], driver="gelsd"
    ).solution
    return weights.T


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Fitted(Forecaster):
    """Weigh the last computed values as recorded runs say; planned with its schedule."""

    type: Annotated[Literal["fitted"], Field(description="Tag of this forecaster.")] = "fitted"
    values: Annotated[
        int, Field(ge=2, le=3, description="n: computed values a forecast is fitted to.")
    ] = 3
    noise: Annotated[
        float,
        Field(ge=0, le=1, allow_inf_nan=False, description="s: noise of a value by its norm."),
    ] = 0.01
    schedule: Annotated[
        Schedule | None,
        BeforeValidator(read_schedule, json_schema_input_type=str | Schedule | None),
        Field(description="Schedule with weights, or its path; None until one is planned."),
    ] = None

    def __post_init__(self) -> None:
        """Refuse a schedule whose weights are missing or do not fit."""
        if self.schedule is None:
            return
        most = max(map(len, self.schedule.weights), default=0)
        if not self.schedule.weights and len(self.schedule.compute) < self.schedule.steps:
            raise ValueError(
                "the schedule holds no weights: plan it with forecaster 'fitted', or use 'damped'"
            )
        if most > self.values:
            raise ValueError(
                f"values={self.values}, but the schedule weighs {most}: set values={most}"
            )

    @property
    def anchors(self) -> int:
        """Tell how many computed values are weighed."""
        return self.values

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return the fitted weights, or half a line for a step that was not planned."""
        found = self._table.get((at, tuple(times)))
        return HALF_A_LINE.weights(times, at) if found is None else list(found)

    @cached_property
    def _table(self) -> dict[tuple[float, tuple[float, ...]], tuple[float, ...]]:
        """Return the weights by step and times of the anchors."""
        planned = Schedule(steps=1, compute=(0,)) if self.schedule is None else self.schedule
        return {
            (float(step), tuple(map(float, anchors[: len(weights)]))): weights
            for (step, anchors), weights in zip(planned.skipped(), planned.weights, strict=False)
        }
