"""TeaCache's gate: accumulate how far the timestep-modulated input moved, mapped by a polynomial.

"Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", Liu et al. 2024
(arXiv:2411.19108). A skip runs nothing but the embeddings and the first norm; it fails where the
first block's input does not tell what the others do, and its threshold means something only
together with the polynomial it was chosen for.

With p_i the modulated input of the first block at step i and P a polynomial of degree 4,
    A += P(mean|p_i - p_(i-1)| / mean|p_(i-1)|)
    skip iff A < threshold; a computed step sets A = 0.

P maps the input's change to the output's change, and is fitted once per model. Without
coefficients P(x) = x. A fitted curve may dip below zero or fall, and outside the range it was
fitted on it means nothing: negative values count as 0, and where the range is known (our own
calibration) P is replaced by its running maximum over the range and is constant outside it.

Differs from the authors' code: p is what the first block's attention receives, which is the
modulated input in every family (their norm1 output is it in some); every sample and every guidance
branch decides for itself; the published coefficients come without their range, so they are only
kept from going below 0, and `max_skips` bounds what that can do.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy
import pydantic
from jaxtyping import Shaped
from pydantic import BeforeValidator, ConfigDict, Field, JsonValue
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step
from skipstep.caching.gates.first_block import compare
from skipstep.files.artefact import load_artefact, save_artefact
from skipstep.kernels.relative_l1 import relative_l1

__all__ = ["PUBLISHED", "AccumulatedState", "TeaCacheGate", "TeaCurve", "read_curve"]

PUBLISHED: dict[str, tuple[float, float, float, float, float]] = {
    "cogvideox-2b": (-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434),
    "cogvideox-5b": (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
    "cosmos": (271.156237, -91.9775607, 2.2443725, 2.08355751, 0.14177633),
    "flux": (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861),
    "hidream": (-31360.5009, -712.425503, 49.1363285, 8.2651549, 0.108053901),
    "hunyuanvideo": (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896),
    "latte": (-2464.34137, 308.044764, 80.7447667, -4.11385132, 0.111001402),
    "ltx": (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326),
    "lumina2": (393.76566581, -603.50993606, 209.10239044, -23.00726601, 0.86377344),
    "mochi": (-3512.41319, 811.675948, -60.9400215, 2.42429681, 0.00305291719),
    "wan-1.3b": (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774),
    "wan-1.3b-ret": (-52186.2437, 9230.41404, -527.275948, 13.6987616, -0.0499875664),
    "wan-14b": (-5784.54975, 5449.50912, -1811.16592, 256.271784, -13.022524),
    "wan-14b-ret": (-303318.725, 49053.7029, -2655.30556, 58.7365115, -0.315583525),
}
"""The authors' coefficients by model, highest power first; "ret" is their mode that keeps steps."""

Coefficient = Annotated[float, Field(allow_inf_nan=False)]
Bound = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TeaCurve:
    """Hold the polynomial P, the range it was fitted on if that is known, and what it is for."""

    version: Annotated[Literal[1], Field(description="Version of the file's form.")] = 1
    kind: Annotated[Literal["skipstep-teacache-curve"], Field(description="Sort of file.")] = (
        "skipstep-teacache-curve"
    )
    coefficients: Annotated[
        tuple[Coefficient, Coefficient, Coefficient, Coefficient, Coefficient],
        Field(description="Of x^4, x^3, x^2, x and 1."),
    ] = (0.0, 0.0, 0.0, 1.0, 0.0)
    low: Annotated[Bound | None, Field(description="Smallest change fitted; None: unknown.")] = None
    high: Annotated[Bound | None, Field(description="Largest change fitted; None: unknown.")] = None
    samples: Annotated[int, Field(strict=True, ge=0, description="Pairs it was fitted to.")] = 0
    fingerprint: Annotated[
        dict[str, JsonValue], Field(max_length=64, description="What it was made for.")
    ] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse half a range."""
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high are given together or not at all")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")

    @classmethod
    def load(cls, path: str | Path) -> "TeaCurve":
        """Read a file of coefficients; raises ValueError that names the file and the fault."""
        return load_artefact(path, cls, kind="skipstep-teacache-curve")

    def save(self, path: str | Path) -> None:
        """Write this curve as a file that `load` reads."""
        save_artefact(path, self)

    @cached_property
    def turns(self) -> tuple[float, ...]:
        """Return where P rises no more or falls no more, inside the fitted range."""
        low, high = self.low or 0.0, self.high or 0.0
        # In units of `high`, with terms too small to matter there left out, roots are stable.
        terms = numpy.polyder(numpy.array(self.coefficients)) * high ** numpy.arange(3, -1, -1)
        terms[abs(terms) < 1e-12 * abs(terms).max()] = 0
        real = sorted(high * float(root.real) for root in numpy.roots(terms))
        return tuple(root for root in real if low < root < high)

    def __call__(self, x: float) -> float:
        """Return P(x) under the rules above; what is not finite stays so.

        >>> TeaCurve()(0.25), TeaCurve(coefficients=(0, 0, -1, 1, 0), low=0.1, high=0.9)(0.8)
        (0.25, 0.25)
        """
        if not math.isfinite(x):
            return x
        if self.low is None or self.high is None:
            return max(0.0, self._polynomial(x))
        x = min(max(x, self.low), self.high)
        points = (self.low, x, *(turn for turn in self.turns if turn < x))
        return max(0.0, *(self._polynomial(point) for point in points))

    def _polynomial(self, x: float) -> float:
        value = 0.0
        for coefficient in self.coefficients:
            value = value * x + coefficient
        return value


def read_curve(value: Any) -> Any:
    """Return the published curve of a family's name, or what is in the file of a path."""
    if isinstance(value, str) and value in PUBLISHED:
        return TeaCurve(coefficients=PUBLISHED[value])
    if isinstance(value, str) and not value.endswith(".json"):
        raise ValueError(
            f"{value!r} is no family with published coefficients and no .json file; "
            f"families: {', '.join(PUBLISHED)}; or calibrate with skipstep.calibrate_teacache"
        )
    return TeaCurve.load(value) if isinstance(value, str | Path) else value


@dataclass(slots=True)
class AccumulatedState:
    """Hold A of every row and what the gate saw at the step before."""

    total: list[float]
    previous: Tensor | None = None

    def changes(self, probe: Shaped[Tensor, "b ..."]) -> list[float] | None:
        """Return mean|p_i - p_(i-1)| / mean|p_(i-1)| per row and keep p_i; None at first."""
        previous, self.previous = self.previous, probe
        if previous is None:
            return None
        found: list[float] = relative_l1(probe, previous).tolist()
        return found


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TeaCacheGate(Gate[AccumulatedState]):
    """Skip a sample while the accumulated, mapped change of its modulated input is small."""

    looks_at: ClassVar[LooksAt] = "modulated"

    type: Annotated[Literal["teacache"], Field(description="Tag of this gate.")] = "teacache"
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="delta: accumulated change that forces a step; 0 skips none.",
        ),
    ] = 0.1
    coefficients: Annotated[
        TeaCurve,
        BeforeValidator(read_curve, json_schema_input_type=str | TeaCurve),
        Field(description="P: a family's name, path of a calibrated file, or the curve itself."),
    ] = TeaCurve()

    def init(self, rows: int) -> AccumulatedState:
        """Return a state that has seen nothing."""
        return AccumulatedState([0.0] * rows)

    def decide(
        self, state: AccumulatedState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Add this step's mapped change to A and compare; one host synchronisation."""
        if signal is None:
            raise ValueError("the teacache gate was given no signal: pass the modulated input")
        changes = state.changes(signal.detach().clone())
        if changes is None:
            return [Choice(True, "no history")] * len(state.total)
        for row, change in enumerate(changes):
            state.total[row] += self.coefficients(change)
        return [compare(total, self.threshold) for total in state.total]

    def observe(self, state: AccumulatedState, seen: Seen) -> None:
        """Set A of the computed rows to 0."""
        for row in seen.rows:
            state.total[row] = 0.0
