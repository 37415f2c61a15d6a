"""What `skipstep reconstruct` does: a folder of photographs becomes splats, a page and a video."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from PIL.Image import Image

    from skipstep.pipelines.splat.cameras import Cameras
    from skipstep.pipelines.splat.capture import Capture
    from skipstep.pipelines.splat.gaussians import Gaussians

__all__ = ["reconstruct"]


def say(words: str) -> None:
    """Print a line of progress on stderr."""
    typer.echo(words, err=True)


def reconstruct(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Pictures, with cameras.json or transforms.json; pictures of one object on a "
            "plain background, taken evenly around it, need no cameras.",
            exists=True,
            file_okay=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "out"
    ),
    scene: Annotated[
        bool | None,
        typer.Option(
            "--scene/--object",
            help="A place seen from within, or one object on a plain background; by default a "
            "place when there are cameras and no alpha.",
        ),
    ] = None,
    views: Annotated[int, typer.Option(min=2, help="Pictures to use at most, evenly picked.")] = 32,
    width: Annotated[
        int | None, typer.Option(min=16, help="Width that pictures are shrunk to.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=5, help="Process time for a place, on the CPU.")
    ] = 300.0,
    refine_steps: Annotated[
        int, typer.Option(min=0, help="Steps of refinement of an object.")
    ] = 150,
    background: Annotated[str, typer.Option(help="Behind an object: white or black.")] = "white",
    video: Annotated[bool, typer.Option(help="Write an orbit video too (extra `video`).")] = True,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Turn photographs into 3D Gaussians: .ply, .spz, an offline .html page and a video."""
    import torch

    from skipstep.plugins.errors import PluginError

    torch.set_num_threads(threads)
    name = folder.resolve().name
    try:
        capture = read_views(folder, views, width)
        is_scene = scene
        if is_scene is None:
            is_scene = capture is not None and capture.pictures.shape[1] == 3
        if is_scene:
            gaussians, camera, frames = rebuild_scene(folder, capture, seconds)
        else:
            camera = None
            gaussians, frames = rebuild_object(folder, capture, background, refine_steps)
        written = [gaussians.save(output / f"{name}{ending}") for ending in (".ply", ".spz")]
        written.append(gaussians.save(output / f"{name}.html", camera=camera, title=name))
    except ValueError as error:
        raise PluginError(f"reconstruct: {error}") from None
    if video:
        written += film(frames, output / f"{name}.mp4")
    for path in written:
        typer.echo(f"{path}  ({path.stat().st_size / 1e6:.2f} MB)")


def read_views(folder: Path, views: int, width: int | None) -> "Capture | None":
    """Read a capture, or None where there are no cameras; at most `views`, evenly picked."""
    from skipstep.pipelines.splat.capture import CAMERA_FILES, read_capture

    if not any((folder / name).is_file() for name in CAMERA_FILES):
        return None
    capture = read_capture(folder, width=width)
    if len(capture) <= views:
        return capture
    last = len(capture) - 1
    return capture[[round(i * last / (views - 1)) for i in range(views)]]


def rebuild_scene(
    folder: Path, capture: "Capture | None", seconds: float
) -> "tuple[Gaussians, Cameras, list[Image]]":
    """Rebuild a place; return it, a camera to open the page with, and the frames of a video."""
    from skipstep.pipelines.splat.scene import mean_colour, reconstruct_scene

    if capture is None:
        raise ValueError(f"{folder} has no cameras, and a place cannot be rebuilt without them")
    gaussians = reconstruct_scene(capture, seconds=seconds, tell=say)
    say(f"{len(gaussians):,} Gaussians")
    cameras, view = capture.cameras, len(capture) // 2
    middle, _ = gaussians.extent()
    ahead = float((cameras.w2c[view, 2, :3] * (middle - cameras.centres[view])).sum())
    swing = cameras.swing(view, distance=max(ahead, 1e-3), amount=0.12)
    wall = mean_colour(capture)
    frames = [
        gaussians.render(swing[frame], background=wall).pictures()[0] for frame in range(len(swing))
    ]
    return gaussians, cameras[view], frames


def rebuild_object(
    folder: Path, capture: "Capture | None", background: str, refine_steps: int
) -> "tuple[Gaussians, list[Image]]":
    """Rebuild an object; return it and the frames of an orbit."""
    from skipstep.pipelines.splat.pipeline import (
        GaussianReconstructionPipeline,
        load_reconstructor,
    )

    pipe = GaussianReconstructionPipeline(load_reconstructor())
    result = pipe(
        folder if capture is None else capture.pictures,
        None if capture is None else capture.cameras,
        background=background,
        refine_steps=refine_steps,
    )
    took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    say(f"{len(result.gaussians):,} Gaussians ({took})")
    return result.gaussians, result.gaussians.orbit(36).pictures()


def film(frames: "list[Image]", path: Path) -> list[Path]:
    """Write a video if PyAV is there; return what was written."""
    from skipstep.pipelines.splat.video import write_video

    try:
        write_video(frames, path)
    except ImportError as error:
        say(f"no video: {error}")
        return []
    return [path]
