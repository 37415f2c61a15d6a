"""Photographs of one object, or a prompt, to 3D Gaussians on the page, and the files to keep.

Photographs are shrunk before anything is done with them: the model works at 64 pixels, and the
refinement takes what is larger up to LONGEST_SIDE. All that goes in has an end (limits.py).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from skipstep.pipelines.batch.rows import RowError
from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.progress import Progress
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.objects import new_object, picture
from skipstep.pipelines.splat.pipeline import (
    BACKGROUNDS,
    MOST_VIEWS,
    GaussianReconstructionPipeline,
    canonical_cameras,
    load_reconstructor,
)
from skipstep.pipelines.splat.text_to_3d import gaussians_from_text
from skipstep.pipelines.ui.limits import Limits, check_upload, read_count, read_settings
from skipstep.pipelines.ui.long_runs import Result, Step, run_with_model
from skipstep.pipelines.ui.reports import new_report
from skipstep.pipelines.ui.streams import Tell, stream
from skipstep.pipelines.ui.studio import Studio, call_of, check_sort
from skipstep.pipelines.ui.watching import watched
from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import show

__all__ = [
    "ENDINGS",
    "Sculpture",
    "draw_example",
    "read_photos",
    "run_splats",
    "run_splats_from_text",
]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
FEWEST_VIEWS, LONGEST_SIDE = 2, 256
TURN, TURN_WIDTH, TURN_MILLISECONDS = 24, 192, 90
EXAMPLE_VIEWS, EXAMPLE_SIZE = 4, 128
WRITING = "turning it once around, writing the files"


@dataclass(frozen=True)
class Sculpture:
    """What came out: the Gaussians, a turn around them as animated WebP, the viewer, the files.

    `drawing` is the picture of a prompt that was made first.
    """

    gaussians: Gaussians
    seconds: dict[str, float]
    turn: Path
    viewer: Path
    files: tuple[Path, ...]
    drawing: Path | None = None


def run_splats(
    limits: Limits, reports: Path, *, photos: object, background: object, refine_steps: object
) -> Iterator[Any]:
    """Yield Steps and at last a Result with the Sculpture.

    Raises PluginError for what is not allowed.
    """
    if background not in BACKGROUNDS:
        raise PluginError(f"background {show(background)} is not known: {', '.join(BACKGROUNDS)}")
    steps = read_count("refinement steps", refine_steps, 0, limits.refine_steps)
    pictures = read_photos(photos, limits)

    def work(tell: Tell, stop: Stop) -> None:
        def on_step(step: int, loss: float) -> bool:
            stop.check()
            tell(Step(step + 1, steps, "refining on the photographs"))
            return False

        tell(Step(0, 0, "one forward pass"))
        pipe = GaussianReconstructionPipeline(load_reconstructor())
        try:
            found = pipe(pictures, background=background, refine_steps=steps, on_step=on_step)
        except ValueError as error:
            raise PluginError(str(error)) from None
        if not len(found.gaussians):
            raise PluginError(
                "nothing is left of the object: is it cut out, or on that background?"
            )
        tell(Step(0, 0, WRITING))
        stop.check()
        tell(Result(saved(found.gaussians, found.seconds, new_report(reports))))

    return stream(work)


def run_splats_from_text(
    studio: Studio,
    limits: Limits,
    reports: Path,
    *,
    model: str,
    prompt: object,
    seed: object,
    steps: object,
) -> Iterator[Any]:
    """Yield Steps and at last a Result with the Sculpture of what a text-to-image model drew.

    Raises PluginError for what is not allowed.
    """
    row = read_settings({"prompt": prompt, "seed": seed, "steps": steps}, limits)

    def action(pipe: Any, progress: Progress, stop: Stop, tell: Tell) -> Sculpture:
        check_sort(pipe, is_clip=False)
        call_of(pipe, row)
        began = time.perf_counter()
        drawn = began

        def see(step: int, latents: Any) -> None:
            nonlocal drawn
            drawn = time.perf_counter()
            progress(step, row.steps, "drawing the object")

        progress(0, row.steps, "drawing the object")
        try:
            gaussians, drawing = gaussians_from_text(
                row.prompt,
                text_to_image=pipe,
                seed=row.seed,
                num_inference_steps=row.steps,
                **watched(pipe, stop, see),
            )
        except PluginError:
            raise
        except ValueError as error:
            raise PluginError(str(error)) from None
        seconds = {"draw": drawn - began, "lift": time.perf_counter() - drawn}
        progress(0, 0, WRITING)
        return saved(gaussians, seconds, new_report(reports), drawing)

    return run_with_model(studio, model, action)


def read_photos(photos: object, limits: Limits) -> list[Image.Image]:
    """Return photographs of one size, no side longer than LONGEST_SIDE.

    Args:
        photos: paths of uploads.

    Raises PluginError for what is no picture, too large, or of another size than the first.
    """
    if not isinstance(photos, Sequence) or isinstance(photos, str):
        raise PluginError(f"photographs are {show(photos)}: upload some")
    if not FEWEST_VIEWS <= len(photos) <= MOST_VIEWS:
        raise RowError(
            f"{len(photos)} photographs were given: {FEWEST_VIEWS} to {MOST_VIEWS} of one object"
        )
    found: list[Image.Image] = []
    sizes = set()
    for number, path in enumerate(photos, start=1):
        file = check_upload(path, limits)
        try:
            with Image.open(file, formats=FORMATS) as image:
                sizes.add(image.size)
                if image.width * image.height > limits.photo_pixels:
                    raise RowError(
                        f"photograph {number} has {image.width} x {image.height} pixels: at most "
                        f"{limits.photo_pixels:,}"
                    )
                # A JPEG is decoded at a fraction of its size where that is enough.
                image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
                image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
                has_alpha = "A" in image.getbands() or "transparency" in image.info
                found.append(image.convert("RGBA" if has_alpha else "RGB"))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError):
            raise PluginError(
                f"photograph {number} cannot be read: give PNG, JPEG or WebP"
            ) from None
    if len(sizes) > 1:
        told = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise PluginError(f"the photographs differ in size ({told}): cut them to one size first")
    return found


def saved(
    gaussians: Gaussians,
    seconds: dict[str, float],
    folder: Path,
    drawing: Image.Image | None = None,
) -> Sculpture:
    """Write everything that can be downloaded."""
    names = [folder / f"object{ending}" for ending in (".ply", ".splat", ".spz", ".html")]
    for path in names:
        gaussians.save(path)
    turn = folder / "turn.webp"
    with torch.no_grad():
        first, *others = gaussians.orbit(TURN, width=TURN_WIDTH).pictures()
    first.save(turn, save_all=True, append_images=others, duration=TURN_MILLISECONDS, loop=0)
    files = (*names, turn)
    if drawing is None:
        return Sculpture(gaussians, seconds, turn, names[-1], files)
    drawn = folder / "drawing.png"
    drawing.save(drawn)
    return Sculpture(gaussians, seconds, turn, names[-1], (*files, drawn), drawn)


def draw_example(seed: int, folder: Path) -> list[Path]:
    """Draw an object from as many sides as are taken when photographs have no cameras."""
    cameras = canonical_cameras(EXAMPLE_VIEWS, EXAMPLE_SIZE)
    pictures, _ = picture(new_object(seed), cameras)
    place = new_report(folder)
    paths = []
    for number, values in enumerate(pictures):
        path = place / f"{number}.png"
        Image.fromarray(values.permute(1, 2, 0).numpy()).save(path)
        paths.append(path)
    return paths
