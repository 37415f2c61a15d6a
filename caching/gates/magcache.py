"""MagCache's gate: add up how far the residual's magnitude drifts, by ratios calibrated once.

"MagCache: Fast Video Generation with Magnitude-Aware Cache", Ma et al. 2025 (arXiv:2506.09045).
The paper finds that successive residuals D_i of a model shrink by ratios that hardly depend on the
prompt, so one calibration decides every later run without looking at anything; it fails where
prompts, guidance or sampler change the ratios, and it cannot see a sample that is unlike the
calibration's.

    r_i = mean over tokens of |D_i| / |D_(i-1)|, norms over channels; r_0 = 1         calibrated
    rho *= r_i,  e += |1 - rho|,  skip iff e < threshold                          at every step
    a computed step sets rho = 1, e = 0.
In a run of another length, step i takes the ratio of the nearest calibrated step. That counts the
drift of fewer, longer steps too low: calibrate at the length you run.

Differs from the authors' code: strictly below the threshold, so that 0 never skips; the share of
steps always computed and the limit K of skips in a row are the plugin's `warmup_steps` and
`max_skips`; guidance branches share one list of ratios, the mean over all that was calibrated.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from jaxtyping import Shaped
from pydantic import BeforeValidator, ConfigDict, Field, JsonValue
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step
from skipstep.caching.gates.first_block import compare
from skipstep.caching.gates.schedule import nearest_step
from skipstep.files.artefact import load_artefact, save_artefact

__all__ = ["MagCacheGate", "MagCacheState", "MagnitudeRatios"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MagnitudeRatios:
    """Hold the calibrated ratios r_0 .. r_(T-1), and what they were measured on."""

    version: Annotated[Literal[1], Field(description="Version of the file's form.")] = 1
    kind: Annotated[Literal["skipstep-magnitude-ratios"], Field(description="Sort of file.")] = (
        "skipstep-magnitude-ratios"
    )
    ratios: Annotated[
        tuple[Annotated[float, Field(strict=True, gt=0, le=1000, allow_inf_nan=False)], ...],
        Field(min_length=1, max_length=10_000, description="r_i of every step; the first is 1."),
    ]
    samples: Annotated[
        int, Field(strict=True, ge=1, description="Trajectories that were averaged.")
    ] = 1
    fingerprint: Annotated[
        dict[str, JsonValue], Field(max_length=64, description="What it was made for.")
    ] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a first ratio that is not 1: there is no step before it."""
        if self.ratios[0] != 1:
            raise ValueError(f"ratios must begin with 1 and begin with {self.ratios[0]}")

    @classmethod
    def load(cls, path: str | Path) -> "MagnitudeRatios":
        """Read a file of ratios; raises ValueError that names the file and the fault."""
        return load_artefact(path, cls, kind="skipstep-magnitude-ratios")

    def save(self, path: str | Path) -> None:
        """Write these ratios as a file that `load` reads."""
        save_artefact(path, self)

    def at(self, step: Step) -> float:
        """Return r_i of `step`, from the nearest calibrated step when the run's length differs."""
        return self.ratios[nearest_step(step.index, step.count, len(self.ratios))]


def read_ratios(value: Any) -> Any:
    """Return what is in the file when given a path, else the value itself."""
    return MagnitudeRatios.load(value) if isinstance(value, str | Path) else value


@dataclass(slots=True)
class MagCacheState:
    """Hold rho and e of every row."""

    rho: list[float]
    error: list[float]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MagCacheGate(Gate[MagCacheState]):
    """Skip while the accumulated drift of the residual's magnitude is below `threshold`."""

    looks_at: ClassVar[LooksAt] = "step"

    type: Annotated[Literal["magcache"], Field(description="Tag of this gate.")] = "magcache"
    ratios: Annotated[
        MagnitudeRatios,
        BeforeValidator(read_ratios, json_schema_input_type=str | MagnitudeRatios),
        Field(description="Path of a file of calibrated ratios, or the ratios themselves."),
    ]
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="delta: accumulated magnitude drift that forces a step; 0 skips none.",
        ),
    ] = 0.06

    def init(self, rows: int) -> MagCacheState:
        """Return a state without drift."""
        return MagCacheState(rho=[1.0] * rows, error=[0.0] * rows)

    def decide(
        self, state: MagCacheState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Add this step's drift to every row and compare; nothing is read from the device."""
        r = self.ratios.at(step)
        for row in range(len(state.rho)):
            state.rho[row] *= r
            state.error[row] += abs(1 - state.rho[row])
        return [compare(error, self.threshold) for error in state.error]

    def observe(self, state: MagCacheState, seen: Seen) -> None:
        """Forget the drift of the computed rows."""
        for row in seen.rows:
            state.rho[row], state.error[row] = 1.0, 0.0
