"""Few photographs: segments keep their planes, and the penalty sees only what it should."""

import pytest
import torch

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.capture import Capture
from skipstep.pipelines.splat.coherent import coherence, coherent_gaussians, filled, segments
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.refine import refine
from skipstep.pipelines.splat.render import Rendering
from skipstep.pipelines.splat.scene import pressed_gaussians, reconstruct_scene

torch.set_num_threads(1)


def test_a_segment_ends_where_the_colour_does() -> None:
    picture = torch.zeros(1, 3, 16, 16)
    picture[..., 8:] = 1
    ids = segments(picture, 4)[0]
    assert not set(ids[:, :8].flatten().tolist()) & set(ids[:, 8:].flatten().tolist())


def test_a_hole_is_filled_with_the_plane_around_it() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    truth = 1 / (0.3 + 0.01 * x - 0.004 * y)
    trusted = torch.ones(20, 20, dtype=torch.bool)
    trusted[6:12, 6:12] = False
    depth = torch.where(trusted, truth, 99.0)
    one = torch.zeros(20, 20, dtype=torch.long)
    found, known = filled(depth, trusted, one)
    assert bool(known.all())
    torch.testing.assert_close(found[trusted], truth[trusted])
    torch.testing.assert_close(found, truth, rtol=0.05, atol=0)
    one[6:12, 6:12] = 1
    _, known = filled(depth, trusted, one)
    assert not bool(known[6:12, 6:12].any())


def test_the_penalty_counts_steps_of_depth_inside_of_segments_alone() -> None:
    picture = torch.zeros(1, 3, 8, 16)
    picture[..., 8:] = 1
    penalty = coherence(picture, 0.5)
    # Every segment has a depth of its own; a step between two of them costs nothing.
    depth = 1.0 + segments(picture)
    bare = Rendering(torch.zeros(1, 8, 16, 3), torch.ones(1, 8, 16), depth)
    assert float(penalty([0], bare)) == 0
    bent = depth.clone()
    bent[0, 1, 1] *= 1.1
    assert float(penalty([0], Rendering(bare.rgb, bare.alpha, bent))) > 0
    nothing = Rendering(bare.rgb, torch.zeros(1, 8, 16), bent)
    assert float(penalty([0], nothing)) == 0
    with pytest.raises(ValueError, match="coherence needs the depth"):
        penalty([0], Rendering(bare.rgb, bare.alpha))


def wall(width: int = 48, height: int = 36) -> Capture:
    """Photograph a wall with blank and patterned parts, six times."""
    x, y = torch.meshgrid(torch.linspace(-2, 2, 60), torch.linspace(-2, 2, 60), indexing="ij")
    means = torch.stack([x, y, torch.full_like(x, 3.0)], -1).reshape(-1, 3)
    colours = torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(0))
    colours[8:12] = 0.5
    colours = colours.repeat_interleave(3, 0).repeat_interleave(3, 1).reshape(-1, 3)
    gaussians = Gaussians.from_colours(
        means,
        torch.tensor([1.0, 0, 0, 0]).repeat(3600, 1),
        torch.full((3600, 3), 0.04),
        torch.full((3600,), 0.95),
        colours,
    )
    angle = torch.arange(6) * 1.05
    centres = 0.3 * torch.stack([angle.cos(), angle.sin(), torch.zeros(6)], -1)
    cameras = Cameras.look_at(centres, target=torch.tensor([0.0, 0, 3]), width=width, height=height)
    pictures = gaussians.render(cameras).rgb.permute(0, 3, 1, 2).clamp(0, 1)
    return Capture(pictures, cameras, [str(view) for view in range(6)])


def test_more_pixels_are_known_and_anchors_make_fewer_gaussians() -> None:
    capture = wall()
    whole = coherent_gaussians(capture, near=1.5, far=6.0)
    plain = pressed_gaussians(capture, 6, near=1.5, far=6.0)
    pressed = pressed_gaussians(capture, 2, near=1.5, far=6.0)
    assert len(whole) > len(plain) > 2 * len(pressed) > 0
    with pytest.raises(ValueError, match="anchors=1: at least 2"):
        pressed_gaussians(capture, 1, near=1.5, far=6.0)
    with pytest.raises(ValueError, match="give one of them"):
        reconstruct_scene(capture, anchors=2, coherent=0.1)


def test_refinement_with_the_penalty_flattens_depth() -> None:
    capture = wall(24, 18)[[0, 2, 4]]
    start = coherent_gaussians(capture, near=1.5, far=6.0)
    noisy = Gaussians(
        start.means
        + 0.1 * torch.randn(start.means.shape, generator=torch.Generator().manual_seed(0)),
        start.quats,
        start.scales,
        start.opacities,
        start.sh,
    )
    measure = coherence(capture.pictures, 1.0)

    def after(strength: float) -> float:
        result = refine(
            noisy,
            capture.pictures,
            capture.cameras,
            steps=6,
            penalty=coherence(capture.pictures, strength),
        )
        rendering = result.render(capture.cameras, outputs=("depth",))
        return float(measure([0, 1, 2], rendering))

    assert after(20.0) < 0.9 * after(0.0)
