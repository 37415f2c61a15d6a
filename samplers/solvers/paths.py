"""The three ways from picture to noise, in one coordinate: s = sigma / alpha, the noise-to-signal
ratio of x = alpha x0 + sigma eps.

  variance preserving   alpha = 1 / sqrt(1 + s^2)   sigma = s alpha   time: place in the beta table
  flow                  alpha = 1 / (1 + s)         sigma = s alpha   time: T sigma
  variance exploding    alpha = 1                   sigma = s         time: ln(s) / 4
s runs from `most` (infinite on a flow) down to 0, the clean picture, on all of them. `time` is what
the network is told; it is a float everywhere, also between the rows of a beta table.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

__all__ = ["Path", "PathKind", "betas_of", "edm_path", "flow_path", "vp_path"]

PathKind = Literal["vp", "flow", "edm"]


@dataclass(frozen=True)
class Path:
    """Hold one path; `table` is s of every training step of a variance-preserving one."""

    kind: PathKind
    most: float
    least: float
    length: int = 1000
    table: Float64[ndarray, " t"] | None = None

    def alpha(self, s: float) -> float:
        """Return the share of the picture at s."""
        if self.kind == "edm":
            return 1.0
        return 1 / (1 + s) if self.kind == "flow" else 1 / math.hypot(1.0, s)

    def sigma(self, s: float) -> float:
        """Return the share of the noise at s."""
        if math.isinf(s):
            return 1.0
        return s * self.alpha(s)

    def time(self, s: float) -> float:
        """Return what the network is told at s."""
        if self.kind == "flow":
            return self.length * self.sigma(s)
        if self.kind == "edm":
            return math.log(s) / 4
        table = self._logs()
        return float(np.interp(math.log(max(s, 1e-12)), table, np.arange(len(table))))

    def at_time(self, time: float) -> float:
        """Return s at a network time: the inverse of `time`."""
        if self.kind == "flow":
            t = time / self.length
            return math.inf if t >= 1 else t / (1 - t)
        if self.kind == "edm":
            return math.exp(4 * time)
        table = self._logs()
        return float(np.exp(np.interp(time, np.arange(len(table)), table)))

    def _logs(self) -> Float64[ndarray, " t"]:
        assert self.table is not None
        logs: Float64[ndarray, " t"] = np.log(self.table)
        return logs


def betas_of(
    schedule: str, start: float, end: float, count: int, trained: list[float] | None = None
) -> Float64[ndarray, " t"]:
    """Return diffusers' beta tables by their names.

    Raises ValueError for a name that is none.
    """
    if trained is not None:
        return np.asarray(trained, dtype=np.float64)
    if schedule == "linear":
        return np.linspace(start, end, count)
    if schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, count) ** 2
    if schedule == "squaredcos_cap_v2":
        place = np.arange(count + 1) / count
        products = np.cos((place + 0.008) / 1.008 * np.pi / 2) ** 2
        capped: Float64[ndarray, " t"] = np.minimum(1 - products[1:] / products[:-1], 0.999)
        return capped
    raise ValueError(
        f"beta_schedule={schedule!r} is unknown: use 'linear', 'scaled_linear', "
        "'squaredcos_cap_v2' or give trained_betas"
    )


def vp_path(betas: Float64[ndarray, " t"], *, zero_snr: bool = False) -> Path:
    """Return the variance-preserving path of a beta table.

    `zero_snr` rescales it as Lin et al. (2023, arXiv:2305.08891) do, so that the last step is
    noise alone; as in diffusers its product is 2^-24 and not 0.
    """
    roots = np.sqrt(np.cumprod(1 - betas))
    if zero_snr:
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    products = np.maximum(roots**2, 2.0**-24)
    table = np.sqrt((1 - products) / products)
    return Path("vp", float(table[-1]), float(table[0]), len(table), table)


def flow_path(length: int = 1000) -> Path:
    """Return the straight path x = (1 - t) x0 + t eps."""
    return Path("flow", math.inf, 1 / (length - 1), length)


def edm_path(least: float = 0.002, most: float = 80.0) -> Path:
    """Return Karras et al.'s (2022, arXiv:2206.00364) path x = x0 + s eps."""
    return Path("edm", most, least)
