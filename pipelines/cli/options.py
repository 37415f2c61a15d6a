"""The options that several commands share, and what they are turned into: a pipeline."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Device",
    "Dtype",
    "Guidance",
    "Model",
    "Plugins",
    "Recipe",
    "Seed",
    "Size",
    "Steps",
    "Threads",
    "load",
    "model_name",
    "quiet",
    "use_threads",
]

Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        "-p",
        help='Plugin and options: "easycache:threshold=0.08"; several: repeat -p.',
        show_default=False,
    ),
]
Recipe = Annotated[Path | None, typer.Option(help="A recipe file (YAML) of plugins.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Folder or hub id of a diffusers pipeline, or a reference model (picture, unet, ...); "
        "without it the built-in one, picture.",
        show_default=False,
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first picture; then seed + 1, ...")]
Guidance = Annotated[
    float | None, typer.Option(help="guidance_scale; without it the pipeline's own.")
]
Size = Annotated[
    str | None, typer.Option(help="256 or 512x768 (width x height); else the pipeline's own.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; else a GPU if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="CPU threads; without it one for the reference model, whose time is then steady also "
        "on a busy machine, and torch's own choice for others.",
        show_default=False,
    ),
]


def load(
    model: str | None,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    *,
    size: Any,
    guidance: float | None,
) -> tuple[Any, dict[str, Any]]:
    """Return the pipeline and what its calls are given besides prompt, steps and seed."""
    from skipstep.pipelines.generate import load_pipeline, size_arguments

    use_threads(threads, model)
    pipe = load_pipeline(model, device=device, dtype=dtype)
    call: dict[str, Any] = {} if size is None else size_arguments(pipe, size)
    if guidance is not None:
        call["guidance_scale"] = guidance
    return pipe, call


def use_threads(threads: int | None, model: str | None) -> None:
    """Set torch's CPU threads: those asked for, or one for the reference model.

    Its matrices are so small that two threads gain a third of the time on a free machine, and wait
    for each other many times as long as soon as anything else runs.
    """
    import torch

    from skipstep.pipelines.generate import is_reference

    if threads is not None or is_reference(model):
        torch.set_num_threads(threads or 1)


def model_name(model: str) -> str:
    """Return a model's name for metadata: a hub id as it is, of a folder only the last part."""
    return Path(model).resolve().name if Path(model).exists() else model


def quiet(pipe: Any) -> Any:
    """Hide a pipeline's progress bar where nobody looks at it."""
    if not sys.stderr.isatty():
        pipe.set_progress_bar_config(disable=True)
    return pipe
