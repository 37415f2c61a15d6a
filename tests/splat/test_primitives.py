"""Other primitives and other frames: surfels in scenes, 4D cuts, turned worlds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from skipstep.kernels.gs_harmonics import harmonics_to_colours
from skipstep.kernels.gs_project import rotation_matrices
from skipstep.kernels.gs_rotate import quaternion_of, rotate_harmonics
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.spacetime import SpaceTimeGaussians

torch.set_num_threads(1)

Scene = Callable[..., Gaussians]
Around = Callable[..., Cameras]


def rotation(seed: int = 3) -> torch.Tensor:
    """Return a rotation matrix."""
    return rotation_matrices(torch.randn(4, generator=torch.Generator().manual_seed(seed)))


def test_quaternions_come_back_from_matrices() -> None:
    quats = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices = rotation_matrices(quats)
    torch.testing.assert_close(rotation_matrices(quaternion_of(matrices)), matrices)


@pytest.mark.parametrize("count", [1, 4, 9, 16])
def test_turned_harmonics_show_the_same_along_turned_directions(count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    sh, R = torch.randn(5, count, 3, generator=generator), rotation()
    d = torch.nn.functional.normalize(torch.randn(7, 5, 3, generator=generator), dim=-1)
    turned = harmonics_to_colours(rotate_harmonics(sh, R), d @ R.T)
    torch.testing.assert_close(turned, harmonics_to_colours(sh, d), rtol=0, atol=1e-5)


def test_a_moved_scene_looks_the_same_from_moved_cameras(scene: Scene, around: Around) -> None:
    gaussians, cameras = scene(80, degree=2), around(2)
    R, t, scale = rotation(), torch.tensor([1.0, -2.0, 0.5]), 3.0
    w2c = cameras.w2c.clone()
    w2c[:, :3, :3] = cameras.w2c[:, :3, :3] @ R.T
    w2c[:, :3, 3] = scale * cameras.w2c[:, :3, 3] - w2c[:, :3, :3] @ t
    moved = gaussians.transformed(R, t, scale).render(replace(cameras, w2c=w2c))
    torch.testing.assert_close(moved.rgb, gaussians.render(cameras).rgb, rtol=0, atol=2e-4)


def test_surfels_look_like_very_thin_gaussians_and_say_their_normals(
    scene: Scene, around: Around, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(2)
    gaussians, cameras = scene(60, opacity=(0.5, 0.6)), around(1, width=64, height=64)
    scales = 0.1 + 0.1 * torch.rand(60, 3, generator=generator)
    scales[:, 1] = 1e-3
    thick = replace(gaussians, scales=scales)
    flat = thick.flattened()
    assert flat.is_flat and not flat.solid().is_flat
    both = [each.render(cameras, outputs=("depth", "normal")) for each in (thick, flat)]
    # One is projected to first order and blurred by the pixel, the other is met exactly.
    assert (both[0].rgb - both[1].rgb).abs().mean() < 0.02
    solid = both[0].alpha > 0.9
    assert both[0].normal is not None and both[1].normal is not None
    agree = (both[0].normal * both[1].normal).sum(-1)[solid]
    assert agree.mean() > 0.6 * both[0].normal.square().sum(-1)[solid].mean()
    loaded = Gaussians.load(flat.save(tmp_path / "flat.ply"))
    again = loaded.render(cameras).rgb
    assert (again - flat.render(cameras).rgb).abs().mean() < 0.02


def moving(n: int = 30) -> SpaceTimeGaussians:
    """Return random 4D Gaussians around the origin."""
    generator = torch.Generator().manual_seed(4)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    return SpaceTimeGaussians(
        means=0.3 * normal(n, 4),
        left=normal(n, 4),
        right=normal(n, 4),
        scales=0.1 * torch.exp(0.5 * normal(n, 4)),
        opacities=torch.full((n,), 0.8, dtype=torch.float64),
        sh=0.3 * normal(n, 1, 3),
    )


def test_a_cut_is_the_conditional_of_the_4d_gaussian() -> None:
    gaussians, time = moving(), 0.1
    means, covariances, opacities = gaussians.cut(time)
    # At any point of space, opacity times the 3D exponential is the 4D exponential.
    x = 0.3 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    off = torch.cat([x, torch.full((30, 1), time, dtype=torch.float64)], 1) - gaussians.means
    inverse = torch.linalg.inv(gaussians.covariances())
    whole = 0.8 * torch.exp(-0.5 * torch.einsum("ni,nij,nj->n", off, inverse, off))
    near = x - means
    inverse = torch.linalg.inv(covariances)
    cut = opacities * torch.exp(-0.5 * torch.einsum("ni,nij,nj->n", near, inverse, near))
    torch.testing.assert_close(cut, whole, rtol=1e-8, atol=1e-12)


def test_a_moment_renders_alike_as_a_cut_and_as_3d_gaussians(around: Around) -> None:
    gaussians, cameras = moving(), around(1)
    cameras = replace(cameras, w2c=cameras.w2c.double(), K=cameras.K.double())
    cut = gaussians.render(cameras, 0.05)
    moment = gaussians.at(0.05).render(cameras)
    assert cut.alpha.mean() > 0.02
    torch.testing.assert_close(cut.rgb, moment.rgb, rtol=0, atol=1e-6)


def test_gradients_of_a_cut_reach_motion(around: Around) -> None:
    gaussians, cameras = moving(12), around(1, width=16, height=12)
    cameras = replace(cameras, w2c=cameras.w2c.double(), K=cameras.K.double())
    left = gaussians.left.clone().requires_grad_()
    step = torch.zeros_like(left)
    step[3, 1] = 1e-5

    def loss(values: torch.Tensor) -> torch.Tensor:
        rgb = replace(gaussians, left=values).render(cameras, 0.1).rgb
        return (rgb * torch.linspace(0, 1, rgb.numel()).reshape(rgb.shape)).sum()

    (gradient,) = torch.autograd.grad(loss(left), left)
    with torch.no_grad():
        numeric = (loss(left + step) - loss(left - step)) / 2e-5
    torch.testing.assert_close(gradient[3, 1], numeric, rtol=1e-3, atol=1e-6)
