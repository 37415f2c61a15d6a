"""`skipstep calibrate`: fit a solver to a model and write its file."""

from pathlib import Path
from typing import Annotated

import typer

from skipstep.pipelines.cli.options import Device, Dtype, Model, Size, Threads, load

__all__ = ["calibrate"]


def calibrate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts to fit on; without any, sixteen of the reference model's."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file; else solver-N.json.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, max=64, help="Evaluations of the solver.")] = 5,
    guidance: Annotated[
        list[float] | None,
        typer.Option(help="Scale to fit at; repeat it for a range. Else the pipeline's own."),
    ] = None,
    trajectories: Annotated[
        int, typer.Option(min=4, help="Noises, in one batch; every fourth judges.")
    ] = 8,
    reference_steps: Annotated[
        int, typer.Option(min=8, help="Evaluations of each noise's fine solution.")
    ] = 64,
    own: Annotated[
        bool,
        typer.Option(
            "--own",
            help="Fit to where the pipeline's own scheduler ends in --reference-steps steps: the "
            "same picture in fewer.",
        ),
    ] = False,
    model: Model = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first noise.")] = 9000,
    size: Size = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Fit a few-step solver to a model; use it with enable_plugin("calibrated", file=...)."""
    from skipstep.pipelines.progress import progress_bar
    from skipstep.pipelines.reference.prompts import load_prompts
    from skipstep.pipelines.tune.calibrate_solver import calibrate_solver
    from skipstep.plugins.errors import PluginError

    if not prompts and model is not None:
        raise PluginError("calibrate: no prompts given, and only the reference model has some")
    pipe, call = load(model, device, dtype, threads, size=size, guidance=None)
    wanted = prompts or [each["prompt"] for each in load_prompts()[9::16]]
    path = output or Path(f"solver-{steps}.json")
    with progress_bar() as progress:
        plugin = calibrate_solver(
            pipe,
            wanted,
            steps=steps,
            guidance=guidance or None,
            trajectories=trajectories,
            reference_steps=reference_steps,
            reference="own" if own else "fine",
            path=path,
            seed=seed,
            progress=progress,
            **call,
        )
    file, measured = plugin.solver, plugin.solver.measured
    last = file.fallback
    best = f"{last.preset}, {last.spacing}" + (f", shift {last.shift:g}" if last.shift != 1 else "")
    typer.echo(f"{path}: {steps} steps, {file.numbers} numbers")
    typer.echo(
        f"relative error on noises not fitted on: {measured.calibrated:.3f}; best published solver "
        f"({best}) {measured.fallback:.3f}, plain Euler {measured.plain:.3f}"
    )
    if not file.rows:
        typer.echo("nothing fitted was better than that solver, so the file holds it and no rows")
