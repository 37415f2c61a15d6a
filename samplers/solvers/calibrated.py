"""Calibrated solvers: `enable_plugin("calibrated", file="solver-5.json")` for the run only.

Outside of what its file was made for (other steps, guidance, path, model) a calibrated solver is
not merely worse, it can be far off: one fitted without guidance missed by more than the picture's
own spread at a scale of 7. It therefore refuses, or runs the file's published fallback if asked.
"""

from pathlib import Path as File
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from skipstep.samplers.base import SamplerPlugin
from skipstep.samplers.solvers.scheduler import ExponentialAdamsScheduler
from skipstep.samplers.solvers.solver import path_config
from skipstep.samplers.solvers.solver_file import SolverFile

__all__ = ["Calibrated"]

NO_FILE = "it needs file=..., which skipstep.calibrate_solver or `skipstep calibrate` makes"


def _file(value: Any) -> Any:
    return SolverFile.load(value) if isinstance(value, str | File) else value


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Calibrated(SamplerPlugin):
    """Swap in a solver that was fitted to this model, while the pipeline runs."""

    name: ClassVar[str] = "calibrated"
    summary: ClassVar[str] = "Swaps in a solver fitted to this model: few steps, near the solution."
    paper: ClassVar[str] = ""

    file: Annotated[
        SolverFile | None,
        BeforeValidator(_file, json_schema_input_type=str | SolverFile | None),
        Field(description="path of a solver file (skipstep calibrate), or the solver itself"),
    ] = None
    outside: Annotated[
        Literal["error", "fallback"],
        Field(description="other steps, guidance or model: refuse, or run the file's fallback"),
    ] = "error"

    @property
    def solver(self) -> SolverFile:
        """Return the file's content.

        Raises ValueError if no file was given.
        """
        if self.file is None:
            raise ValueError(NO_FILE)
        return self.file

    def why_not(self, profile: Any) -> str | None:
        """Return that a file is missing, or None."""
        return NO_FILE if self.file is None else None

    def build(self, scheduler: Any) -> ExponentialAdamsScheduler:
        """Return the published fallback on the pipeline's path; `for_call` puts the rows in.

        Raises ValueError if the file was made on another kind of path.
        """
        built = self._scheduler(scheduler, None)
        if built.path.kind != self.solver.path:
            raise ValueError(
                f"the file was made for a {self.solver.path} path and this pipeline's scheduler "
                f"({type(scheduler).__name__}) walks a {built.path.kind} path: calibrate on this "
                "pipeline (skipstep.calibrate_solver)"
            )
        return built

    def made_for(self) -> dict[str, Any]:
        """Return the fingerprint of what the file was made for."""
        return dict(self.solver.fingerprint)

    def for_call(
        self, scheduler: Any, *, steps: int | None, guidance: float | None, unlike: list[str]
    ) -> ExponentialAdamsScheduler:
        """Return the scheduler of one call, made from the pipeline's own.

        `unlike` says in what the pipeline differs from the file's. Raises ValueError where the file
        does not serve the call and `outside` is "error".
        """
        problems = list(unlike)
        if steps is not None and steps != self.solver.steps:
            problems.append(f"steps: made for {self.solver.steps}, running {steps}")
        if not self.solver.serves(guidance):
            low, high = self.solver.guidance_range or (0.0, 0.0)
            problems.append(f"guidance: made for {low:g} to {high:g}, running {guidance:g}")
        if not problems:
            return self._scheduler(scheduler, self.solver.table(guidance))
        if self.outside == "error":
            raise ValueError(
                f"the solver does not serve this call ({'; '.join(problems)}): pass "
                f"num_inference_steps={self.solver.steps} and a guidance in its range, calibrate "
                "anew, or set outside='fallback'"
            )
        return self._scheduler(scheduler, None)

    def _scheduler(self, scheduler: Any, table: Any) -> ExponentialAdamsScheduler:
        fallback = self.solver.fallback
        config = path_config(scheduler)
        if config.get("use_flow_sigmas"):
            config |= {"shift": fallback.shift, "use_dynamic_shifting": False}
        rows = None
        if table is not None:
            rows = {"kernel": table.kernel, "nodes": table.nodes, "rows": table.rows}
        built: ExponentialAdamsScheduler = ExponentialAdamsScheduler(
            **config,
            preset=fallback.preset,
            spacing=fallback.spacing,
            spacing_offset=fallback.offset,
            table=rows,
        )
        return built
