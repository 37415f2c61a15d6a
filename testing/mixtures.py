"""Gaussian mixtures, whose every quantity along a noise path is known: samplers are judged on them
without a network.

A mixture sum_k w_k N(m_k, diag V_k) seen through x^ = x0 + s eps has

  E[x0 | x^] = sum_k r_k (m_k + V_k / (V_k + s^2) (x^ - m_k)),   r = softmax of the log-likelihoods

Everything is float64. The targets: a ring and a grid in the plane; "latent", 64 numbers with the
power-law spectrum of picture latents; "sharp", 128 numbers near a union of 8-dimensional planes.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from skipstep.samplers.distill.walk import renoise
from skipstep.samplers.search.sampler import Visit
from skipstep.samplers.solvers.paths import Path

__all__ = [
    "TARGETS",
    "ExactSampler",
    "Mixture",
    "Network",
    "mixture",
    "relative_errors",
    "solve_finely",
]

TARGETS = ("ring", "grid", "latent", "sharp")
WIDE = torch.float64


@dataclass(frozen=True)
class Mixture:
    """Hold a mixture: means, variances, and the class that each component belongs to."""

    means: Float64[Tensor, "k d"]
    variances: Float64[Tensor, "k d"]
    classes: Int64[Tensor, " k"]

    def picture(
        self,
        x_hat: Float64[Tensor, "b d"],
        s: float,
        label: Int64[Tensor, " b"] | None = None,
        guidance: float = 1.0,
    ) -> Float64[Tensor, "b d"]:
        """Return E[x0 | x0 + s eps = x_hat], guided towards each sample's class if one is given."""
        if label is None:
            return self._mean(x_hat, s, None)
        of_class = self._mean(x_hat, s, self.classes[None, :] == label[:, None])
        if guidance == 1.0:
            return of_class
        return torch.lerp(self._mean(x_hat, s, None), of_class, guidance)

    def _mean(
        self, x_hat: Float64[Tensor, "b d"], s: float, allowed: Tensor | None
    ) -> Float64[Tensor, "b d"]:
        total = self.variances + s * s
        precision = 1 / total
        distance = (x_hat**2) @ precision.T - 2 * x_hat @ (self.means * precision).T
        distance = distance + (self.means**2 * precision).sum(1) + total.log().sum(1)
        logits = -distance / 2
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
        weights = torch.softmax(logits, -1)
        gain = self.variances * precision
        return weights @ ((1 - gain) * self.means) + x_hat * (weights @ gain)

    def sample(self, count: int, generator: torch.Generator) -> Float64[Tensor, "b d"]:
        """Return clean samples."""
        chosen = torch.randint(len(self.means), (count,), generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=WIDE)
        return self.means[chosen] + self.variances[chosen].sqrt() * noise


@dataclass
class Network:
    """Answer like a perfect network on a path: x and a network time in, its prediction out."""

    mixture: Mixture
    path: Path
    prediction: str = "epsilon"
    label: Int64[Tensor, " b"] | None = None
    guidance: float = 1.0
    calls: int = 0

    def __call__(self, x: Tensor, time: float) -> Tensor:
        """Return eps, v, the flow or x0 at network time `time`, in x's type."""
        self.calls += 1
        s = self.path.at_time(float(time))
        # At the start of a flow s is infinite and x says nothing of the picture.
        s = min(s, 1e8)
        alpha, sigma = self.path.alpha(s), self.path.sigma(s)
        x_wide = x.to(WIDE)
        x0 = self.mixture.picture(x_wide / alpha, s, self.label, self.guidance)
        eps = (x_wide - alpha * x0) / sigma
        found = {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": alpha * eps - sigma * x0,
            "flow_prediction": eps - x0,
        }[self.prediction]
        return found.to(x.dtype)


@dataclass
class ExactSampler:
    """Walk along the exact flow of a mixture by Euler's steps, for searches (samplers/search)."""

    mixture: Mixture
    steps: int = 20
    evaluations: int = 0

    def noise(self, count: int, generator: torch.Generator) -> Float64[Tensor, "b d"]:
        """Return normal noise."""
        return torch.randn(count, self.mixture.means.shape[1], generator=generator, dtype=WIDE)

    def walk(
        self, x: Float64[Tensor, "b d"], begin: int, end: int, keep: Collection[int] = ()
    ) -> Visit:
        """Go from node to node; pictures are what is expected behind the last state."""
        states, picture = {}, x
        for i in range(begin, end):
            t, s = self._time(i), self._time(i + 1)
            picture = self.mixture.picture(x / (1 - t), t / (1 - t))
            x = (s / t) * x + (1 - s / t) * picture
            self.evaluations += len(x)
            if i + 1 in keep:
                states[i + 1] = x
        return Visit(x, picture if end < self.steps else x, states)

    def renoise(
        self, x: Float64[Tensor, "b d"], node: int, to: int, generator: torch.Generator
    ) -> Float64[Tensor, "b d"]:
        """Bring states back to a noisier node."""
        rows = torch.ones(len(x), dtype=WIDE)
        return renoise(
            x, self._time(node) * rows, self._time(to) * rows, self.noise(len(x), generator)
        )

    def _time(self, node: int) -> float:
        return min(1 - node / self.steps, 1 - 1e-6)


def mixture(name: str) -> Mixture:
    """Return a target by its name.

    Raises ValueError for a name that is none.
    """
    random = torch.Generator().manual_seed(0)
    if name == "ring":
        angle = torch.arange(8, dtype=WIDE) * (2 * math.pi / 8)
        means = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
        return Mixture(means, torch.full((8, 2), 0.15**2, dtype=WIDE), torch.arange(8) % 4)
    if name == "grid":
        line = torch.arange(-2, 3, dtype=WIDE) / math.sqrt(2)
        means = torch.cartesian_prod(line, line)
        return Mixture(means, torch.full((25, 2), 0.05**2, dtype=WIDE), torch.arange(25) % 5)
    if name not in ("latent", "sharp"):
        raise ValueError(f"target {name!r} is unknown: choose one of {', '.join(TARGETS)}")
    dimension, count = (64, 32) if name == "latent" else (128, 48)
    spectrum = 1 / (1 + torch.arange(dimension, dtype=WIDE))
    spectrum = spectrum / spectrum.mean()
    between = 0.6 if name == "latent" else 0.8
    noise = torch.randn(count, dimension, generator=random, dtype=WIDE)
    means = noise * (between * spectrum).sqrt()
    means = means - means.mean(0)
    if name == "latent":
        uneven = torch.randn(count, dimension, generator=random, dtype=WIDE)
        variances = 0.4 * spectrum * (0.5 * uneven).exp()
    else:
        variances = torch.full((count, dimension), 1e-3, dtype=WIDE)
        for row in variances:
            active = torch.randperm(dimension, generator=random)[:8]
            row[active] += 0.2 * spectrum[active]
    return Mixture(means, variances, torch.arange(count) % 8)


def solve_finely(
    target: Mixture,
    path: Path,
    start: Float64[Tensor, "b d"],
    *,
    label: Int64[Tensor, " b"] | None = None,
    guidance: float = 1.0,
    intervals: int = 300,
) -> Float64[Tensor, "b d"]:
    """Return where the sampling equation leads from x at the noisiest end: Runge-Kutta 4 in
    s^(1/7), and the last 1e-4 by the picture itself.
    """
    top = min(path.most, 1e4)
    x = start / path.alpha(top)
    roots = torch.linspace(top ** (1 / 7), 1e-4 ** (1 / 7), intervals + 1, dtype=WIDE).tolist()

    def slope(x: Tensor, root: float) -> Tensor:
        s = root**7
        return (x - target.picture(x, s, label, guidance)) / s * 7 * root**6

    for a, b in zip(roots, roots[1:], strict=False):
        h = b - a
        k1 = slope(x, a)
        k2 = slope(x + h / 2 * k1, a + h / 2)
        k3 = slope(x + h / 2 * k2, a + h / 2)
        k4 = slope(x + h * k3, b)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return target.picture(x, 1e-4, label, guidance)


def relative_errors(
    found: Float64[Tensor, "b d"], truth: Float64[Tensor, "b d"]
) -> Float64[Tensor, " b"]:
    """Return each sample's root mean squared error in units of the truth's spread."""
    return (found - truth).pow(2).mean(1).sqrt() / truth.std()
