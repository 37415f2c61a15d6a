"""SeaCache's gate: accumulate how much of the input's change is signal, by a Wiener filter.

"SeaCache: Spectral-Evolution-Aware Cache for Accelerating Diffusion Models", CVPR 2026. It looks at
the latents alone and needs no calibration: early steps, where only the lowest frequencies carry
picture, are judged on those. It fails where the scheduler does not tell the noise level (then every
step is computed, and the report says "no noise level").

With the input x_i = a x_0 + b eps, f the frequency of one axis in cycles per sample and S(f) the
expected power of pictures along it,
    S(f) = 1 / (|f|^3 + floor),   g(f) = a S / (a^2 S + b^2),   G = product of g over the axes
    q_i = IFFT(G / mean(G) * FFT(x_i))   over the latent's frames, height and width
    A += mean|q_i - q_(i-1)| / mean|q_(i-1)|
    skip iff A < threshold; a computed step sets A = 0.
For flow matching a = 1 - sigma, b = sigma. The factor a leaves G / mean(G) as it is and is left
out, so that a = 0 (pure noise) needs no case of its own.

Differs from the authors' code: written from the formulas alone; `floor` is ours to choose; every
sample and guidance branch decides for itself; latents packed into tokens are unfolded to a square
when their number is one, else filtered along their order, unless `grid` tells their axes.
"""

import math
from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Float, Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step
from skipstep.caching.gates.first_block import compare
from skipstep.caching.gates.teacache import AccumulatedState

__all__ = ["SeaCacheGate", "unfold", "wiener"]


def wiener(
    x: Float[Tensor, "b c ..."], *, a: float, b: float, floor: float
) -> Float[Tensor, "b c ..."]:
    """Filter [b, c, *axes] over all its axes as above, in fp32.

    Without noise the filter does nothing:

    >>> x = torch.randn(1, 2, 4, 4)
    >>> bool(torch.allclose(wiener(x, a=1.0, b=0.0, floor=1e-3), x, atol=1e-6))
    True
    """
    axes = tuple(range(2, x.ndim))
    gain = torch.ones((), device=x.device)
    for axis in axes:
        power = 1 / (torch.fft.fftfreq(x.shape[axis], device=x.device).abs() ** 3 + floor)
        g = power / (a * a * power + b * b)
        gain = gain * g.reshape(-1, *[1] * (x.ndim - 1 - axis))
    spectrum = torch.fft.fftn(x.float(), dim=axes)
    filtered: Tensor = torch.fft.ifftn(spectrum * (gain / gain.mean()), dim=axes).real
    return filtered


def unfold(x: Float[Tensor, "b ..."], grid: tuple[int, ...] | None) -> Float[Tensor, "b c ..."]:
    """Return the latents as [b, c, *axes]; tokens [b, n, c] are laid out on `grid`, or a square.

    Raises ValueError when the grid does not have n places.

    >>> unfold(torch.zeros(1, 6, 2), (2, 3)).shape, unfold(torch.zeros(1, 9, 2), None).shape
    (torch.Size([1, 2, 2, 3]), torch.Size([1, 2, 3, 3]))
    """
    if x.ndim == 2:
        return x.unsqueeze(1)
    if x.ndim != 3:
        return x
    n, side = x.shape[1], math.isqrt(x.shape[1])
    axes = grid or ((side, side) if side * side == n else (n,))
    if math.prod(axes) != n:
        raise ValueError(
            f"grid {axes} has {math.prod(axes)} places and the latents have {n} tokens: "
            "give frames, height and width of the packed latents, or leave grid out"
        )
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *axes)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SeaCacheGate(Gate[AccumulatedState]):
    """Skip a sample while the accumulated change of its filtered input is small."""

    looks_at: ClassVar[LooksAt] = "input"
    needs_noise: ClassVar[bool] = True

    type: Annotated[Literal["seacache"], Field(description="Tag of this gate.")] = "seacache"
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="delta: accumulated change that forces a step; 0 skips none.",
        ),
    ] = 0.25
    floor: Annotated[
        float,
        Field(gt=0, le=1, allow_inf_nan=False, description="Keeps S finite at frequency 0."),
    ] = 1e-3
    grid: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None,
        Field(
            min_length=1,
            max_length=3,
            description="Axes of latents packed into tokens; None takes a square or one line.",
        ),
    ] = None

    def init(self, rows: int) -> AccumulatedState:
        """Return a state that has seen nothing."""
        return AccumulatedState([0.0] * rows)

    def decide(
        self, state: AccumulatedState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Add this step's filtered change to A and compare; one host synchronisation."""
        if signal is None:
            raise ValueError("the seacache gate was given no signal: pass the denoiser's input")
        if step.noise is None:
            state.previous = None
            return [Choice(True, "no noise level")] * len(state.total)
        a, b = step.noise
        q = wiener(unfold(signal.detach(), self.grid), a=a, b=b, floor=self.floor)
        changes = state.changes(q)
        if changes is None:
            return [Choice(True, "no history")] * len(state.total)
        for row, change in enumerate(changes):
            state.total[row] += change
        return [compare(total, self.threshold) for total in state.total]

    def observe(self, state: AccumulatedState, seen: Seen) -> None:
        """Set A of the computed rows to 0."""
        for row in seen.rows:
            state.total[row] = 0.0
