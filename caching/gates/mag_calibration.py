"""Measure MagCache's magnitude ratios: a gate that always computes and takes notes.

For the paper and the use of the ratios see `skipstep.caching.gates.magcache`. With D_i the span's
feature at step i,
    r_i = mean over tokens of |D_i[token]| / |D_(i-1)[token]|,   norms over channels,
averaged over samples, guidance branches and runs. `MagnitudeRecord.spread` tells how far single
trajectories were from that mean: where it is large, the paper's law does not hold for the model.

Channels are the last dimension of [b, tokens, c] and of [b, c], and dimension 1 of pictures and
videos, [b, c, ...]. Tokens whose norm was 0 have no ratio and are left out.

Differs from the authors' code: all branches make one list; norms are taken in fp32.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Float, Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step
from skipstep.caching.gates.magcache import MagnitudeRatios

__all__ = [
    "MagCalibration",
    "MagCalibrationState",
    "MagnitudeRecord",
    "magnitude_ratios",
    "token_norms",
]


def token_norms(feature: Float[Tensor, "b ..."]) -> Float[Tensor, "b tokens"]:
    """Return the fp32 norm over channels of every token.

    >>> token_norms(torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]))
    tensor([[5., 2.]])
    """
    channels = 1 if feature.ndim > 3 else -1
    norms: Tensor = torch.linalg.vector_norm(feature, dim=channels, dtype=torch.float32)
    return norms.flatten(1) if norms.ndim > 1 else norms.unsqueeze(1)


def magnitude_ratios(
    norms: Float[Tensor, "b tokens"], previous: Float[Tensor, "b tokens"]
) -> Float[Tensor, " b"]:
    """Return the mean over tokens of norms / previous, without tokens that were 0."""
    known = previous > 0
    ratios = torch.where(known, norms / previous, 0.0)
    return ratios.sum(dim=1) / known.sum(dim=1)


@dataclass
class MagnitudeRecord:
    """Collect the ratios of every trajectory that was run; one object may serve many runs."""

    steps: int | None = None
    found: dict[int, list[float]] = field(default_factory=dict)

    def add(self, step: Step, ratios: Sequence[float]) -> None:
        """Note the ratios of one step, one per sample.

        Raises ValueError when the run has another number of steps than those before.
        """
        if self.steps is not None and self.steps != step.count:
            raise ValueError(
                f"this record holds runs of {self.steps} steps and was given one of {step.count}: "
                "calibrate each number of steps with a record of its own"
            )
        self.steps = step.count
        self.found.setdefault(step.index, []).extend(ratios)

    def ratios(self, fingerprint: Mapping[str, Any] | None = None) -> MagnitudeRatios:
        """Return the mean ratios, ready to be saved; raises ValueError on an unfinished record."""
        missing = [i for i in range(1, self.steps or 0) if i not in self.found]
        if self.steps is None or missing:
            raise ValueError(
                f"the record lacks steps {missing}: run the pipeline to its end first"
                if missing
                else "the record is empty: run the pipeline with the calibration enabled first"
            )
        means = [statistics.fmean(self.found[i]) for i in range(1, self.steps)]
        samples = min((len(self.found[i]) for i in range(1, self.steps)), default=1)
        return MagnitudeRatios(
            ratios=(1.0, *means), samples=samples, fingerprint=dict(fingerprint or {})
        )

    def spread(self) -> float:
        """Return the largest standard deviation over trajectories of any step's ratio."""
        return max((statistics.pstdev(values) for values in self.found.values()), default=0.0)


@dataclass(slots=True)
class MagCalibrationState:
    """Hold the token norms of the step before, of every row."""

    rows: int
    norms: Tensor | None = None


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MagCalibration(Gate[MagCalibrationState]):
    """Compute every step and write the ratios into `record`."""

    looks_at: ClassVar[LooksAt] = "step"

    type: Annotated[Literal["mag_calibration"], Field(description="Tag of this gate.")] = (
        "mag_calibration"
    )

    @cached_property
    def record(self) -> MagnitudeRecord:
        """Hold what this gate measured; it is no option, so no file or schema knows it."""
        return MagnitudeRecord()

    def init(self, rows: int) -> MagCalibrationState:
        """Return a state without norms."""
        return MagCalibrationState(rows)

    def decide(
        self, state: MagCalibrationState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Compute every row."""
        return [Choice(True, "calibration")] * state.rows

    def observe(self, state: MagCalibrationState, seen: Seen) -> None:
        """Note the ratios to the step before; raises ValueError without the span's feature."""
        if seen.feature is None:
            raise ValueError("mag_calibration was shown no feature: its span must give one")
        if seen.rows != list(range(state.rows)):
            raise ValueError(
                f"mag_calibration was shown rows {seen.rows} of {state.rows}: it needs them all"
            )
        norms = token_norms(seen.feature)
        if state.norms is not None:
            self.record.add(seen.step, magnitude_ratios(norms, state.norms).tolist())
        state.norms = norms
