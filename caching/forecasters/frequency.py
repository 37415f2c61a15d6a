"""FreqCa: repeat the low frequencies of a feature and extrapolate the high ones.

"FreqCa: Accelerating Diffusion Models via Frequency-Aware Caching", Liu et al. 2025. Low spatial
frequencies of neighbouring steps are said to be alike but not smooth in time, high ones to move
smoothly; where the low ones move, repeating them costs more than it saves. With the orthonormal
DCT-II over rows and columns of the picture's grid and P_n the projection of an axis of n entries on
its first round(cutoff n) cosines,
    low(F) = P_rows F P_columns,   high(F) = F - low(F)
    E(t) = Hermite forecast of order O (`hermite`),   F_hat(t) = low(F(a_1)) + high(E(t))
Exact on constants; cutoff = 0 is the Hermite forecast and cutoff = 1 is reuse.

The grid has to be known. A denoiser whose input is [channels, rows, columns] or [channels, frames,
rows, columns] tells it: features of that layout have it, and [tokens, channels] has it divided by
the one patch size that gives this many tokens. A denoiser that is fed packed tokens says only how
many there are: a square number is taken for a square picture, for another one give `grid`. Where
the main feature fits no grid the run is computed in full and its report says so. Other features
that do not fit (the text stream) have no spatial frequencies and are extrapolated whole. Frames are
filtered one by one.

Differs from the authors' code: cutoff and transform are not stated in what we have, so both are
ours; order 1 by default, theirs 2; the true anchor times divide every difference.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import pydantic
import torch
from jaxtyping import Float, Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import FeatureForecaster, Forecaster
from skipstep.caching.forecasters.hermite import hermite_weights
from skipstep.kernels.weighted_sum import weighted_sum

__all__ = ["FrequencySplit", "find_grid", "low_pass", "projection"]


def projection(size: int, kept: int) -> Float[Tensor, "n n"]:
    """Return the projection of `size` entries on their first `kept` DCT-II cosines, in float64.

    >>> projection(2, 1)
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]], dtype=torch.float64)
    """
    places = torch.arange(size, dtype=torch.float64) + 0.5
    waves = torch.arange(kept, dtype=torch.float64)[:, None]
    cosines = torch.cos(math.pi / size * waves * places) * math.sqrt(2 / size)
    cosines[:1] /= math.sqrt(2)
    return cosines.T @ cosines


def low_pass(
    x: Shaped[Tensor, "b ..."], grid: tuple[int, int], *, cutoff: float
) -> Float[Tensor, "b ..."]:
    """Return the low frequencies of `x`, [.., rows, columns] or [.., tokens, channels], in float32
    or wider.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    rows, columns = (projection(size, round(cutoff * size)).to(x.device, wide) for size in grid)
    if tuple(x.shape[-2:]) == grid:
        return rows @ x.to(wide) @ columns
    tokens = x.to(wide).reshape(*x.shape[:-2], -1, *grid, x.shape[-1])
    low = torch.einsum("rh,...hwc,kw->...rkc", rows, tokens, columns)
    return low.flatten(-4, -2)


def find_grid(
    shape: tuple[int, ...], inputs: tuple[int, ...], given: tuple[int, int] | None = None
) -> tuple[int, int] | None:
    """Return rows and columns of a feature of `shape`, or None where its layout is not known.

    `shape` and `inputs`, that of the denoiser's main input, are without the batch; `inputs` is
    empty for a list of inputs. `given` is the token grid where the user knows it.

    >>> find_grid((24, 64), (16, 8, 12)), find_grid((9, 4), (9, 4)), find_grid((77, 64), (9, 4))
    ((4, 6), (3, 3), None)
    """
    if len(shape) >= 3 and (not inputs or shape[-2:] == inputs[-2:]):
        return shape[-2], shape[-1]
    if len(shape) < 2:
        return None
    tokens = shape[-2]
    if given is not None:
        return given if tokens % (given[0] * given[1]) == 0 else None
    if len(inputs) >= 3:
        height, width = inputs[-2:]
        # Video is [channels, frames, ...] or [frames, channels, ...]; frames may be in the batch.
        for frames in (inputs[1], inputs[0], 1) if len(inputs) > 3 else (1,):
            for patch in range(1, min(height, width) + 1):
                rows, columns = height // patch, width // patch
                if height % patch == width % patch == 0 and tokens == frames * rows * columns:
                    return rows, columns
        return None
    side = math.isqrt(tokens)
    return (side, side) if inputs[:1] == (tokens,) and side * side == tokens else None


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FrequencySplit(FeatureForecaster):
    """Repeat low spatial frequencies and extrapolate high ones."""

    type: Annotated[Literal["frequency"], Field(description="Tag of this forecaster.")] = (
        "frequency"
    )
    cutoff: Annotated[
        float,
        Field(ge=0, le=1, allow_inf_nan=False, description="Share of each axis that is low."),
    ] = 0.1
    order: Annotated[
        int, Field(ge=1, le=4, description="O: highest difference used for high frequencies.")
    ] = 1
    sigma: Annotated[
        float, Field(gt=0, le=1, allow_inf_nan=False, description="Scale of `hermite`.")
    ] = 0.6
    grid: Annotated[
        tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None,
        Field(description="Rows and columns of the tokens, where the input does not tell."),
    ] = None
    inputs: Annotated[
        tuple[int, ...],
        Field(description="Shape of the denoiser's input without the batch; a run fills it in."),
    ] = ()

    @property
    def anchors(self) -> int:
        """Tell that O differences take O + 1 computed values."""
        return self.order + 1

    def for_run(self, count: int, shape: tuple[int, ...]) -> Forecaster:
        """Return this forecaster with the shape of the run's input."""
        return replace(self, inputs=shape)

    def why_not(self, shape: tuple[int, ...]) -> str | None:
        """Return why a main feature of `shape` has no frequencies, or None."""
        if find_grid(shape, self.inputs, self.grid) is not None:
            return None
        return (
            f"a feature of {list(shape)} fits no grid of an input of {list(self.inputs)}, so it "
            "has no spatial frequencies. Give grid=(rows, columns) of the picture's tokens, or use "
            "forecaster 'hermite'"
        )

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return the weights of the high frequencies, newest first."""
        return hermite_weights(times, at, order=self.order, sigma=self.sigma)

    def forecast(
        self, times: Sequence[float], values: Sequence[Shaped[Tensor, "r ..."]], at: float
    ) -> Shaped[Tensor, "r ..."]:
        """Return the newest low frequencies under the extrapolated high ones."""
        extrapolated = weighted_sum(values, self.weights(times, at))
        grid = find_grid(tuple(values[0].shape[1:]), self.inputs, self.grid)
        if grid is None:
            return extrapolated
        low = low_pass(values[0] - extrapolated, grid, cutoff=self.cutoff)
        return (extrapolated + low).to(extrapolated.dtype)
