"""The solvers a tuning tries instead of the pipeline's own scheduler, at fewer steps.

Two are published formulas. The third is fitted to where the pipeline's own scheduler ends after all
its steps (`calibrate_solver`, reference "own"), because that is the picture the target speaks of.
A fit costs about two trials and happens when an arm first asks for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from skipstep.pipelines.tune.calibrate_solver import SolverCalibration, why_not_own
from skipstep.plugins.errors import PluginError
from skipstep.plugins.lifecycle import why_not
from skipstep.plugins.profile import profile
from skipstep.samplers.base import SamplerPlugin
from skipstep.samplers.solvers.calibrate import KERNELS, Place
from skipstep.samplers.solvers.calibrated import Calibrated
from skipstep.samplers.solvers.solver import Solver, path_config
from skipstep.samplers.solvers.solver_file import SolverFile

__all__ = ["CALIBRATED", "Solvers", "usable_solvers"]

CALIBRATED = "calibrated"
PUBLISHED = ("unipc", "dpm++2m")
MOST_TRAJECTORIES, LEAST_TRAJECTORIES = 8, 4
# The noises of a fit are not those of the trials, which it would flatter.
FIRST_SEED = 5_000
VP_PLACES = (Place(), Place("log_shift", offset=0.3))


def usable_solvers(pipe: Any) -> tuple[str, ...]:
    """Return the solvers that walk the path of the pipeline's scheduler."""
    try:
        config = path_config(pipe.scheduler)
    except (AttributeError, ValueError):
        return ()
    if why_not(Solver(), profile(pipe)) is not None:
        return ()
    is_latent = getattr(pipe, "vae", None) is not None
    # A dynamic shift is told to the scheduler by the pipeline, and a fit would not hear of it.
    can_fit = is_latent and why_not_own(pipe) is None and not config.get("use_dynamic_shifting")
    return (*PUBLISHED, CALIBRATED) if can_fit else PUBLISHED


@dataclass
class Solvers:
    """Make the solver plugins of one tuning.

    Args:
        kept: fitted solvers as data, by their number of steps, from an earlier run.
        keep: called with them whenever there is a new one.
    """

    pipe: Any
    prompts: Sequence[Any]
    steps: int
    seed: int
    call: dict[str, Any]
    kept: dict[str, Any] = field(default_factory=dict)
    keep: Callable[[dict[str, Any]], None] = lambda _: None
    calibration: SolverCalibration | None = None

    def plugin(self, name: str, count: int) -> SamplerPlugin:
        """Return a solver of `count` steps, fitted now if it has to be.

        Raises PluginError where it cannot be fitted.
        """
        if name != CALIBRATED:
            return Solver(preset=name)  # type: ignore[arg-type]
        if str(count) not in self.kept:
            self.kept[str(count)] = TypeAdapter(SolverFile).dump_python(
                self.fitted(count), mode="json"
            )
            self.keep(self.kept)
        return Calibrated(file=TypeAdapter(SolverFile).validate_python(self.kept[str(count)]))

    def fitted(self, count: int) -> SolverFile:
        """Fit a solver in a small search: the pipeline's own times, and a little more of its start;
        published ones are arms of their own.
        """
        if self.calibration is None:
            config = path_config(self.pipe.scheduler)
            is_flow = bool(config.get("use_flow_sigmas"))
            shift = float(config.get("shift", 1.0))
            self.calibration = SolverCalibration(
                self.pipe,
                list(self.prompts),
                guidance=self.call.get("guidance_scale"),
                trajectories=min(MOST_TRAJECTORIES, max(LEAST_TRAJECTORIES, len(self.prompts))),
                reference="own",
                reference_steps=self.steps,
                seed=FIRST_SEED + self.seed,
                call={name: value for name, value in self.call.items() if name != "guidance_scale"},
                places=(Place(shift=shift), Place(shift=1.5 * shift)) if is_flow else VP_PLACES,
                published=PUBLISHED[:1],
                kernels=KERNELS["flow" if is_flow else "vp"][:1],
            )
        found = self.calibration.fit(count)
        if not found.rows:
            raise PluginError(f"no fit of {count} steps is better than {found.fallback.preset}")
        return found
