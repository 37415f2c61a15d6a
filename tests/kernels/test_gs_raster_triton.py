"""The Triton rasteriser in the interpreter: picture and gradients of the float64 definition."""

from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.kernels import gs_raster
from skipstep.kernels.gs_raster import rasterize_gaussians, rasterize_gaussians_ref

pytest.importorskip("triton")
torch.set_num_threads(1)


def splats(n: int, channels: int, opacity: tuple[float, float]) -> list[Tensor]:
    """Return pixel means, conics, depths, opacities and features of two views of 7 x 9 pixels."""
    generator = torch.Generator().manual_seed(n)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)

    a, c, tilt = uniform(0.05, 0.6, 2, n), uniform(0.05, 0.6, 2, n), uniform(-0.8, 0.8, 2, n)
    conics = torch.stack([a, tilt * (a * c).sqrt(), c], -1)
    means = uniform(-1, 9, 2, n, 2)
    return [
        means,
        conics,
        uniform(1, 5, 2, n),
        uniform(*opacity, 2, n),
        uniform(-1, 1, 2, n, channels),
    ]


def result(
    rasterize: Any, values: list[Tensor], dtype: torch.dtype, **options: Any
) -> list[Tensor]:
    """Return image, alpha and the gradients of a loss that weighs every pixel differently."""
    leaves = [value.detach().to(dtype, copy=True).requires_grad_() for value in values]
    background = torch.linspace(0, 1, leaves[4].shape[-1]).to(dtype)
    image, alpha = rasterize(*leaves, width=7, height=9, background=background, **options)
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.autograd.backward((image * weights).sum() + (alpha * weights[..., 0].cos()).sum())
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(gradients) == 4
    return [image.detach(), alpha.detach(), *gradients]


@pytest.mark.parametrize(
    ("n", "channels", "opacity"),
    [(30, 3, (0.05, 0.9)), (40, 18, (0.93, 1.0))],
    ids=["faint", "saturated"],
)
def test_interpreted_kernels_equal_the_float64_definition(
    n: int, channels: int, opacity: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gs_raster, "GPU_TILE", 8)
    values = splats(n, channels, opacity)
    exact = result(rasterize_gaussians_ref, values, torch.float64)
    ours = result(rasterize_gaussians, values, torch.float32, backend="interpret")
    for wanted, got in zip(exact[:2], ours[:2], strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5)
    for wanted, got in zip(exact[2:], ours[2:], strict=True):
        assert (got.double() - wanted).norm() < 1e-4 * wanted.norm()


def test_features_wider_than_the_registers_go_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gs_raster, "GPU_TILE", 8)
    values = splats(3, 70, (0.3, 0.9))
    exact = result(rasterize_gaussians_ref, values, torch.float64)
    ours = result(rasterize_gaussians, values, torch.float32, backend="interpret")
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=0, atol=1e-5)


def test_float64_has_no_kernel() -> None:
    values = splats(3, 1, (0.5, 0.9))
    with pytest.raises(ValueError, match="the kernel takes torch.float32, not torch.float64"):
        rasterize_gaussians(*values, width=4, height=4, backend="interpret")
