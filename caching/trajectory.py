"""Record a run for planning: the scalar products of a span's feature with itself over the steps.

A gate that computes every step and notes, per sample and guidance branch, the Gram matrix
    G_ik = <F_i, F_k>,   i, k = 0 .. T-1,   F_i the span's feature at step i, flattened.
Every forecaster is linear in what was computed, F_hat_k = sum_j w_j F(a_j), so the error of any
forecast from any computed steps follows from G alone (`skipstep.caching.schedule_plan`):
    |F_hat_k - F_k|^2 = c^T G c,   c = sum_j w_j e(a_j) - e(k).
A run of T steps thus leaves T^2 numbers a sample behind and no tensors.

Products are summed in float64: an error is the small difference of large products, which float32
would drown. While a run lasts, its features are held on the CPU in their own precision, T of them.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Float64, Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import CachePlugin, Choice, Gate, LooksAt, Parts, Seen, Step
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.spans.output import Output
from skipstep.caching.spans.residual import Residual

__all__ = ["TrajectoryCalibration", "TrajectoryGate", "TrajectoryRecord", "TrajectoryState"]


@dataclass
class TrajectoryRecord:
    """Collect the Gram matrices of every trajectory that was run; one object serves many runs."""

    steps: int | None = None
    found: list[Float64[Tensor, "b t t"]] = field(default_factory=list)

    def grams(self) -> Float64[Tensor, "n t t"]:
        """Return one matrix a trajectory, each divided by its mean squared norm.

        Raises ValueError on an empty record and on runs that ended early.
        """
        whole = [gram for gram in self.found if gram.shape[-1] == self.steps]
        if self.steps is None or not whole:
            raise ValueError(
                "the record holds no finished run: run the pipeline to its end with the "
                "calibration enabled first"
            )
        grams = torch.cat(whole)
        scale = grams.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-300)
        return grams / scale[:, None, None]


@dataclass(slots=True)
class TrajectoryState:
    """Hold the features of the steps so far, [b, n] each, on the CPU, and their products."""

    rows: int
    features: list[Tensor] = field(default_factory=list)
    products: list[Tensor] = field(default_factory=list)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrajectoryGate(Gate[TrajectoryState]):
    """Compute every step and write the Gram matrices into `record`."""

    looks_at: ClassVar[LooksAt] = "step"

    type: Annotated[Literal["trajectory"], Field(description="Tag of this gate.")] = "trajectory"

    @cached_property
    def record(self) -> TrajectoryRecord:
        """Hold what this gate measured; it is no option, so no file or schema knows it."""
        return TrajectoryRecord()

    def init(self, rows: int) -> TrajectoryState:
        """Return a state without features."""
        return TrajectoryState(rows)

    def decide(
        self, state: TrajectoryState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Compute every row."""
        return [Choice(True, "calibration")] * state.rows

    def observe(self, state: TrajectoryState, seen: Seen) -> None:
        """Multiply this step's feature with those before it; raises ValueError without one."""
        if seen.feature is None:
            raise ValueError("the trajectory gate was shown no feature: its span must give one")
        if seen.rows != list(range(state.rows)):
            raise ValueError(
                f"the trajectory gate was shown rows {seen.rows} of {state.rows}: it needs all"
            )
        record = self.record
        if record.steps is not None and record.steps != seen.step.count:
            raise ValueError(
                f"this record holds runs of {record.steps} steps and was given one of "
                f"{seen.step.count}: record each number of steps on its own"
            )
        record.steps = seen.step.count
        new = seen.feature.detach().reshape(state.rows, -1).to("cpu", copy=True)
        state.features.append(new)
        wide = new.double()
        state.products.append(
            torch.stack([(each.double() * wide).sum(1) for each in state.features], dim=1)
        )
        if seen.step.index == seen.step.count - 1 and len(state.products) == seen.step.count:
            record.found.append(_symmetric(state.products))


def _symmetric(products: list[Tensor]) -> Float64[Tensor, "b t t"]:
    """Return the whole matrix of the lower triangle's rows, [b, 1], [b, 2], ... [b, t]."""
    count = len(products)
    lower = torch.zeros(products[0].shape[0], count, count, dtype=torch.float64)
    for i, row in enumerate(products):
        lower[:, i, : i + 1] = row
    return lower + lower.tril(-1).transpose(1, 2)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrajectoryCalibration(CachePlugin):
    """Compute everything and record what a schedule is planned from."""

    name: ClassVar[str] = "trajectorycalibration"
    summary: ClassVar[str] = "Computes every step and records what a schedule is planned from."

    of_output: Annotated[
        bool, Field(description="Record the denoiser's output instead of its blocks' residual.")
    ] = False

    @cached_property
    def gate(self) -> TrajectoryGate:
        """Hold the one gate that all runs of this plugin write into."""
        return TrajectoryGate()

    @property
    def record(self) -> TrajectoryRecord:
        """Return what was measured so far."""
        return self.gate.record

    def parts(self) -> Parts:
        """Return a gate that always computes and records x reuse x the span."""
        span: Any = Output() if self.of_output else Residual()
        return Parts(gate=self.gate, forecaster=Reuse(), span=span)
