"""Damped: a linear forecaster that trusts its differences less, or no more than noise allows.

Two brakes on any linear forecast F_hat = sum_j w_j F_j:

damping gamma: what the forecast adds to the newest value is shrunk,
    F_hat = F_1 + (1 - gamma) (sum_j w_j F_j - F_1)
so gamma = 0 is the forecaster itself and gamma = 1 is reuse.

max_noise_gain: if every computed value carries independent noise of variance s^2 (quantised
activations: each forward pass rounds differently), the forecast's noise has variance
    s^2 sum_j w_j^2,   a gain of g = sqrt(sum_j w_j^2) over a computed value;   reuse has g = 1
(Lagrange, even spacing, one step on: order 2 sqrt(5) = 2.2, order 3 sqrt(19) = 4.4). Anchors are
left out, oldest first, which lowers the order, until g is within the limit. What limit? Reuse errs
by the change c over the skip and by its noise, c^2 + s^2; a forecast that got the change right errs
by g^2 s^2. It is worth having while g^2 s^2 < c^2 + s^2, that is
    g < sqrt(1 + (c / s)^2)
which is `allowed_noise_gain`. Measure s as the relative L1 distance of one step run quantised and
in bf16, c as that of two computed steps one skip apart. A fit over many values (`chebyshev`) has a
low gain; damping lowers it too and is counted.

Nothing of a paper; the observation that extrapolation under 8-bit activations amplifies noise is in
NVIDIA cosmos-framework, pull request 247.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field, SerializeAsAny, WrapValidator

from skipstep.caching.base import FeatureForecaster, Forecaster
from skipstep.caching.forecasters.chebyshev import Chebyshev
from skipstep.caching.forecasters.foca import FoCaForecaster
from skipstep.caching.forecasters.hermite import Hermite
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.forecasters.taylor import Taylor

__all__ = ["Damped", "MaxNoiseGain", "allowed_noise_gain", "longest_skip", "noise_gain"]
__all__ += ["with_noise_limit"]


def noise_gain(weights: Sequence[float]) -> float:
    """Return how much more noise a weighted sum has than one of its terms: sqrt(sum w^2).

    >>> noise_gain([1.0]), round(noise_gain([2.0, -1.0]), 3)
    (1.0, 2.236)
    """
    return math.sqrt(sum(w * w for w in weights))


def allowed_noise_gain(*, change: float, noise: float) -> float:
    """Return the largest noise gain worth having: sqrt(1 + (change / noise)^2).

    `change` is the relative change of the feature over a skip, `noise` that of running the same
    step quantised. Raises ValueError where one is negative or `noise` is zero.

    >>> round(allowed_noise_gain(change=0.02, noise=0.012), 2)  # below 2.24: reuse, not a line
    1.94
    """
    if not (change >= 0 and noise > 0 and math.isfinite(change / noise)):
        raise ValueError(
            f"allowed_noise_gain was given change={change}, noise={noise}: change must be at least "
            "0 and noise above 0; without noise no limit is needed"
        )
    return math.sqrt(1 + (change / noise) ** 2)


def longest_skip(
    forecaster: Forecaster, *, interval: int, max_noise_gain: float, most: int = 100
) -> int:
    """Return how many skips in a row keep the forecast's noise gain within the limit, when the
    computed steps lie `interval` apart; at most `most`.

    >>> line = Lagrange(order=2)
    >>> longest_skip(line, interval=1, max_noise_gain=2.3)
    1
    >>> longest_skip(line, interval=4, max_noise_gain=2.3)
    4
    """
    times = [-float(interval * j) for j in range(forecaster.anchors)]
    for skips in range(1, most + 1):
        if noise_gain(forecaster.weights(times, float(skips))) > max_noise_gain + 1e-9:
            return skips - 1
    return most


def _read(value: Any, handler: Callable[[Any], Any]) -> Any:
    if isinstance(value, FeatureForecaster):
        raise ValueError(f"forecaster={value.type!r} is not linear and cannot be damped")
    if isinstance(value, Forecaster):
        return value
    return handler({"type": value} if isinstance(value, str) else value)


LinearForecaster = Annotated[
    Annotated[
        Reuse | Taylor | Lagrange | Hermite | FoCaForecaster | Chebyshev,
        Field(discriminator="type"),
    ],
    WrapValidator(_read),
    SerializeAsAny(),
]
MaxNoiseGain = Annotated[
    float | None,
    Field(
        ge=1,
        allow_inf_nan=False,
        description="Largest sqrt(sum w^2) of a forecast; a lower order is taken above it. None "
        "means no limit, 1 means reuse.",
    ),
]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Damped(Forecaster):
    """Put brakes on any linear forecaster."""

    type: Annotated[Literal["damped"], Field(description="Tag of this forecaster.")] = "damped"
    forecaster: Annotated[LinearForecaster, Field(description="What is damped.")] = Lagrange()
    damping: Annotated[
        float,
        Field(ge=0, le=1, allow_inf_nan=False, description="gamma: share of the differences lost."),
    ] = 0.1
    max_noise_gain: MaxNoiseGain = None

    @property
    def anchors(self) -> int:
        """Tell what the damped forecaster wants."""
        return self.forecaster.anchors

    def for_run(self, count: int, shape: tuple[int, ...]) -> Forecaster:
        """Return the brakes around the forecaster as it is in this run."""
        inner = self.forecaster.for_run(count, shape)
        return replace(self, forecaster=inner)  # type: ignore[arg-type]  # any linear one

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return the weights of the anchors, newest first."""
        for used in range(len(times), 0, -1):
            weights = [(1 - self.damping) * w for w in self.forecaster.weights(times[:used], at)]
            weights[0] += self.damping
            # Reuse has gain 1, which every limit allows; rounding must not get in its way.
            if self.max_noise_gain is None or noise_gain(weights) <= self.max_noise_gain + 1e-9:
                return weights + [0.0] * (len(times) - used)
        return [1.0] + [0.0] * (len(times) - 1)


def with_noise_limit(forecaster: Forecaster, max_noise_gain: float | None) -> Forecaster:
    """Return a linear forecaster under a limit of its noise gain; None leaves it as it is."""
    if max_noise_gain is None:
        return forecaster
    return Damped(forecaster=forecaster, damping=0, max_noise_gain=max_noise_gain)  # type: ignore[arg-type]
