"""Reconstruct a real scene from posed photographs: plane sweep, then refinement, coarse to fine.

The first FINE of the time goes to pictures of half the size, which cost a quarter and fix what is
large; then the pictures as they are. The time is process time, so that a busy machine does not
change the result much.
"""

import time
from collections.abc import Callable

from skipstep.pipelines.splat.capture import Capture
from skipstep.pipelines.splat.coherent import Penalty, coherence, coherent_gaussians
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.plane_sweep import depth_range, neighbours, swept_gaussians
from skipstep.pipelines.splat.refine import refine
from skipstep.plugins.views.zpressor import farthest_points

__all__ = ["fit", "pressed_gaussians", "reconstruct_scene"]

FINE = 0.35
# Pixels per view at which depth is swept: as many Gaussians as a CPU renders in half a second.
SWEEP_PIXELS = 3600
# Views that an anchor is swept against and asks.
VOTERS = 3
Tell = Callable[[str], None]


def mean_colour(capture: Capture) -> tuple[float, float, float]:
    """Return the mean colour of all pictures: what rays that meet nothing show."""
    red, green, blue = capture.pictures[:, :3].mean((0, 2, 3)).tolist()
    return red, green, blue


def reconstruct_scene(
    capture: Capture,
    *,
    seconds: float = 300.0,
    near: float | None = None,
    anchors: int | None = None,
    coherent: float = 0.0,
    tell: Tell | None = None,
) -> Gaussians:
    """Return the Gaussians of a scene within about `seconds` of process time.

    Args:
        capture: The photographs.
        seconds: Process time to spend.
        near: Smallest depth of anything; by default what the cameras can measure.
        anchors: Press many views into so many (see `pressed_gaussians`): the others confirm depths
            and refine, but make no Gaussians.
        coherent: Strength of the penalty of coherent.py, for 3 to 6 photographs; with its start.
        tell: Called with lines of progress.

    Raises ValueError when fewer than 3 views are given or no pixel's depth can be trusted.
    """
    if len(capture) < 3:
        raise ValueError(f"{len(capture)} pictures are too few for a scene: give 3 or more")
    if anchors is not None and coherent:
        raise ValueError("anchors press many photographs, coherent is for few: give one of them")
    began = time.process_time()
    cameras = capture.cameras
    shrink = max(1.0, (cameras.width * cameras.height / SWEEP_PIXELS) ** 0.5)
    small = capture.resized(round(cameras.width / shrink), round(cameras.height / shrink))
    nearest, far = depth_range(small.cameras)
    near = near or nearest
    if coherent:
        start = coherent_gaussians(small, near=near, far=far)
    elif anchors is not None:
        start = pressed_gaussians(small, anchors, near=near, far=far)
    else:
        start = swept_gaussians(small, near=near, far=far)
    if not len(start):
        raise ValueError(
            "no two pictures agree on any depth: are the cameras those of the pictures?"
        )
    if tell is not None:
        tell(f"{len(start):,} Gaussians from the plane sweep")
    left = seconds - (time.process_time() - began)
    return fit(start, capture, seconds=left, coherent=coherent, tell=tell)


def pressed_gaussians(capture: Capture, anchors: int, *, near: float, far: float) -> Gaussians:
    """Return the Gaussians of a few anchors among many views, after ZPressor (arXiv:2505.23734).

    Anchors are picked by farthest point sampling on the centres. Each is swept against its nearest
    views and keeps what two of them confirm, so that time and Gaussians grow with the anchors. The
    supports' tokens have no counterpart here: what only supports see comes with the refinement.

    Raises ValueError for fewer than 2 anchors.
    """
    if anchors < 2:
        raise ValueError(f"anchors={anchors}: at least 2 views must be kept")
    if anchors >= len(capture):
        return swept_gaussians(capture, near=near, far=far)
    chosen = farthest_points(capture.cameras.centres, anchors).tolist()
    groups = neighbours(capture.cameras, VOTERS)
    needed = sorted({view for anchor in chosen for view in groups[anchor]})
    kept = [needed.index(anchor) for anchor in chosen]
    return swept_gaussians(capture[needed], near=near, far=far, kept=kept)


def fit(
    start: Gaussians,
    capture: Capture,
    *,
    seconds: float,
    coherent: float = 0.0,
    tell: Tell | None = None,
) -> Gaussians:
    """Refine a start on a capture for about `seconds` of process time, coarse to fine."""
    background = mean_colour(capture)
    cameras = capture.cameras
    halves = capture.resized(max(8, cameras.width // 2), max(8, cameras.height // 2))
    result = start
    for name, pictures, share in (("coarse", halves, FINE), ("fine", capture, 1 - FINE)):
        began, budget = time.process_time(), seconds * share
        penalty = coherence(pictures.pictures, coherent) if coherent else None
        result = refine_for(result, pictures, budget, background, tell, name, penalty)
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
    penalty: Penalty | None,
) -> Gaussians:
    """Refine for a time: a few steps tell how many there will be, so that the rates end low."""
    probe, began = 3, time.process_time()
    result = refine(
        start,
        capture.pictures,
        capture.cameras,
        steps=probe,
        background=background,
        penalty=penalty,
    )
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
        penalty=penalty,
        on_step=is_over,
    )
