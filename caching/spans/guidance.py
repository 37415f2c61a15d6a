"""The unconditional half of classifier-free guidance (CFG-Cache of FasterCache).

Lv et al. 2024, "FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality"
(arXiv:2410.19355). c and u are the conditional and the unconditional output of one step; both are
computed on some steps, on the others only c, and

    u_hat = IFFT(LF(c) + alpha_1 Delta_LF + HF(c) + alpha_2 Delta_HF),   Delta = u - c
          = c + Delta + (alpha_1 - 1) LF(Delta) + (alpha_2 - 1) HF(Delta)

with Delta forecast from computed steps, LF the frequencies of the two spatial axes within a radius
and HF the rest. The second line is the first one because the FFT is linear: Delta is one tensor,
and weights of 1 need no FFT. alpha_1 is at work in the middle of the run and alpha_2 in its last
part; elsewhere they are 1.

Nobody says which rows or calls belong together, so it is looked at: rows r and r + B of one call
(or the two calls of a step) are a pair when they are given the same noisy input behind a scheduler
step, and that step's prediction is a mixture w_1 x_1 + w_2 x_2 of what they returned. Guidance of
scale s has the weights s and 1 - s, so the conditional one has the larger weight. Anything else is
computed in full, and the report says why.

Differs from the authors' code: Delta is stored instead of two filtered differences; the parts of
the run are shares of its steps, not timesteps; the radius is an option; outputs that are lists of
tokens have no spatial axes and are not split.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pydantic
import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Forecaster, Step
from skipstep.caching.history import History
from skipstep.caching.spans.output import WholeCall
from skipstep.caching.storage import Budget, Storage

__all__ = ["Guidance", "Pairs", "low_frequencies", "mixture"]

MIDDLE = (0.1, 0.9)
"""Share of the run in which alpha_1 is at work: 99 < t < 901 of 1000 timesteps."""
LAST = 0.7
"""Share of the run from which alpha_2 is at work: t < 301."""
FITS = 1e-2
"""Largest relative error of a prediction that still is a mixture of two outputs."""


def low_frequencies(
    x: Float[Tensor, "... height width"], *, radius: float
) -> Float[Tensor, "... height width"]:
    """Return the part of x with spatial frequencies up to `radius` times the smaller axis.

    >>> x = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    >>> low_frequencies(x, radius=0.2)
    tensor([[2., 2.],
            [2., 2.]])
    """
    height, width = x.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=x.device)
    columns = torch.fft.rfftfreq(width, 1 / width, device=x.device)
    is_low = rows[:, None] ** 2 + columns**2 <= (radius * min(height, width)) ** 2
    wide = x if x.dtype == torch.float64 else x.float()
    spectrum = torch.fft.rfft2(wide) * is_low
    low: Tensor = torch.fft.irfft2(spectrum, s=(height, width)).to(x.dtype)
    return low


def mixture(
    g: Float[Tensor, "..."], x_1: Float[Tensor, "..."], x_2: Float[Tensor, "..."]
) -> tuple[float, float] | None:
    """Return (w_1, w_2) with g = w_1 x_1 + w_2 x_2 by least squares, or None if it is no mixture.

    Equal x_1 and x_2 tell nothing apart, so they share the weight. Costs one host synchronisation.

    >>> x_1, x_2 = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 1.0])
    >>> [round(w, 3) for w in mixture(3.5 * x_2 - 2.5 * x_1, x_1, x_2)]
    [-2.5, 3.5]
    >>> mixture(torch.tensor([0.0, 0.0, 1.0]), x_1, x_2) is None
    True
    """
    basis = torch.stack([x_1.flatten(), x_2.flatten()]).double()
    target = g.flatten().double()
    products = (basis @ torch.stack([*basis, target]).T).cpu()
    gram, right = products[:, :2], products[:, 2]
    scale = float(gram.trace())
    if scale == 0 or not bool(torch.isfinite(products).all()):
        return None
    weights = torch.linalg.pinv(gram, rtol=1e-12) @ right
    error = target - (weights.to(basis.device) @ basis)
    if float(error.norm()) > FITS * float(target.norm()):
        return None
    return float(weights[0]), float(weights[1])


@dataclass
class Pairs:
    """What one run knows of its guidance: which outputs are pairs, and their Delta.

    `rows` are the samples, `is_batched` tells two halves of one call from two calls, and
    `is_second` that the second of a pair is the conditional one; None is not known yet. `why_not`
    says why it will never be. `inputs` and `outputs` are those of the last step's calls, held until
    the pairs are known, and `conditional` is this step's output of the conditional call.
    """

    forecaster: Forecaster
    storage: Storage = field(default_factory=Storage)
    budget: Budget = field(default_factory=lambda: Budget(None))
    is_batched: bool = False
    is_second: bool | None = None
    why_not: str | None = None
    step: int = -1
    inputs: list[Tensor] | None = None
    outputs: list[Tensor] | None = None
    conditional: Tensor | None = None
    history: History | None = None

    @property
    def anchors(self) -> int:
        """Count the differences kept: the forecaster's wish, or what the budget allows."""
        return self.budget.fits(self.forecaster.anchors)

    @property
    def wants_prediction(self) -> bool:
        """Say whether the next scheduler step should be looked at."""
        return self.is_second is None and self.why_not is None

    def look(self, step: Step, branch: int, main: Tensor | None, prediction: Tensor | None) -> None:
        """Learn at the first call of a step from what the last one did."""
        if branch == 0 and self.wants_prediction and self.inputs and self.outputs:
            if main is None:
                raise RuntimeError("the input is needed until the pairs are known")
            self._learn(main, prediction)
        if step.index != self.step:
            self.step, self.conditional = step.index, None
            self.inputs, self.outputs = ([], []) if self.wants_prediction else (None, None)
        if self.inputs is not None:
            self.inputs += [] if main is None else [main]

    def rebuilt(self, branch: int, rows: int) -> list[int]:
        """Return the rows of this call that can be rebuilt from others."""
        if self.is_second is None or self.why_not is not None:
            return []
        if self.is_batched:
            half = rows // 2
            return list(range(half)) if self.is_second else list(range(half, rows))
        return list(range(rows)) if branch == 1 and self.conditional is not None else []

    def note(self, branch: int, output: Tensor, computed: list[int]) -> None:
        """Keep what a call returned: Delta of the pairs that were computed in full."""
        if self.outputs is not None:
            self.outputs.append(output)
        if self.is_second is None:
            return
        if self.is_batched:
            unconditional = self.rebuilt(0, len(output))
            partners = self.partners(unconditional, len(output))
            rows = [i for i, row in enumerate(unconditional) if row in computed]
            self._push(output[unconditional] - output[partners], rows)
        elif branch == 0:
            # The pipeline has this tensor too, and may write into it before the other call.
            self.conditional = output.clone()
        elif branch == 1 and self.conditional is not None:
            self._push(output - self.conditional, computed)
            self.conditional = None

    def partners(self, rows: list[int], total: int) -> list[int]:
        """Return the conditional row of each unconditional one, in one call of `total` rows."""
        half = total // 2
        return [row + half if self.is_second else row - half for row in rows]

    def delta(self, rows: list[int], total: int, at: float) -> Tensor:
        """Forecast Delta of unconditional rows."""
        if self.history is None:
            raise RuntimeError("no pair was computed in full yet")
        half = total // 2
        if self.is_batched and not self.is_second:
            rows = [row - half for row in rows]
        return self.history.forecast(self.forecaster, rows, at)

    def fit(self) -> None:
        """Let go of the differences that are too many; without room for one nothing is rebuilt."""
        if not self.anchors:
            self.history, self.why_not = None, "cache memory"
        elif self.history is not None:
            self.history.limit(self.anchors)

    def storages(self) -> dict[int, int]:
        """Return address -> bytes of every storage kept alive."""
        held = [*(self.inputs or []), *(self.outputs or []), self.conditional]
        storages = [x.untyped_storage() for x in held if x is not None]
        kept = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return kept | (self.history.storages() if self.history else {})

    def _push(self, delta: Tensor, rows: list[int], step: int | None = None) -> None:
        if not rows:
            return
        if self.history is None and self.why_not is None:
            self.budget.admit(self, self.storage.nbytes(delta))
        if self.why_not is not None:
            return
        if self.history is None:
            self.history = History(len(delta), self.anchors, storage=self.storage)
        delta = delta if len(rows) == len(delta) else delta[rows]
        self.history.push(delta, rows, self.step if step is None else step)

    def _learn(self, main: Tensor, prediction: Tensor | None) -> None:
        """Find the pairs in the step behind us; `main` is the input that follows it."""
        inputs, outputs = self.inputs or [], self.outputs or []
        if len(outputs) > 2:
            self.why_not = f"a step has {len(outputs)} denoiser calls, guidance has one or two"
            return
        self.is_batched = len(outputs) == 1
        half = len(main) // 2
        if self.is_batched:
            # Equal noise may be the user's wish at first; behind a step only a pair has it.
            if len(main) % 2 or not torch.equal(main[:half], main[half:]):
                self.why_not = "guidance is off, or is an input of the model: no row has a partner"
                return
            first, second = outputs[0][:half], outputs[0][half:]
        else:
            first, second = outputs
            if inputs[0].shape != inputs[1].shape or not torch.equal(*inputs):
                self.why_not = "the two calls of a step are given different inputs"
                return
        weights = None if prediction is None else _first_sample(prediction, first, second)
        if weights is None:
            self.why_not = (
                "the scheduler is not given a mixture of the two outputs, so it cannot be known "
                "which one is unconditional"
            )
            return
        is_second = abs(weights[1]) > abs(weights[0])
        if is_second and not self.is_batched:
            self.why_not = "the unconditional call comes first, so there is nothing to rebuild from"
            return
        self.is_second = is_second
        delta = first - second if is_second else second - first
        self._push(delta, list(range(len(delta))))


def _first_sample(g: Tensor, first: Tensor, second: Tensor) -> tuple[float, float] | None:
    """Return the mixture of the first sample: guidance may be rescaled by sample, and learned
    variances are cut off.
    """
    g, x_1, x_2 = g[0], first[0], second[0]
    if g.numel() != x_1.numel():
        if g.ndim != x_1.ndim or any(n > m for n, m in zip(g.shape, x_1.shape, strict=True)):
            return None
        cut = tuple(slice(n) for n in g.shape)
        x_1, x_2 = x_1[cut], x_2[cut]
    return mixture(g, x_1, x_2)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Guidance(WholeCall):
    """Rebuild the unconditional output from the conditional one."""

    type: Annotated[Literal["guidance"], Field(description="Tag of this span.")] = "guidance"
    low_weight: Annotated[
        float,
        Field(
            ge=0,
            le=2,
            allow_inf_nan=False,
            description="alpha_1: weight of the difference's low frequencies in mid-run.",
        ),
    ] = 1.1
    high_weight: Annotated[
        float,
        Field(
            ge=0,
            le=2,
            allow_inf_nan=False,
            description="alpha_2: weight of its high frequencies in the last part of the run.",
        ),
    ] = 1.1
    radius: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="Where low frequencies end, as a share of the smaller spatial axis.",
        ),
    ] = 0.2

    def rebuild(
        self, c: Float[Tensor, "b ..."], delta: Float[Tensor, "b ..."], step: Step
    ) -> Float[Tensor, "b ..."]:
        """Return u_hat; the module docstring has the formula."""
        progress = step.index / step.count if step.count else 0.0
        low = self.low_weight if MIDDLE[0] < progress < MIDDLE[1] else 1.0
        high = self.high_weight if progress > LAST else 1.0
        if c.ndim < 4 or low == high == 1:
            return c + delta
        slow = low_frequencies(delta, radius=self.radius)
        return c + high * delta + (low - high) * slow
