"""The 2-D suite: mixtures of Gaussians whose flow is known exactly, to prove recipes on.

  v(x, t) = (x - E[x_0 | x_t = x]) / t
with E[x_0 | x_t] of a mixture with isotropic components in closed form. `ring`: eight modes of
width 0.15; `checkerboard`: the 8 black fields of a 4 x 4 board, each by 4 narrow modes. A tiny
network learns in seconds of one core, and the sliced Wasserstein distance to fresh data says how
well: two draws of data are `floor` apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipstep.samplers.distill.flow import Condition
from skipstep.samplers.distill.paths import teacher_path
from skipstep.samplers.distill.protocol import Batch
from skipstep.samplers.distill.walk import walk

__all__ = [
    "Mixture",
    "PlaneNet",
    "PlaneSource",
    "checkerboard",
    "ring",
    "sliced_wasserstein",
    "teacher_distance",
]

PATHS = 4096


@dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians; called, it is its own exact flow.

    They are equally likely, unless a condition has `encoder_hidden_states`, tokens of one number a
    Gaussian: the tokens' mean is the logarithm of how likely each is.
    """

    means: Float[Tensor, " k *size"]
    width: float

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        tokens: Float[Tensor, "b s k"] | None = None,
    ) -> Float[Tensor, " b *size"]:
        """Return `count` points, as likely as the tokens say."""
        which = torch.randint(len(self.means), (count,), generator=generator)
        if tokens is not None:
            shares = torch.softmax(tokens.mean(1), -1)
            which = torch.multinomial(shares, 1, generator=generator)[:, 0]
        noise = torch.randn(count, *self.means.shape[1:], generator=generator)
        return self.means[which] + self.width * noise

    def __call__(
        self,
        x: Float[Tensor, " b *size"],
        t: Float[Tensor, " b"],
        condition: Condition,
        s: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b *size"]:
        """Return the exact velocity at (x, t)."""
        t = t.clamp(1e-4, 1 - 1e-4)[:, None]
        means, point = self.means.flatten(1), x.flatten(1)
        seen = point / (1 - t)  # x_0 plus noise of this size:
        variance = self.width**2 + (t / (1 - t)) ** 2
        likely = -0.5 * (seen[:, None] - means).square().sum(-1) / variance  # [b, k]
        if "encoder_hidden_states" in condition:
            likely = likely + condition["encoder_hidden_states"].mean(1)
        share = torch.softmax(likely, -1)
        x_0 = share @ means + (self.width**2 / variance) * (seen - share @ means)
        return ((point - x_0) / t).view_as(x)


def ring() -> Mixture:
    """Return eight modes on a circle."""
    angle = torch.arange(8) * (2 * math.pi / 8)
    return Mixture(math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1), 0.15)


def checkerboard() -> Mixture:
    """Return the black fields of a board of 4 x 4, from -2 to 2 in units of 0.7."""
    fields = [(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    corners = [
        (i + a - 1.5, j + b - 1.5) for i, j in fields for a in (-0.25, 0.25) for b in (-0.25, 0.25)
    ]
    return Mixture(0.7 * torch.tensor(corners), 0.12)


class PlaneNet(nn.Module):
    """A small residual network v(x, t[, s]); `more` inputs stand beside x."""

    def __init__(self, width: int = 64, depth: int = 3, more: int = 0) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", 2.0 ** torch.arange(5) * math.pi / 2)
        self.enter = nn.Linear(2 + more, width)
        self.time = nn.Linear(20, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.leave = nn.Linear(width, 2)

    def forward(
        self,
        x: Float[Tensor, "b 2"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"] | None = None,
        beside: Float[Tensor, "b more"] | None = None,
    ) -> Float[Tensor, "b 2"]:
        """Return v; without s the velocity at t."""
        level = self.level(t, t if s is None else s)
        h = self.enter(x if beside is None else torch.cat([x, beside], 1))
        for block, shift in zip(self.blocks, self.shifts, strict=True):
            h = h + block(nn.functional.silu(h + shift(level)))
        v: Tensor = self.leave(nn.functional.silu(h))
        return v

    def level(self, t: Float[Tensor, " b"], s: Float[Tensor, " b"]) -> Float[Tensor, "b width"]:
        """Return what the blocks are told of both times."""
        angles = torch.cat([t[:, None] * self.frequencies, s[:, None] * self.frequencies], 1)
        told: Tensor = nn.functional.silu(self.time(torch.cat([angles.sin(), angles.cos()], 1)))
        return told


class PlaneSource:
    """Draw data, noise and, where `times` are asked for, the exact teacher's paths at them."""

    def __init__(self, mixture: Mixture, times: Sequence[float] = ()) -> None:
        self.mixture, self.times = mixture, tuple(times)

    @cached_property
    def paths(self) -> Float[Tensor, "n k 2"]:
        """Return paths of the exact flow, 48 evaluations each."""
        noise = torch.randn(PATHS, 2, generator=torch.Generator().manual_seed(1))
        fine = sorted({i / 48 for i in range(49)} | set(self.times), reverse=True)
        path = teacher_path(self.mixture, noise, fine, {})
        return path[:, [fine.index(t) for t in self.times]]

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return a batch; data and noise belong together only where paths are asked for."""
        if not self.times:
            noise = torch.randn(size, 2, generator=generator)
            return Batch(noise=noise, data=self.mixture.sample(size, generator))
        path = self.paths[torch.randint(PATHS, (size,), generator=generator)]
        return Batch(noise=path[:, 0], data=path[:, -1], path=path, times=self.times)


def sliced_wasserstein(
    a: Float[Tensor, " n *size"], b: Float[Tensor, " n *size"], directions: int = 64
) -> float:
    """Return the root mean square distance of the sorted projections, on even directions in the
    plane and on random ones, always the same, in more dimensions.
    """
    a, b = a.flatten(1), b.flatten(1)
    angle = torch.arange(directions) * (math.pi / directions)
    lines = torch.stack([angle.cos(), angle.sin()])
    if a.shape[1] > 2:
        random = torch.randn(a.shape[1], directions, generator=torch.Generator().manual_seed(0))
        lines = random / random.norm(dim=0)
    apart = (a @ lines).sort(0).values - (b @ lines).sort(0).values
    return float(apart.square().mean().sqrt())


def teacher_distance(mixture: Mixture, steps: int, count: int = 4096) -> float:
    """Return how far the exact flow's Euler steps end from the data."""
    generator = torch.Generator().manual_seed(7)
    noise, data = torch.randn(count, 2, generator=generator), mixture.sample(count, generator)
    nodes = [1 - i / steps for i in range(steps + 1)]
    return sliced_wasserstein(walk(mixture, noise, nodes, {}), data)
