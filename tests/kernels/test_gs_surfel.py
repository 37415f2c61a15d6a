"""Surfels: rays that meet planes, the dense definition in float64, flat 3D Gaussians, gradients."""

import pytest
import torch
from torch import Tensor

from skipstep.kernels.gs_project import rotation_matrices
from skipstep.kernels.gs_surfel import (
    meetings,
    project_surfels,
    rasterize_surfels,
    rasterize_surfels_ref,
)
from skipstep.pipelines.splat.cameras import Cameras

torch.set_num_threads(1)

NAMES = ("means", "quats", "scales", "opacities", "features")


def surfels(n: int, dtype: torch.dtype, *, near_one: bool = False) -> dict[str, Tensor]:
    """Return surfels on a shell around the origin; the last may stand right before the camera."""
    generator = torch.Generator().manual_seed(1)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    means = 0.6 * torch.nn.functional.normalize(normal(n, 3), dim=-1)
    if near_one:
        means[-1] = torch.tensor([0.05, 0.0, 1.8])
    values = {
        "means": means,
        "quats": normal(n, 4),
        "scales": 0.12 * torch.exp(0.5 * normal(n, 2)),
        "opacities": 0.2 + 0.79 * torch.rand(n, generator=generator, dtype=torch.float64),
        "features": normal(n, 4),
    }
    return {name: value.to(dtype).requires_grad_() for name, value in values.items()}


def rendered(rasterize: object, leaves: dict[str, Tensor], cameras: Cameras) -> tuple[Tensor, ...]:
    """Project and rasterise."""
    w2c, K = cameras.w2c.to(leaves["means"]), cameras.K.to(leaves["means"])
    T, depths = project_surfels(leaves["means"], leaves["quats"], leaves["scales"], w2c, K)
    v = len(cameras)
    result: tuple[Tensor, ...] = rasterize(  # type: ignore[operator]  # either rasteriser
        T,
        depths,
        leaves["opacities"].expand(v, -1),
        leaves["features"].expand(v, -1, -1),
        width=cameras.width,
        height=cameras.height,
    )
    return result


def test_a_ray_meets_the_disc_where_geometry_says() -> None:
    leaves, cameras = surfels(20, torch.float64), Cameras.orbit(1, radius=2.0, width=24)
    w2c, K = cameras.w2c.double(), cameras.K.double()
    T, _ = project_surfels(leaves["means"], leaves["quats"], leaves["scales"], w2c, K)
    pixel = torch.tensor([[9.5, 13.5]], dtype=torch.float64)
    sigma, z = meetings(T[0], pixel)
    # The ray o + t d against the plane (x - p) n = 0, and the coordinates there.
    o = -w2c[0, :3, :3].T @ w2c[0, :3, 3]
    d = w2c[0, :3, :3].T @ torch.linalg.inv(K[0]) @ torch.tensor([9.5, 13.5, 1.0]).double()
    u, v, n = rotation_matrices(leaves["quats"]).unbind(-1)
    t = ((leaves["means"] - o) * n).sum(-1) / (n @ d)
    at = o + t[:, None] * d - leaves["means"]
    su, sv = leaves["scales"].unbind(-1)
    on_disc = ((at * u).sum(-1) / su) ** 2 + ((at * v).sum(-1) / sv) ** 2
    # The cameras' rotation is orthonormal to float32.
    is_disc = (2 * sigma[:, 0] - on_disc).abs() < 1e-5 * on_disc
    assert int(is_disc.sum()) > 5
    assert bool((2 * sigma[:, 0] <= on_disc * (1 + 1e-5)).all())
    torch.testing.assert_close(z[is_disc, 0], t[is_disc], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("near_one", [False, True], ids=["shell", "before_the_camera"])
def test_equals_the_dense_definition_in_float64(near_one: bool) -> None:
    cameras = Cameras.orbit(2, radius=2.0, width=28, height=20)
    results = []
    for rasterize, dtype in (
        (rasterize_surfels_ref, torch.float64),
        (rasterize_surfels, torch.float32),
    ):
        leaves = surfels(120, dtype, near_one=near_one)
        image, alpha, depth = rendered(rasterize, leaves, cameras)
        weights = torch.linspace(-1, 1, image.numel(), dtype=dtype).reshape(image.shape)
        loss = (image * weights).sum() + (alpha * depth * weights[..., 0]).sum()
        gradients = torch.autograd.grad(loss, [leaves[name] for name in NAMES])
        results.append(((image, alpha, alpha * depth), gradients))
    (exact, exact_gradients), (fast, fast_gradients) = results
    assert 0.05 < exact[1].mean() < 0.95
    for one, other in zip(exact, fast, strict=True):
        torch.testing.assert_close(other.double(), one, rtol=0, atol=2e-5)
    for name, one, other in zip(NAMES, exact_gradients, fast_gradients, strict=True):
        off = (other.double() - one).norm() / one.norm()
        assert off < 2e-4, f"{name}: {off}"


def test_a_disc_that_faces_the_camera_is_a_flat_gaussian() -> None:
    cameras = Cameras.look_at(torch.tensor([[0.0, 0, -2.0]]), width=41)
    leaves = surfels(1, torch.float32)
    values = {
        **leaves,
        "means": torch.zeros(1, 3),
        "quats": torch.tensor([[1.0, 0, 0, 0]]),
        "scales": torch.tensor([[0.2, 0.1]]),
        "opacities": torch.tensor([0.8]),
        "features": torch.ones(1, 4),
    }
    _, alpha, depth = rendered(rasterize_surfels, values, cameras)
    focal = cameras.K[0, 0, 0]
    x = (torch.arange(41) + 0.5 - 20.5) * 2 / focal
    across = 0.8 * torch.exp(-((x / 0.2) ** 2) / 2)
    torch.testing.assert_close(alpha[0, 20], across.where(across > 1 / 255, 0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(depth[0, 20, 20], torch.tensor(2.0))


def test_depth_is_that_of_the_surface_not_of_the_centre() -> None:
    # A large disc that leans away: its left is nearer.
    cameras = Cameras.look_at(torch.tensor([[0.0, 0, -2.0]]), width=33)
    half = torch.tensor(0.4)
    values = {
        "means": torch.zeros(1, 3),
        "quats": torch.stack([(half / 2).cos(), half * 0, -(half / 2).sin(), half * 0])[None],
        "scales": torch.full((1, 2), 0.5),
        "opacities": torch.tensor([0.9]),
        "features": torch.ones(1, 4),
    }
    _, _, depth = rendered(rasterize_surfels, values, cameras)
    row = depth[0, 16, 8:25]
    assert bool((row.diff() * row.diff()[0] > 0).all()) and (row[0] - row[-1]).abs() > 0.1


def test_an_empty_picture_is_refused() -> None:
    T = torch.eye(3).expand(1, 1, 3, 3)
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="a picture of 0 x 4: it needs a pixel"):
        rasterize_surfels(T, one, one, one[..., None], width=0, height=4)
