"""Flows on curved spaces (Chen & Lipman 2023, "Flow Matching on General Geometries",
arXiv:2302.03660): directions, angles and rotations instead of pictures.

  x_t = exp_(x_0)(t log_(x_0)(x_1)),   u_t = dx_t/dt = log_(x_t)(x_0) / (-t)
  L = |v(x_t, t) - u_t|^2 in the tangent space;   walk: x <- exp_x((s - t) proj_x v)
Time runs from noise x_1 (t = 1) to data x_0 (t = 0) as everywhere in this package. A space is four
functions; geodesics are in closed form, so nothing is simulated while training.
  Sphere     unit vectors of R^n                exp_x(u) = cos|u| x + sin|u| u / |u|
  Torus      angles in [-pi, pi)^n              exp_x(u) = x + u, wrapped
  Rotations  matrices of SO(3)                  exp_x(u) = x expm(hat w),   u = x hat w
Differs from the authors' code: these three spaces with the geodesic distance as premetric, whose
paths are geodesics; no spectral distances and no meshes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Manifold", "Rotations", "Sphere", "Torus", "flow_target", "walk_on"]

TINY = 1e-6


class Manifold(ABC):
    """A space with geodesics; points and tangents are batches of equal shape."""

    @abstractmethod
    def exp(self, x: Float[Tensor, " b *d"], u: Float[Tensor, " b *d"]) -> Float[Tensor, " b *d"]:
        """Return where the geodesic from x with velocity u is after unit time."""

    @abstractmethod
    def log(self, x: Float[Tensor, " b *d"], y: Float[Tensor, " b *d"]) -> Float[Tensor, " b *d"]:
        """Return the velocity at x of the geodesic that reaches y after unit time."""

    @abstractmethod
    def project(
        self, x: Float[Tensor, " b *d"], v: Float[Tensor, " b *d"]
    ) -> Float[Tensor, " b *d"]:
        """Return the part of v that is tangent at x."""

    @abstractmethod
    def noise(self, like: Float[Tensor, " b *d"], generator: torch.Generator) -> Tensor:
        """Return uniform points, as many and of the shape of `like`."""


class Sphere(Manifold):
    """Unit vectors."""

    def exp(self, x: Float[Tensor, "b d"], u: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Walk along the great circle."""
        length = u.norm(dim=-1, keepdim=True)
        moved = length.cos() * x + torch.sinc(length / math.pi) * u
        unit: Tensor = moved / moved.norm(dim=-1, keepdim=True)
        return unit

    def log(self, x: Float[Tensor, "b d"], y: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Return the shorter way; opposite points have none that is shortest."""
        across = self.project(x, y)
        sine = across.norm(dim=-1, keepdim=True)
        angle = torch.atan2(sine, (x * y).sum(-1, keepdim=True))
        return torch.where(sine > TINY, angle / sine.clamp(min=TINY), 1.0) * across

    def project(self, x: Float[Tensor, "b d"], v: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Take the radial part away."""
        return v - (v * x).sum(-1, keepdim=True) * x

    def noise(self, like: Float[Tensor, "b d"], generator: torch.Generator) -> Float[Tensor, "b d"]:
        """Return directions of normal vectors."""
        z = torch.randn(like.shape, generator=generator, dtype=like.dtype)
        unit: Tensor = z / z.norm(dim=-1, keepdim=True)
        return unit


class Torus(Manifold):
    """Angles, each in [-pi, pi)."""

    def exp(self, x: Float[Tensor, "b d"], u: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Add and wrap."""
        return wrapped(x + u)

    def log(self, x: Float[Tensor, "b d"], y: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Return the shorter way around."""
        return wrapped(y - x)

    def project(self, x: Float[Tensor, "b d"], v: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Return v: every direction is tangent."""
        return v

    def noise(self, like: Float[Tensor, "b d"], generator: torch.Generator) -> Float[Tensor, "b d"]:
        """Return uniform angles."""
        return (torch.rand(like.shape, generator=generator, dtype=like.dtype) * 2 - 1) * math.pi


class Rotations(Manifold):
    """Rotation matrices of three dimensions, with the metric of the angle."""

    def exp(self, x: Float[Tensor, "b 3 3"], u: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 3"]:
        """Turn further by Rodrigues' formula."""
        w = vee(x.mT @ u)
        angle = w.norm(dim=-1)[:, None, None]
        turn = hat(w)
        eye = torch.eye(3, dtype=x.dtype, device=x.device)
        half = torch.sinc(angle / (2 * math.pi))  # sin(a / 2) / (a / 2)
        moved: Tensor = x @ (eye + torch.sinc(angle / math.pi) * turn + half**2 / 2 * turn @ turn)
        return moved

    def log(self, x: Float[Tensor, "b 3 3"], y: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 3"]:
        """Return the shorter turn; half turns have none that is shortest."""
        between = x.mT @ y
        sine_axis = vee(between - between.mT) / 2
        sine = sine_axis.norm(dim=-1, keepdim=True)
        cosine = (between.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) - 1) / 2
        angle = torch.atan2(sine, cosine)
        w = torch.where(sine > TINY, angle / sine.clamp(min=TINY), 1.0) * sine_axis
        return x @ hat(w)

    def project(
        self, x: Float[Tensor, "b 3 3"], v: Float[Tensor, "b 3 3"]
    ) -> Float[Tensor, "b 3 3"]:
        """Keep the antisymmetric part in the frame of x."""
        inner = x.mT @ v
        return x @ ((inner - inner.mT) / 2)

    def noise(
        self, like: Float[Tensor, "b 3 3"], generator: torch.Generator
    ) -> Float[Tensor, "b 3 3"]:
        """Return Haar's uniform rotations, from uniform quaternions."""
        q = torch.randn(len(like), 4, generator=generator, dtype=like.dtype)
        w, v = torch.split(torch.nn.functional.normalize(q, dim=-1), [1, 3], dim=-1)
        turn = hat(v)
        eye = torch.eye(3, dtype=like.dtype)
        uniform: Tensor = eye + 2 * w[:, :, None] * turn + 2 * turn @ turn
        return uniform


def wrapped(angle: Tensor) -> Tensor:
    """Return an angle in [-pi, pi).

    >>> round(wrapped(torch.tensor(4.0)).item(), 4)
    -2.2832
    """
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def hat(w: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    """Return the matrix of the cross product with w."""
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def vee(turn: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3"]:
    """Return w of an antisymmetric matrix."""
    return torch.stack([turn[:, 2, 1], turn[:, 0, 2], turn[:, 1, 0]], -1)


def flow_target(
    space: Manifold,
    data: Float[Tensor, " b *d"],
    noise: Float[Tensor, " b *d"],
    t: Float[Tensor, " b"],
) -> tuple[Float[Tensor, " b *d"], Float[Tensor, " b *d"]]:
    """Return x_t on the geodesic from data to noise and its velocity u_t there; t is in (0, 1]."""
    rows = t.reshape(-1, *[1] * (data.ndim - 1)).to(data.dtype)
    x_t = space.exp(data, rows * space.log(data, noise))
    return x_t, -space.log(x_t, data) / rows


@torch.no_grad()
def walk_on(
    space: Manifold,
    velocity: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, " b *d"],
    nodes: Sequence[float],
) -> Float[Tensor, " b *d"]:
    """Walk through the nodes, from nodes[0] = 1 to nodes[-1] = 0, along geodesics.

    `velocity(x, t)` is asked with one t a row; what is not tangent in its answer does not count.
    """
    for t, s in pairwise(nodes):
        rows = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
        x = space.exp(x, (s - t) * space.project(x, velocity(x, rows)))
    return x
