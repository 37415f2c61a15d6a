"""Calibrate a solver on a pipeline, and hand it back ready to enable.

The pipeline runs with a scheduler that asks at our times and goes where we say, so the guided
network is measured as it is used: prompts, guidance, packing and offloading are the pipeline's own.
All noises run in one batch, because a row is fitted on all of them before the next step.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from skipstep.pipelines.compare.run import bare, prompt_parameter, silent
from skipstep.pipelines.progress import Progress
from skipstep.plugins.errors import PluginError
from skipstep.plugins.fingerprint import bound_call, fingerprint, of_the_call
from skipstep.plugins.noise import adds_noise
from skipstep.samplers.solvers.calibrate import Advance, Calibration, search
from skipstep.samplers.solvers.calibrated import Calibrated
from skipstep.samplers.solvers.conversions import to_kernel
from skipstep.samplers.solvers.drive import DrivingScheduler, watched
from skipstep.samplers.solvers.fit import DenseTrajectory
from skipstep.samplers.solvers.scheduler import ExponentialAdamsScheduler
from skipstep.samplers.solvers.solver import path_config
from skipstep.samplers.solvers.solver_file import SolverFile

__all__ = ["Reference", "SolverCalibration", "calibrate_solver", "why_not_own"]

FINGERPRINT = ("pipeline", "denoisers", "adapters", "diffusers", "torch")
"""What a solver file remembers of a pipeline: of its scheduler only the path matters."""
Reference = Literal["fine", "own"]
OURS = ("num_inference_steps", "generator", "output_type", "guidance_scale")


def calibrate_solver(
    pipe: Any,
    prompts: Sequence[Any] | str,
    *,
    steps: int = 5,
    guidance: float | Sequence[float] | None = None,
    trajectories: int = 8,
    reference_steps: int = 64,
    reference: Reference = "fine",
    path: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **call: Any,
) -> Calibrated:
    """Fit a solver of `steps` evaluations to the pipeline and return it ready to enable.

    Args:
        prompts: a handful are enough, they are used in turns.
        guidance: scales to fit at; rows are mixed between them, and one scale serves half to 1.75
            of it. None is the pipeline's own.
        trajectories: noises, all in one batch; every fourth judges.
        reference_steps: evaluations of the fine solution of each noise.
        reference: "fine" comes near to the true solution; "own" to where the pipeline's own
            scheduler ends in `reference_steps` steps, for the same picture in fewer.
        path: where to save the file, for enable_plugin("calibrated", file=path).
        seed: the noises' seeds are seed, seed + 1, ...
        call: goes to the pipeline: height, width, ...

    Raises PluginError for what cannot be calibrated.
    """
    made = SolverCalibration(
        pipe,
        prompts,
        guidance=guidance,
        trajectories=trajectories,
        reference_steps=reference_steps,
        reference=reference,
        seed=seed,
        progress=progress,
        call=call,
    )
    found = made.fit(steps)
    if path is not None:
        found.save(path)
    return Calibrated(file=found)


class SolverCalibration:
    """Calibrate one pipeline for any number of steps; the fine solutions are made once.

    `effort` are fields of `Calibration` that make the search smaller or larger.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[Any] | str,
        *,
        guidance: float | Sequence[float] | None = None,
        trajectories: int = 8,
        reference_steps: int = 64,
        reference: Reference = "fine",
        seed: int = 0,
        progress: Progress | None = None,
        call: dict[str, Any] | None = None,
        **effort: Any,
    ) -> None:
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        if not given:
            raise PluginError("calibrate_solver was given no prompts: give at least one")
        self.pipe, self.call, self.seed = pipe, dict(call or {}), seed
        for name in OURS:
            if name in self.call:
                raise PluginError(
                    f"calibrate_solver: {name} cannot be passed on: use steps, seed or guidance"
                )
        self.prompts = [given[i % len(given)] for i in range(trajectories)]
        try:
            config = path_config(pipe.scheduler)
        except ValueError as error:
            raise PluginError(f"calibrate_solver: {error}") from error
        if config.get("use_flow_sigmas"):
            config |= {"shift": 1.0, "use_dynamic_shifting": False}
        reason = why_not_own(pipe) if reference == "own" else None
        if reason is not None:
            raise PluginError(f"calibrate_solver: {reason}: use reference='fine'")
        self.solver: ExponentialAdamsScheduler = ExponentialAdamsScheduler(**config)
        self.job = Calibration(
            self.drive,
            self.solver.path,
            config,
            trajectories,
            scales_of(pipe, guidance, self.call),
            reference_steps,
            tell=progress,
            solve=self.follow if reference == "own" else None,
            **effort,
        )

    def fit(self, steps: int) -> SolverFile:
        """Return the best solver of `steps` evaluations.

        Raises PluginError for numbers that cannot be calibrated with.
        """
        try:
            with silent(self.pipe), bare(self.pipe):
                found = search(self.job, steps, seed=self.seed)
        except ValueError as error:
            raise PluginError(f"calibrate_solver: {error}") from error
        made_for = fingerprint(self.pipe)
        return replace(found, fingerprint={name: made_for[name] for name in FINGERPRINT})

    def drive(self, scale: float | None, times: Sequence[float], advance: Advance) -> Tensor:
        """Run the pipeline at these network times; its own scheduler is back afterwards."""
        driver = DrivingScheduler(self.solver, times, advance)
        self.run(driver, scale, len(times))
        if driver.last is None:
            raise PluginError(
                f"calibrate_solver: {type(self.pipe).__name__} never asked its scheduler to step"
            )
        return driver.last

    def follow(self, scale: float | None) -> DenseTrajectory:
        """Run the pipeline with its own scheduler and keep where that went."""
        path, config = self.solver.path, self.solver.config
        found, ends = DenseTrajectory(path), list[Tensor]()

        def see(time: float, x: Tensor, output: Tensor, following: Tensor) -> None:
            s = path.at_time(time)
            p, q = to_kernel("v", path, s, config.prediction_type, config.sigma_data)
            found.add(s, x, p * x + q * output)
            ends[:] = [following]

        self.run(watched(self.pipe.scheduler, see), scale, self.job.reference_steps)
        first = path.sigma(path.most) / (path.alpha(path.most) + path.sigma(path.most))
        if not ends or found.times[0] < first - 1e-3:
            raise PluginError(
                "calibrate_solver: the pipeline's scheduler does not begin at pure noise, so it "
                "cannot be followed: use reference='fine'"
            )
        # Rounded to whole steps a scheduler may begin a hair below the path's end.
        found.times[0] = max(found.times[0], first)
        found.end(ends[0])
        return found

    def run(self, scheduler: Any, scale: float | None, steps: int) -> None:
        """Call the pipeline with another scheduler; its own is back afterwards."""
        own = self.pipe.scheduler
        arguments: dict[str, Any] = {prompt_parameter(self.pipe): self.prompts, **self.call}
        if scale is not None:
            arguments["guidance_scale"] = scale
        vars(self.pipe)["scheduler"] = scheduler
        try:
            self.pipe(
                **arguments,
                num_inference_steps=steps,
                generator=[
                    torch.Generator("cpu").manual_seed(self.seed + i)
                    for i in range(len(self.prompts))
                ],
                output_type="latent",
            )
        finally:
            vars(self.pipe)["scheduler"] = own


def why_not_own(pipe: Any) -> str | None:
    """Return why the pipeline's own scheduler cannot be followed, or None."""
    scheduler, name = pipe.scheduler, type(pipe.scheduler).__name__
    if adds_noise(pipe):
        return f"{name} adds noise of its own, which no solver can foresee"
    if getattr(scheduler, "order", 1) != 1:
        return f"{name} asks the network twice a step"
    if abs(float(getattr(scheduler, "init_noise_sigma", 1.0)) - 1) > 1e-3:
        return f"{name} scales its samples in a way of its own"
    return None


def scales_of(
    pipe: Any, guidance: float | Sequence[float] | None, call: dict[str, Any]
) -> tuple[float, ...]:
    """Return the guidance scales to fit at: those given, or the pipeline's own.

    Raises PluginError for scales of a pipeline that takes none.
    """
    if guidance is None:
        own = of_the_call(bound_call(pipe, call)).get("guidance")
        return () if own is None else (float(own),)
    if "guidance_scale" not in inspect.signature(type(pipe).__call__).parameters:
        raise PluginError(
            f"calibrate_solver: {type(pipe).__name__} takes no guidance_scale: leave guidance out"
        )
    given = [guidance] if isinstance(guidance, int | float) else list(guidance)
    return tuple(sorted({float(each) for each in given}))
