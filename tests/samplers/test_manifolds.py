"""Flows on curved spaces: geodesics, and walks that stay where they belong."""

import pytest
import torch
from torch import Tensor

from skipstep.samplers.manifolds import Manifold, Rotations, Sphere, Torus, flow_target, walk_on

WIDE = torch.float64
SPACES: dict[str, tuple[Manifold, Tensor]] = {
    "sphere": (Sphere(), torch.empty(64, 4, dtype=WIDE)),
    "torus": (Torus(), torch.empty(64, 3, dtype=WIDE)),
    "rotations": (Rotations(), torch.empty(64, 3, 3, dtype=WIDE)),
}


def off(space: Manifold, x: Tensor) -> float:
    """Return how far points are from the space."""
    if isinstance(space, Sphere):
        return float((x.norm(dim=-1) - 1).abs().max())
    if isinstance(space, Torus):
        return float((x.abs() - torch.pi).clamp(min=0).max())
    apart = (x.mT @ x - torch.eye(3, dtype=WIDE)).abs().max()
    return float(apart + (torch.linalg.det(x) - 1).abs().max())


@pytest.mark.parametrize("name", SPACES)
def test_the_logarithm_is_the_inverse_of_the_exponential(name: str) -> None:
    space, like = SPACES[name]
    generator = torch.Generator().manual_seed(0)
    x, y = space.noise(like, generator), space.noise(like, generator)
    u = space.log(x, y)
    torch.testing.assert_close(space.exp(x, u), y, rtol=0, atol=1e-9)
    torch.testing.assert_close(space.project(x, u), u, rtol=0, atol=1e-9)
    assert torch.equal(space.exp(x, 0 * u), x) or off(space, space.exp(x, 0 * u)) < 1e-12


@pytest.mark.parametrize("name", SPACES)
def test_the_target_is_the_derivative_of_the_path(name: str) -> None:
    space, like = SPACES[name]
    generator = torch.Generator().manual_seed(1)
    data, noise = space.noise(like, generator), space.noise(like, generator)
    t, h = torch.full((len(like),), 0.4, dtype=WIDE), 1e-6
    x_t, u_t = flow_target(space, data, noise, t)
    ahead, behind = (flow_target(space, data, noise, t + d)[0] for d in (h, -h))
    slope = (space.log(x_t, ahead) - space.log(x_t, behind)) / (2 * h)
    torch.testing.assert_close(u_t, slope, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SPACES)
def test_one_step_along_the_true_flow_to_a_point_arrives_and_any_walk_stays(name: str) -> None:
    space, like = SPACES[name]
    generator = torch.Generator().manual_seed(2)
    data = space.noise(like, generator)[:1].expand_as(like)
    noise = space.noise(like, generator)

    def to_the_point(x: Tensor, t: Tensor) -> Tensor:
        return -space.log(x, data) / t.reshape(-1, *[1] * (x.ndim - 1))

    made = walk_on(space, to_the_point, noise, (1.0, 0.0))
    torch.testing.assert_close(made, data, rtol=0, atol=1e-6)
    nodes = tuple(1 - i / 50 for i in range(51))
    strayed = walk_on(space, lambda x, t: torch.sin(3 * x) + 0.5, noise, nodes)
    assert off(space, strayed) < 1e-6
