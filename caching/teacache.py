"""TeaCache: repeat what the blocks add while the timestep-modulated input moves little.

"Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", Liu et al. 2024
(arXiv:2411.19108). A skip runs no block at all; it fails where the first block's input does not
tell what the blocks do.

TeaCache gate x reuse x residual: h = h_in + (h_out - h_in)_a1, for every stream. Coefficients of a
family are known by name, `coefficients="flux"`; for any other model measure them:

    skipstep.calibrate_teacache(pipe, prompts, path="tea.json")
    pipe.enable_plugin("teacache", coefficients="tea.json")

Differs from the authors' code: per-sample decisions; see `skipstep.caching.gates.teacache`.
"""

from functools import cached_property
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, MaxSkips, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.tea_calibration import TeaCalibration, TeaRecord
from skipstep.caching.gates.teacache import TeaCacheGate, TeaCurve, read_curve
from skipstep.caching.spans.residual import Residual

__all__ = ["TeaCache", "TeaCacheCalibration"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TeaCache(CachePlugin):
    """Skip all blocks while the accumulated change of the modulated input is below `threshold`."""

    name: ClassVar[str] = "teacache"
    summary: ClassVar[str] = "Skips all blocks while the timestep-modulated input changes little."
    paper: ClassVar[str] = (
        "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model (arXiv:2411.19108)"
    )

    warmup_steps: WarmupSteps = 3
    final_steps: FinalSteps = 1
    max_skips: MaxSkips = 4
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="delta: accumulated change that forces a step; 0 skips none.",
        ),
    ] = 0.2
    coefficients: Annotated[
        TeaCurve,
        BeforeValidator(read_curve, json_schema_input_type=str | TeaCurve),
        Field(description="P: a family's name, path of a calibrated file, or the curve itself."),
    ] = TeaCurve()

    def parts(self) -> Parts:
        """Return TeaCache gate x reuse x residual."""
        gate = TeaCacheGate(threshold=self.threshold, coefficients=self.coefficients)
        return Parts(gate=gate, forecaster=Reuse(), span=Residual())

    def made_for(self) -> dict[str, Any] | None:
        """Return what the coefficients were measured on; the curve does not depend on the steps."""
        found = {k: v for k, v in self.coefficients.fingerprint.items() if k != "steps"}
        return found or None


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TeaCacheCalibration(CachePlugin):
    """Compute everything and record the changes that `TeaCache`'s polynomial is fitted to."""

    name: ClassVar[str] = "teacachecalibration"
    summary: ClassVar[str] = "Computes every step and records the changes for teacache."
    paper: ClassVar[str] = TeaCache.paper

    @cached_property
    def gate(self) -> TeaCalibration:
        """Hold the one gate that all runs of this plugin write into."""
        return TeaCalibration()

    @property
    def record(self) -> TeaRecord:
        """Return what was measured so far."""
        return self.gate.record

    def parts(self) -> Parts:
        """Return a gate that always computes and records x reuse x residual."""
        return Parts(gate=self.gate, forecaster=Reuse(), span=Residual())
