"""Reconstruct a real scene from posed photographs: plane sweep, then refinement, coarse to fine.

The first FINE of the time goes to pictures of half the size, which cost a quarter and fix what is
large; then the pictures as they are. The time is process time, so that a busy machine does not
change the result much.
"""

import time
from collections.abc import Callable

from skipstep.pipelines.splat.capture import Capture
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.plane_sweep import depth_range, swept_gaussians
from skipstep.pipelines.splat.refine import refine

__all__ = ["fit", "reconstruct_scene"]

FINE = 0.35
# Pixels per view at which depth is swept: as many Gaussians as a CPU renders in half a second.
SWEEP_PIXELS = 3600
Tell = Callable[[str], None]


def mean_colour(capture: Capture) -> tuple[float, float, float]:
    """Return the mean colour of all pictures: what rays that meet nothing show."""
    red, green, blue = capture.pictures[:, :3].mean((0, 2, 3)).tolist()
    return red, green, blue


def reconstruct_scene(
    capture: Capture, *, seconds: float = 300.0, near: float | None = None, tell: Tell | None = None
) -> Gaussians:
    """Return the Gaussians of a scene within about `seconds` of process time.

    Raises ValueError when fewer than 3 views are given or no pixel's depth can be trusted.
    """
    if len(capture) < 3:
        raise ValueError(f"{len(capture)} pictures are too few for a scene: give 3 or more")
    began = time.process_time()
    cameras = capture.cameras
    shrink = max(1.0, (cameras.width * cameras.height / SWEEP_PIXELS) ** 0.5)
    small = capture.resized(round(cameras.width / shrink), round(cameras.height / shrink))
    nearest, farthest = depth_range(small.cameras)
    start = swept_gaussians(small, near=near or nearest, far=farthest)
    if not len(start):
        raise ValueError(
            "no two pictures agree on any depth: are the cameras those of the pictures?"
        )
    if tell is not None:
        tell(f"{len(start):,} Gaussians from the plane sweep")
    return fit(start, capture, seconds=seconds - (time.process_time() - began), tell=tell)


def fit(
    start: Gaussians, capture: Capture, *, seconds: float, tell: Tell | None = None
) -> Gaussians:
    """Refine a start on a capture for about `seconds` of process time, coarse to fine."""
    background = mean_colour(capture)
    cameras = capture.cameras
    halves = capture.resized(max(8, cameras.width // 2), max(8, cameras.height // 2))
    result = start
    for name, pictures, share in (("coarse", halves, FINE), ("fine", capture, 1 - FINE)):
        began, budget = time.process_time(), seconds * share
        result = refine_for(result, pictures, budget, background, tell, name)
        if tell is not None:
            tell(f"{name}: {time.process_time() - began:.0f} s")
    return result.pruned()


def refine_for(
    start: Gaussians,
    capture: Capture,
    seconds: float,
    background: tuple[float, float, float],
    tell: Tell | None,
    name: str,
) -> Gaussians:
    """Refine for a time: a few steps tell how many there will be, so that the rates end low."""
    probe, began = 3, time.process_time()
    result = refine(start, capture.pictures, capture.cameras, steps=probe, background=background)
    each = (time.process_time() - began) / probe
    steps = int((seconds - probe * each) / each)

    def is_over(step: int, loss: float) -> bool:
        if tell is not None and step % 100 == 99:
            tell(f"{name}: step {step + 1} of {steps}, loss {loss:.4f}")
        return time.process_time() - began > 1.15 * seconds

    if steps < 1:
        return result
    return refine(
        result,
        capture.pictures,
        capture.cameras,
        steps=steps,
        background=background,
        on_step=is_over,
    )
