"""The command line: `skipstep generate`, `batch`, `compare`, `autotune`, `plugins`, `doctor`, ...

Thin: each command reads its arguments, calls one function of the library and prints what it
returns. A mistake of the user is one line on stderr and exit code 2; what is slow to import is
imported late.
"""

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from skipstep.pipelines.batch.command_line import batch
from skipstep.pipelines.cli.calibrate import calibrate
from skipstep.pipelines.cli.options import (
    Device,
    Dtype,
    Guidance,
    Model,
    Plugins,
    Recipe,
    Seed,
    Size,
    Steps,
    Threads,
    load,
    model_name,
    quiet,
    use_threads,
)
from skipstep.pipelines.distill.command import distill
from skipstep.pipelines.splat.command import reconstruct

__all__ = ["app", "main"]

app = typer.Typer(
    name="skipstep",
    help="Make diffusers pipelines do less work for the same picture, and prove what it cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

for command in (batch, calibrate, distill, reconstruct):
    app.command()(command)

# Chosen on the reference model: one that halves the block computations by a fixed rhythm, and one
# that decides per sample. In front of them, at its number of steps, the schedule planned for it.
DEFAULT_ARMS = (
    "abcache:interval=3,warmup_steps=5,final_steps=0",
    "easycache:threshold=0.05",
)
PLANNED = "planned schedule, half of the steps"
# Things that the reference model draws well enough to be named; its evaluation set, which also
# holds what it draws badly, is pipelines/reference/prompts.json.
DEFAULT_PROMPTS = (
    "grinning face, flat style",
    "red heart, 3d style, on a black background",
    "strawberry, 3d style",
    "hamburger, flat style, on a purple background",
    "alien, flat style, on a black background",
    "cat face, noto style, on a pink background",
    "frog, 3d style, on a yellow background",
    "smiling face with sunglasses, noto style, on a red background",
    "watermelon, flat style",
    "ghost, flat style, on a purple background",
    "black heart, 3d style, on a pink background",
    "red apple, flat style, on a grey background",
)


def print_version(is_wanted: bool) -> bool:
    """Print the version and leave."""
    if is_wanted:
        # The root package is above this layer, but it is our parent and so loaded already.
        typer.echo(f"skipstep {sys.modules['skipstep'].__version__}")
        raise typer.Exit
    return is_wanted


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the PNGs.")] = Path(
        "out"
    ),
    plugin: Plugins = None,
    recipe: Recipe = None,
    model: Model = None,
    steps: Steps = 20,
    seed: Seed = 0,
    num: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 1,
    guidance: Guidance = None,
    size: Size = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    clip_format: Annotated[str, typer.Option(help="webp or mp4, for models of clips.")] = "webp",
) -> None:
    """Make pictures or clips; each file knows how it was made (skipstep show)."""
    from skipstep.pipelines.compare.arms import read_recipe
    from skipstep.pipelines.generate import Saved, load_pipeline
    from skipstep.pipelines.generate import generate as generate_pictures

    plugins = read_recipe([*([recipe] if recipe else []), *(plugin or [])])

    use_threads(threads, model)

    def tell(saved: Saved) -> None:
        typer.echo(f"{saved.path}  (seed {saved.seed})")
        if saved.report is not None:
            typer.echo(str(saved.report))

    generate_pictures(
        quiet(load_pipeline(model, device=device, dtype=dtype)),
        prompts,
        output,
        steps=steps,
        seed=seed,
        num=num,
        guidance=guidance,
        size=size,
        plugins=plugins,
        model="reference" if model is None else model_name(model),
        clip_format=clip_format,
        on_saved=tell,
    )


@app.command()
def compare(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts; without any, a dozen of the reference model's."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the page.")] = Path(
        "out/compare"
    ),
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            "-p",
            help='An arm: "easycache:threshold=0.08", "a + b" together, or a recipe file; repeat '
            "-p for more arms. Without any, three presets.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Take this many of the reference model's 256 evaluation prompts, evenly spread.",
        ),
    ] = None,
    model: Model = None,
    steps: Steps = 20,
    seed: Seed = 0,
    repeats: Annotated[int, typer.Option(min=1, help="How often each round is timed.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts in one pipeline call.")] = 1,
    fewer_steps: Annotated[
        bool, typer.Option(help="Also run fewer uncached steps at equal cost.")
    ] = True,
    guidance: Guidance = None,
    size: Size = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Compare plugins with the uncached pipeline: same seeds, time, fidelity, a page to look at."""
    from skipstep.pipelines.compare.run import compare as compare_arms
    from skipstep.pipelines.progress import progress_bar

    pipe, call = load(model, device, dtype, threads, size=size, guidance=guidance)
    if prompts and count is not None:
        raise typer.BadParameter("give prompts or --count, not both")
    wanted, arms = prompts or default_prompts(count), plugin or default_arms(model, steps)
    typer.echo(f"comparing {', '.join(arms)} on {len(wanted)} prompts", err=True)
    with progress_bar() as progress:
        outcome = compare_arms(
            pipe,
            wanted,
            arms,
            steps=steps,
            seed=seed,
            repeats=repeats,
            batch_size=batch_size,
            fewer_steps=fewer_steps,
            progress=progress,
            **call,
        )
    page = outcome.save(output)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo(outcome.text(width))
    typer.echo(f"\nPictures and numbers: {page}")
    typer.echo(f"All pictures on one sheet: {output / 'sheet.png'}")


@app.command()
def autotune(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts to tune on; without any, the reference model's own."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what is found.")] = (
        Path("out/autotune")
    ),
    target_speedup: Annotated[
        float | None, typer.Option(help="At least so many times less work, 2.5 for example.")
    ] = None,
    max_feature_distance: Annotated[
        float | None, typer.Option(help="At most this feature distance to the uncached pictures.")
    ] = None,
    min_psnr: Annotated[float | None, typer.Option(help="At least so many decibels.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Most arms to try.")] = 40,
    budget_minutes: Annotated[float | None, typer.Option(help="Start no trial after it.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="SQLite file of all trials, to go on from; else in the folder."),
    ] = None,
    model: Model = None,
    steps: Steps = 20,
    seed: Seed = 0,
    guidance: Guidance = None,
    size: Size = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Find the recipe that meets a target and save it with its Pareto front."""
    from skipstep.pipelines.tune.autotune import autotune as tune

    pipe, call = load(model, device, dtype, threads, size=size, guidance=guidance)
    output.mkdir(parents=True, exist_ok=True)
    found = tune(
        pipe,
        prompts or None,
        target_speedup=target_speedup,
        max_feature_distance=max_feature_distance,
        min_psnr=min_psnr,
        steps=steps,
        trials=trials,
        budget_minutes=budget_minutes,
        store=store or output / "trials.db",
        seed=seed,
        **call,
    )
    found.to_json(output / "autotune.json")
    found.save_picture(output / "front.png")
    found.save_recipe(output / "recipe.yaml")
    typer.echo(str(found))
    typer.echo(f"\nRecipe: {output / 'recipe.yaml'}\nFront: {output / 'front.png'}")


@app.command()
def plugins(
    name: Annotated[
        str | None, typer.Argument(help="A plugin, to see its options.", show_default=False)
    ] = None,
) -> None:
    """List the plugins, or the options of one."""
    from rich.console import Console

    from skipstep.pipelines.plugin_tables import option_table, plugin_table

    Console().print(plugin_table() if name is None else option_table(name))


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A cache-dit YAML file.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the recipe here.")
    ] = None,
) -> None:
    """Turn a cache-dit configuration into a recipe; what has no counterpart is listed."""
    from skipstep.pipelines.cli.convert import convert as convert_file
    from skipstep.plugins import recipe

    converted = convert_file(file)
    for sentence in converted.left_out:
        typer.echo(f"not carried over: {sentence}", err=True)
    if output is None:
        typer.echo(recipe.text(converted.plugins), nl=False)
    else:
        recipe.save(output, converted.plugins)
        typer.echo(f"wrote {output}")


@app.command()
def show(
    picture: Annotated[
        Path, typer.Argument(help="A PNG, WebP or MP4 made by skipstep.", show_default=False)
    ],
) -> None:
    """Print how a picture was made."""
    from skipstep.pipelines.pictures import read_metadata

    typer.echo(read_metadata(picture))


@app.command()
def doctor() -> None:
    """Examine this installation; the exit code is 1 if something is broken."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from skipstep.pipelines.cli.doctor import examine

    console, colours = Console(), {"ok": "green", "absent": "yellow", "broken": "bold red"}
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "state", "detail"):
        table.add_column(heading, overflow="fold")
    is_broken = False
    for finding in examine():
        state = f"[{colours[finding.state]}]{finding.state}[/]"
        table.add_row(escape(finding.what), state, escape(finding.detail))
        is_broken = is_broken or finding.state == "broken"
    console.print(table)
    raise typer.Exit(1 if is_broken else 0)


def default_arms(model: str | None, steps: int) -> dict[str, Any]:
    """Return the demo's arms by name; the planned one only where it was planned for."""
    from skipstep.pipelines.reference import planned

    arms: dict[str, Any] = {name: name for name in DEFAULT_ARMS}
    if model is not None or steps != planned.STEPS:
        return arms
    return {PLANNED: planned.planned_cache(), **arms}


def default_prompts(count: int | None) -> list[str]:
    """Return the demo's dozen, or `count` of the evaluation prompts, spread over all of them."""
    from skipstep.pipelines.reference.prompts import load_prompts

    if count is None:
        return list(DEFAULT_PROMPTS)
    known = load_prompts()
    return [known[i * len(known) // count]["prompt"] for i in range(count)]


def main() -> None:
    """Run the command line; a mistake of the user is one line and exit code 2."""
    from skipstep.plugins.errors import PluginError

    try:
        app()
    except (PluginError, FileNotFoundError, PermissionError) as error:
        typer.echo(f"skipstep: {error}", err=True)
        raise SystemExit(2) from None
