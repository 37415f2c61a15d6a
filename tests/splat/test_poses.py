"""Poses: from points exactly, steadily among wrong ones, and by rendering."""

from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from skipstep.kernels.gs_project import rotation_matrices
from skipstep.pipelines.splat.camera_search import mismatch, placed, search_cameras, searched
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.objects import input_cameras, new_object, picture
from skipstep.pipelines.splat.pipeline import load_reconstructor
from skipstep.pipelines.splat.pose_solver import (
    perspective_n_point,
    procrustes,
    rotation_angle,
)

torch.set_num_threads(1)

Scene = Callable[..., Gaussians]
SEEDS = st.integers(0, 10**6)


def ball(seed: int, n: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return points around the origin, and the rotation and place of a camera before them."""
    generator = torch.Generator().manual_seed(seed)
    points = 0.4 * torch.randn(n, 3, generator=generator)
    R = rotation_matrices(torch.randn(4, generator=generator))
    t = torch.tensor([0.1, -0.2, 2.2]) + 0.2 * torch.randn(3, generator=generator)
    return points, R, t


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(seed=SEEDS, scale=st.floats(0.2, 5))
def test_procrustes_finds_the_similarity(seed: int, scale: float) -> None:
    points, R, t = ball(seed)
    found, there, s = procrustes(
        points, scale * points @ R.T + t, torch.ones(len(points)), with_scale=True
    )
    torch.testing.assert_close(found, R, rtol=0, atol=1e-4)
    torch.testing.assert_close(there, t, rtol=0, atol=1e-4)
    assert s == pytest.approx(scale, rel=1e-4)


def test_procrustes_never_mirrors() -> None:
    points, _, _ = ball(0)
    mirrored = points * torch.tensor([-1.0, 1.0, 1.0])
    found, _, _ = procrustes(points, mirrored, torch.ones(len(points)))
    torch.testing.assert_close(torch.linalg.det(found), torch.tensor(1.0))


@hypothesis.settings(max_examples=4, deadline=None)
@hypothesis.given(seed=SEEDS)
def test_a_camera_is_found_from_a_rough_start_among_wrong_points(seed: int) -> None:
    points, R, t = ball(seed)
    seen = points @ R.T + t
    rays = seen / seen[:, 2:]
    wrong = points.clone()
    wrong[::5] += 0.5 * torch.randn(12, 3, generator=torch.Generator().manual_seed(seed + 1))
    turn = rotation_matrices(torch.tensor([1.0, 0.2, -0.2, 0.15]))
    pose = perspective_n_point(wrong, rays, torch.ones(60), start=turn @ R)
    assert rotation_angle(pose[:3, :3], R) < 3
    assert float((pose[:3, 3] - t).norm()) < 0.1


def test_a_camera_is_found_from_nothing() -> None:
    points, R, t = ball(3)
    seen = points @ R.T + t
    pose = perspective_n_point(points, seen / seen[:, 2:], torch.ones(60), rounds=300)
    assert rotation_angle(pose[:3, :3], R) < 0.2
    with pytest.raises(ValueError, match="3 points can be trusted: 4 are needed"):
        perspective_n_point(points, seen, torch.tensor([1.0] * 3 + [0.0] * 57))


def test_the_direction_of_a_picture_is_found_in_a_scene(scene: Scene) -> None:
    thing = scene(120, opacity=(0.6, 0.95))
    truth = torch.tensor([[200.0, 12.0], [75.0, 28.0]])
    rendering = thing.render(placed(truth, 32))
    pictures = torch.cat([rendering.rgb, rendering.alpha[..., None]], -1).permute(0, 3, 1, 2)
    view, found = searched(thing, pictures)
    wanted, there = placed(truth[view : view + 1], 8), placed(found[None], 8)
    assert rotation_angle(wanted.w2c[0, :3, :3], there.w2c[0, :3, :3]) < 4
    off = mismatch(thing, placed(truth, 32), pictures)
    torch.testing.assert_close(off.diagonal(), torch.zeros(2), rtol=0, atol=1e-6)
    assert float(off[0, 1]) > 0.02


def test_pictures_without_cameras_get_them() -> None:
    cameras = input_cameras(10**7, views=2, size=32)
    pictures = picture(new_object(10**7), cameras)[0].float() / 255
    found = search_cameras(pictures, load_reconstructor("single-view"), load_reconstructor())
    assert found.width == 32 and len(found) == 2
    torch.testing.assert_close(found.centres.norm(dim=-1), torch.full((2,), 2.2))
    first = placed(torch.tensor([[0.0, 15.0]]), 32)
    torch.testing.assert_close(found.w2c[0], first.w2c[0])
