"""MagCache: repeat the block stack's residual while its magnitude, as calibrated, drifts little.

"MagCache: Fast Video Generation with Magnitude-Aware Cache", Ma et al. 2025 (arXiv:2506.09045). It
looks at nothing while running, so all samples skip alike and nothing waits for the device; it needs
one calibration per model, sampler and number of steps.

MagCache gate x reuse x residual. To calibrate, enable `MagCacheCalibration`, generate a few
pictures, and save what it recorded:

    calibration = MagCacheCalibration()
    calibration.record.ratios(fingerprint).save("ratios.json")     after the runs
    MagCache(ratios="ratios.json")

Differs from the authors' code: no ratios are built in; see `skipstep.caching.gates.magcache`.
"""

from functools import cached_property
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, MaxSkips, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.mag_calibration import MagCalibration, MagnitudeRecord
from skipstep.caching.gates.magcache import MagCacheGate, MagnitudeRatios, read_ratios
from skipstep.caching.spans.residual import Residual

__all__ = ["MagCache", "MagCacheCalibration"]

_NO_RATIOS = (
    "magcache has no ratios: measure them with skipstep.calibrate_magcache(pipe, prompts, "
    "path='ratios.json'), then enable_plugin('magcache', ratios='ratios.json')"
)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MagCache(CachePlugin):
    """Skip all blocks but the first while the calibrated magnitude drift is below `threshold`."""

    name: ClassVar[str] = "magcache"
    summary: ClassVar[str] = "Skips steps by magnitude ratios that were calibrated once."
    paper: ClassVar[str] = (
        "MagCache: Fast Video Generation with Magnitude-Aware Cache (arXiv:2506.09045)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 1
    max_skips: MaxSkips = 3
    ratios: Annotated[
        MagnitudeRatios | None,
        BeforeValidator(read_ratios, json_schema_input_type=str | MagnitudeRatios | None),
        Field(description="Path of a file of calibrated ratios, or the ratios themselves."),
    ] = None
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="delta: accumulated magnitude drift that forces a step; 0 skips none.",
        ),
    ] = 0.2

    def parts(self) -> Parts:
        """Return MagCache gate x reuse x residual; raises ValueError without ratios."""
        if self.ratios is None:
            raise ValueError(_NO_RATIOS)
        gate = MagCacheGate(ratios=self.ratios, threshold=self.threshold)
        return Parts(gate=gate, forecaster=Reuse(), span=Residual())

    def made_for(self) -> dict[str, Any] | None:
        """Return what the ratios were measured on."""
        return dict(self.ratios.fingerprint) if self.ratios and self.ratios.fingerprint else None

    def why_not(self, profile: Any) -> str | None:
        """Return how to calibrate when there are no ratios."""
        return _NO_RATIOS if self.ratios is None else None


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MagCacheCalibration(CachePlugin):
    """Compute everything and record the ratios that `MagCache` needs."""

    name: ClassVar[str] = "magcachecalibration"
    summary: ClassVar[str] = "Computes every step and records the ratios for magcache."
    paper: ClassVar[str] = MagCache.paper

    @cached_property
    def gate(self) -> MagCalibration:
        """Hold the one gate that all runs of this plugin write into."""
        return MagCalibration()

    @property
    def record(self) -> MagnitudeRecord:
        """Return what was measured so far."""
        return self.gate.record

    def parts(self) -> Parts:
        """Return a gate that always computes and records x reuse x residual."""
        return Parts(gate=self.gate, forecaster=Reuse(), span=Residual())
