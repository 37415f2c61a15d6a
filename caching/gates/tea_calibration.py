"""Fit TeaCache's polynomial: a gate that always computes and takes notes.

For the paper and the use of the curve see `skipstep.caching.gates.teacache`. Over all steps of all
runs, samples and guidance branches it collects
    x = mean|p_i - p_(i-1)| / mean|p_(i-1)|        p the modulated input of the first block
    y = mean|v_i - v_(i-1)| / mean|v_(i-1)|        v the denoiser's output
and fits y = P(x), degree 4, by least squares. The curve remembers the smallest and largest x.

Differs from the authors' code: y is taken at the denoiser's output, in fp32; the curve is only used
on the range it was fitted on (see `TeaCurve`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy
import pydantic
from jaxtyping import Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step
from skipstep.caching.gates.teacache import TeaCurve
from skipstep.kernels.relative_l1 import relative_l1

__all__ = ["TeaCalibration", "TeaCalibrationState", "TeaRecord"]

DEGREE = 4


@dataclass
class TeaRecord:
    """Collect the pairs (x, y) of every step that was run; one object may serve many runs."""

    pairs: list[tuple[float, float]] = field(default_factory=list)

    def add(self, x: Sequence[float], y: Sequence[float]) -> None:
        """Note one pair per sample; pairs that are not finite are left out."""
        self.pairs += [
            pair for pair in zip(x, y, strict=True) if all(math.isfinite(value) for value in pair)
        ]

    def curve(self, fingerprint: Mapping[str, Any] | None = None) -> TeaCurve:
        """Return the fitted curve; raises ValueError with too few different changes to fit."""
        x, y = (
            (numpy.array(column) for column in zip(*self.pairs, strict=True))
            if (self.pairs)
            else (numpy.empty(0), numpy.empty(0))
        )
        if len(numpy.unique(x)) <= DEGREE:
            raise ValueError(
                f"the record holds {len(numpy.unique(x))} different changes, a curve of degree "
                f"{DEGREE} needs {DEGREE + 1}: run more steps or prompts"
            )
        # Changes are small numbers; scaled to 1 their powers stay apart.
        scale = x.max()
        fitted = numpy.polyfit(x / scale, y, DEGREE) / scale ** numpy.arange(DEGREE, -1, -1)
        c4, c3, c2, c1, c0 = fitted.tolist()
        return TeaCurve(
            coefficients=(c4, c3, c2, c1, c0),
            low=float(x.min()),
            high=float(x.max()),
            samples=len(x),
            fingerprint=dict(fingerprint or {}),
        )

    def determination(self) -> float:
        """Return R^2 of the fitted curve on its own pairs, 1 at best."""
        curve = self.curve()
        y = numpy.array([y for _, y in self.pairs])
        left = y - numpy.array([curve(x) for x, _ in self.pairs])
        return float(1 - (left @ left) / ((y - y.mean()) @ (y - y.mean())))


@dataclass(slots=True)
class TeaCalibrationState:
    """Hold what was seen at the step before, of every row."""

    rows: int
    probe: Tensor | None = None
    output: Tensor | None = None


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TeaCalibration(Gate[TeaCalibrationState]):
    """Compute every step and write the pairs into `record`."""

    looks_at: ClassVar[LooksAt] = "modulated"

    type: Annotated[Literal["tea_calibration"], Field(description="Tag of this gate.")] = (
        "tea_calibration"
    )

    @cached_property
    def record(self) -> TeaRecord:
        """Hold what this gate measured; it is no option, so no file or schema knows it."""
        return TeaRecord()

    def init(self, rows: int) -> TeaCalibrationState:
        """Return a state that has seen nothing."""
        return TeaCalibrationState(rows)

    def decide(
        self, state: TeaCalibrationState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Compute every row."""
        return [Choice(True, "calibration")] * state.rows

    def observe(self, state: TeaCalibrationState, seen: Seen) -> None:
        """Note the changes since the step before; raises ValueError unless shown all rows."""
        if seen.signal is None or seen.rows != list(range(state.rows)):
            raise ValueError(
                f"tea_calibration was shown rows {seen.rows} of {state.rows}"
                f"{'' if seen.signal is not None else ' without a signal'}: it needs them all"
            )
        probe, output = seen.signal.detach().clone(), seen.output.detach().clone()
        if state.probe is not None and state.output is not None:
            x, y = relative_l1(probe, state.probe), relative_l1(output, state.output)
            self.record.add(x.tolist(), y.tolist())
        state.probe, state.output = probe, output
