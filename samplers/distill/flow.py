"""Every denoiser as a straight flow, so that a recipe is written once.

  x_t = (1 - t) x_0 + t eps,   v = dx_t/dt = eps - x_0,   x_0 = x_t - t v,   eps = x_t + (1 - t) v
A variance-preserving model sees y = alpha x_0 + sigma eps. With t = sigma / (alpha + sigma) that is
y = (alpha + sigma) x_t: the same picture at another scale, so its prediction turns into v by
algebra alone (Gao et al. 2024, "Diffusion Meets Flow Matching"). Its schedule ends at some t below
1; what is asked beyond is asked there, with x scaled to it, so that pure noise stays what its own
samplers begin with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "Bridge",
    "Condition",
    "DenoiserBridge",
    "Guided",
    "PlainBridge",
    "TOKENS",
    "Velocity",
    "as_rows",
    "joined",
    "parted",
    "vp_level",
    "vp_velocity",
    "with_negative",
]

Condition = Mapping[str, Tensor]
"""Keyword arguments of the denoiser, one row per sample; "a.b" is entry b of the argument a."""

NEGATIVE = "negative."
TOKENS = ("encoder_hidden_states", "encoder_attention_mask")
"""Arguments with one entry per token of the prompt, along axis 1."""


def with_negative(condition: Condition, negative: Condition) -> Condition:
    """Return a condition that holds a negative prompt beside the prompt."""
    return {**condition, **{NEGATIVE + name: value for name, value in negative.items()}}


def parted(condition: Condition) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the condition of the prompt and that of the negative prompt, empty without one."""
    own = {name: value for name, value in condition.items() if not name.startswith(NEGATIVE)}
    negative = {
        name.removeprefix(NEGATIVE): value
        for name, value in condition.items()
        if name.startswith(NEGATIVE)
    }
    return own, negative


def joined(condition: Condition) -> dict[str, Tensor]:
    """Return a condition whose tokens are the prompt's and then the negative prompt's.

    >>> both = {"encoder_hidden_states": torch.zeros(1, 3, 2)}
    >>> joined(with_negative(both, both))["encoder_hidden_states"].shape
    torch.Size([1, 6, 2])
    """
    own, negative = parted(condition)
    longer = {
        name: torch.cat([own[name], negative[name]], 1) for name in TOKENS if name in negative
    }
    return own | longer


class Velocity(Protocol):
    """A flow: v(x_t, t), or the mean velocity from t to s where the network is told s."""

    def __call__(
        self,
        x: Float[Tensor, " b *size"],
        t: Float[Tensor, " b"],
        condition: Condition,
        s: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b *size"]: ...


class Bridge(Protocol):
    """How a kind of network is asked for v."""

    def velocity(
        self,
        module: nn.Module,
        x: Float[Tensor, " b *size"],
        t: Float[Tensor, " b"],
        condition: Condition,
        s: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b *size"]: ...


def as_rows(t: Float[Tensor, " b"], x: Float[Tensor, " b *size"]) -> Float[Tensor, " b *ones"]:
    """Return `t` with as many axes as `x`, to multiply it row by row."""
    return t.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)


@dataclass(frozen=True)
class PlainBridge:
    """A module that is a flow already: module(x, t[, s], **condition).

    A negative prompt's tokens follow the prompt's (`joined`).
    """

    def velocity(
        self,
        module: nn.Module,
        x: Float[Tensor, " b *size"],
        t: Float[Tensor, " b"],
        condition: Condition,
        s: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b *size"]:
        """Return the module's own answer."""
        named = joined(condition)
        v: Tensor = module(x, t, **named) if s is None else module(x, t, s, **named)
        return v


@dataclass(frozen=True)
class DenoiserBridge:
    """A diffusers denoiser: how its arguments are called, and what its answer means.

    `prediction` is the scheduler's prediction type. A flow model is given `time_scale` times t, a
    variance-preserving one the index into `alphas_cumprod`, between two entries where t falls
    between them. `constants` go into every call.
    """

    prediction: str
    sample_name: str = "hidden_states"
    time_name: str = "timestep"
    time_scale: float = 1000.0
    alphas_cumprod: Tensor | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = ("flow_prediction",) if self.alphas_cumprod is None else VP_PREDICTIONS
        if self.prediction not in known:
            raise ValueError(
                f"prediction={self.prediction!r} cannot be distilled: a model "
                f"{'without' if self.alphas_cumprod is None else 'with'} alphas_cumprod predicts "
                f"one of {', '.join(known)}"
            )

    def velocity(
        self,
        module: nn.Module,
        x: Float[Tensor, " b *size"],
        t: Float[Tensor, " b"],
        condition: Condition,
        s: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b *size"]:
        """Return v at (x_t, t); raises ValueError if asked for a jump to s."""
        if s is not None:
            raise ValueError(
                "a diffusers denoiser knows one time, and this recipe trains a map between two: "
                "use one of the recipes whose student is a velocity (docs/distill.md)"
            )
        if self.alphas_cumprod is None:
            return self._ask(module, x, self.time_scale * t, condition)
        alpha, sigma, index = vp_level(self.alphas_cumprod.to(x.device), t)
        alpha, sigma, asked = (as_rows(each, x) for each in (alpha, sigma, t))
        last = sigma / (alpha + sigma)
        x = torch.where(asked > last + 1e-4, x * last / asked.clamp(min=1e-9), x)
        answer = self._ask(module, x * (alpha + sigma), index, condition)
        return vp_velocity(self.prediction, answer, x, alpha, sigma)

    def _ask(self, module: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        given = joined(condition)
        named = {**self.constants, **given, self.sample_name: x, self.time_name: time}
        answer = module(**nested({**named, "return_dict": False}))[0]
        if answer.shape[1] == 2 * x.shape[1]:
            answer = answer.chunk(2, dim=1)[0]  # the other half is a learned variance
        result: Tensor = answer.to(x.dtype)
        return result


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments with "a.b" as entry b of the mapping a.

    >>> nested({"a.b": 1, "c": 2})
    {'c': 2, 'a': {'b': 1}}
    """
    found = {name: value for name, value in named.items() if "." not in name}
    for name, value in named.items():
        outer, _, inner = name.partition(".")
        if inner:
            found[outer] = {**found.get(outer, {}), inner: value}
    return found


VP_PREDICTIONS = ("epsilon", "v_prediction", "sample")


def vp_velocity(
    prediction: str,
    answer: Float[Tensor, " b *size"],
    x: Float[Tensor, " b *size"],
    alpha: Float[Tensor, " b *ones"],
    sigma: Float[Tensor, " b *ones"],
) -> Float[Tensor, " b *size"]:
    """Return v from what a variance-preserving model answers at (alpha + sigma) x."""
    t = sigma / (alpha + sigma)
    if prediction == "epsilon":
        return (answer - x) / (1 - t)  # x = x_0 + t v, eps = x_0 + v
    x_0 = answer if prediction == "sample" else alpha * (alpha + sigma) * x - sigma * answer
    return (x - x_0) / t


def vp_level(
    alphas_cumprod: Float[Tensor, " n"], t: Float[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return alpha, sigma and the float index of flow time t in a variance-preserving schedule.

    Between two entries log(sigma / alpha) is linear in the index; outside the first or last counts.
    """
    squared = alphas_cumprod.double()
    levels = (0.5 * ((1 - squared) / squared).log()).contiguous()  # log(sigma / alpha), rising
    asked = (t.double() / (1 - t.double()).clamp(min=1e-9)).clamp(min=1e-9).log()
    asked = asked.clamp(levels[0], levels[-1]).contiguous()
    above = torch.searchsorted(levels, asked).clamp(1, len(levels) - 1)
    index = above - 1 + (asked - levels[above - 1]) / (levels[above] - levels[above - 1])
    alpha = torch.rsqrt(1 + (2 * asked).exp())
    sigma = asked.exp() * alpha
    return alpha.to(t.dtype), sigma.to(t.dtype), index.to(t.dtype)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) around a flow.

    v = v(empty) + scale (v(condition) - v(empty)), both in one batch; `empty` is the condition of
    no prompt, with one row, unless the condition brings a negative prompt along.
    """

    flow: Velocity
    scale: float = 1.0
    empty: Condition = field(default_factory=dict)

    def __call__(
        self,
        x: Float[Tensor, " b *size"],
        t: Float[Tensor, " b"],
        condition: Condition,
        s: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b *size"]:
        """Return the guided velocity; at scale 1 the flow's own."""
        condition, negative = parted(condition)
        empty = {**self.empty, **negative}
        if self.scale == 1 or not empty:
            return self.flow(x, t, condition, s)
        both = {
            name: torch.cat([empty[name].expand_as(value), value])
            for name, value in condition.items()
        }
        twice = None if s is None else torch.cat([s, s])
        without, along = self.flow(torch.cat([x, x]), torch.cat([t, t]), both, twice).chunk(2)
        return without + self.scale * (along - without)
