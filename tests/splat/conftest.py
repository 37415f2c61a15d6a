"""Small scenes for the tests of splatting."""

from collections.abc import Callable

import pytest
import torch

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians


def shell(
    n: int,
    *,
    seed: int = 0,
    opacity: tuple[float, float] = (0.3, 0.99),
    degree: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Gaussians:
    """Return flat splats on a sphere of radius 0.6, about as large as they are far apart."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    means = torch.nn.functional.normalize(normal(n, 3), dim=-1)
    spacing = 1.5 / max(n, 1) ** 0.5
    low, high = opacity
    return Gaussians(
        means=means * 0.6 + 0.03 * normal(n, 3),
        quats=normal(n, 4),
        scales=spacing * torch.exp(0.4 * normal(n, 3)) * torch.tensor([1.0, 1.0, 0.3]),
        opacities=low + (high - low) * torch.rand(n, generator=generator),
        sh=0.3 * normal(n, (degree + 1) ** 2, 3),
    ).to(dtype)


def views(count: int = 2, *, width: int = 40, height: int = 30) -> Cameras:
    """Return cameras around the shell."""
    return Cameras.orbit(count, radius=2.0, width=width, height=height)


@pytest.fixture
def scene() -> Callable[..., Gaussians]:
    """Give the function that makes a shell."""
    return shell


@pytest.fixture
def around() -> Callable[..., Cameras]:
    """Give the function that places cameras around it."""
    return views
