"""Generate pictures to files that say how they were made.

Each picture is one pipeline call, so it does not depend on its neighbours: the file's metadata is
enough to make it again. Files are named by a running number and a slug of the prompt, never by the
prompt itself, and none is overwritten.
"""

import inspect
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipstep.pipelines.clip_files import CLIP_FORMATS, FRAMES_PER_SECOND, save_clip
from skipstep.pipelines.pictures import read_pictures, save_png, to_bytes, to_image
from skipstep.plugins import options
from skipstep.plugins.errors import PluginError

__all__ = ["Saved", "file_name", "generate", "is_reference", "load_pipeline", "size_arguments"]

LONGEST_SLUG = 48
LARGEST_SIDE = 8192


@dataclass(frozen=True)
class Saved:
    """A picture that was written, its seed, and what its plugins reported (None without any)."""

    path: Path
    prompt: str
    seed: int
    report: Any


def generate(
    pipe: Any,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    steps: int = 20,
    seed: int = 0,
    num: int = 1,
    guidance: float | None = None,
    size: str | None = None,
    plugins: Sequence[Any] = (),
    model: str = "",
    clip_format: str = "webp",
    on_saved: Callable[[Saved], None] | None = None,
) -> list[Saved]:
    """Make `num` pictures of each prompt and save them as PNG files; clips as WebP or MP4.

    Args:
        pipe: a diffusers text-to-image pipeline.
        folder: made if it is not there.
        seed: picture i of a prompt is made from seed + i.
        guidance: the pipeline's guidance_scale; None leaves it its default.
        size: "256" or "512x768" (width x height); None leaves the pipeline its default.
        plugins: options objects that are switched on meanwhile.
        model: what to note as the model in the metadata.
        clip_format: "webp" or "mp4", for pipelines that make clips.
        on_saved: called after each file.

    Raises PluginError for unusable arguments.
    """
    for name, value in (("steps", steps), ("num", num)):
        if value < 1:
            raise PluginError(f"generate: {name}={value} is not allowed: must be 1 or more")
    if clip_format not in CLIP_FORMATS:
        raise PluginError(
            f"generate: clip_format={clip_format!r} is not known: choose {', '.join(CLIP_FORMATS)}"
        )
    if not prompts:
        raise PluginError('generate: no prompt given: for example "a pizza, 3d style"')
    call: dict[str, Any] = {"num_inference_steps": steps, "output_type": "np"}
    if guidance is not None:
        call["guidance_scale"] = guidance
    if size is not None:
        call |= size_arguments(pipe, size)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    saved = []
    with pipe.plugins(*plugins):
        for prompt in prompts:
            for index in range(num):
                generator = torch.Generator("cpu").manual_seed(seed + index)
                result = pipe(prompt=prompt, generator=generator, **call)
                report = pipe.plugin_report() if plugins else None
                frames = to_bytes(read_pictures(result).transpose(0, 1))  # frame by frame
                kind = "png" if len(frames) == 1 else clip_format
                path = target / file_name(target, prompt, kind)
                described = describe(pipe, prompt, seed + index, call, plugins, model, report)
                if len(frames) == 1:
                    save_png(to_image(frames[0]), path, described)
                else:
                    save_clip(np.stack(frames), path, described, rate=FRAMES_PER_SECOND)
                saved.append(Saved(path, prompt, seed + index, report))
                if on_saved is not None:
                    on_saved(saved[-1])
    return saved


def describe(
    pipe: Any,
    prompt: str,
    seed: int,
    call: dict[str, Any],
    plugins: Sequence[Any],
    model: str,
    report: Any,
) -> dict[str, Any]:
    """Return what is needed to make a picture again, and what its plugins did."""
    described: dict[str, Any] = {
        "version": 1,
        "prompt": prompt,
        "seed": seed,
        **{name: value for name, value in call.items() if name != "output_type"},
        "pipeline": type(pipe).__name__,
        "model": model,
        "plugins": [options.to_dict(plugin) for plugin in plugins],
        "torch": torch.__version__,
        "diffusers": metadata.version("diffusers"),
    }
    if report is not None:
        described["fraction"] = report.fraction
        described["verdict"] = report.verdict
    return described


def file_name(folder: Path, prompt: str, kind: str = "png") -> str:
    """Return a free file name: a number after the highest in the folder and a slug of the prompt.

    >>> file_name(Path("no such folder"), "../Café & <b>Pizza</b>")
    '0001-cafe-b-pizza-b.png'
    """
    numbers = [0]
    if folder.is_dir():
        found = (re.match(r"(\d+)-", path.name) for path in folder.iterdir())
        numbers += [int(match[1]) for match in found if match is not None]
    return f"{max(numbers) + 1:04d}-{slug(prompt)}.{kind}"


def slug(prompt: str) -> str:
    """Return the prompt as at most 48 lower-case ASCII letters and digits, joined by dashes."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode("ascii")
    words = re.findall(r"[a-z0-9]+", plain.lower())
    return "-".join(words)[:LONGEST_SLUG].strip("-") or "picture"


def size_arguments(pipe: Any, size: str) -> dict[str, Any]:
    """Return the call's arguments for pictures of `size`, exactly."""
    width, height = read_size(size)
    arguments: dict[str, Any] = {"width": width, "height": height}
    # Pipelines that bin resolutions would make another size and resize it to the one asked for.
    if "use_resolution_binning" in inspect.signature(type(pipe).__call__).parameters:
        arguments["use_resolution_binning"] = False
    return arguments


def read_size(text: str) -> tuple[int, int]:
    """Read "256" or "512x768" (width x height) as pixels.

    >>> read_size("512x768"), read_size("128")
    ((512, 768), (128, 128))
    """
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    if match is None:
        raise PluginError(f"size {text!r} is not a size: write 256 or 512x768 (width x height)")
    width = int(match[1])
    height = int(match[2] or match[1])
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise PluginError(f"size {text!r} is not allowed: sides are 1 to {LARGEST_SIDE} pixels")
    return width, height


def is_reference(model: str | None) -> bool:
    """Say whether `model` names one of our reference models; None is the default one."""
    from skipstep.pipelines.reference.recipe import recipe_names

    return model is None or (model in recipe_names() and not Path(model).exists())


def load_pipeline(
    model: str | None = None, *, device: str | None = None, dtype: str | None = None
) -> Any:
    """Load a diffusers pipeline from a folder or a hub id, or a reference model by its name.

    None is the default reference model; a folder goes before a reference model of the same name.
    Only safetensors are read, and no code that comes with a model is run. The device defaults to a
    CUDA GPU where there is one; the dtype to bfloat16 there and float32 elsewhere.

    Raises PluginError for a model, device or dtype that cannot be used.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None and dtype not in kinds:
        raise PluginError(f"dtype {dtype!r} is not known: choose {', '.join(kinds)}")
    default = torch.bfloat16 if chosen.startswith("cuda") else torch.float32
    kind = kinds[dtype] if dtype else default
    if is_reference(model):
        from skipstep.pipelines.reference import load_reference

        pipe: Any = load_reference(model or "picture", dtype=kind)
    else:
        from diffusers import DiffusionPipeline

        try:
            pipe = DiffusionPipeline.from_pretrained(model, dtype=kind, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise PluginError(
                f"model {model!r} cannot be loaded: {str(error).strip()} (give a folder with a "
                "model_index.json and safetensors, or a hub id)"
            ) from error
    try:
        return pipe.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise PluginError(f"device {chosen!r} cannot be used: {error}") from error
