"""Photographs of one object to 3D Gaussians on the page: read, reconstruct, refine, write files.

Photographs are shrunk before anything is done with them: the model works at 64 pixels, and the
refinement takes what is larger up to LONGEST_SIDE. All that goes in has an end (limits.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from skipstep.pipelines.batch.rows import RowError
from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.objects import new_object, picture
from skipstep.pipelines.splat.pipeline import (
    BACKGROUNDS,
    MOST_VIEWS,
    GaussianReconstructionPipeline,
    canonical_cameras,
    load_reconstructor,
)
from skipstep.pipelines.ui.limits import Limits, check_upload, read_count
from skipstep.pipelines.ui.long_runs import Result, Step
from skipstep.pipelines.ui.reports import new_report
from skipstep.pipelines.ui.streams import Tell, stream
from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import show

__all__ = ["ENDINGS", "Sculpture", "draw_example", "read_photos", "run_splats"]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
FEWEST_VIEWS, LONGEST_SIDE = 2, 256
TURN, TURN_WIDTH, TURN_MILLISECONDS = 24, 192, 90
EXAMPLE_VIEWS, EXAMPLE_SIZE = 4, 128


@dataclass(frozen=True)
class Sculpture:
    """What came out: the Gaussians, a turn around them as animated WebP, the viewer, the files."""

    gaussians: Gaussians
    seconds: dict[str, float]
    turn: Path
    viewer: Path
    files: tuple[Path, ...]


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
        tell(Step(0, 0, "turning it once around, writing the files"))
        stop.check()
        tell(Result(saved(found.gaussians, found.seconds, new_report(reports))))

    return stream(work)


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


def saved(gaussians: Gaussians, seconds: dict[str, float], folder: Path) -> Sculpture:
    """Write everything that can be downloaded."""
    names = [folder / f"object{ending}" for ending in (".ply", ".splat", ".spz", ".html")]
    for path in names:
        gaussians.save(path)
    turn = folder / "turn.webp"
    with torch.no_grad():
        first, *others = gaussians.orbit(TURN, width=TURN_WIDTH).pictures()
    first.save(turn, save_all=True, append_images=others, duration=TURN_MILLISECONDS, loop=0)
    return Sculpture(gaussians, seconds, turn, names[-1], (*names, turn))


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
