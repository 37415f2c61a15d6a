"""Where a solver asks the network: N values of s from the noisiest down, and 0 behind them.

Every spacing ends at s = 0, the clean picture, and none rounds to a row of the beta table.

  time         evenly in network time, from its end ("trailing"); on a flow t is shifted by
               t -> shift t / (1 + (shift - 1) t)                (Esser et al. 2024, 2403.03206)
  karras       evenly in s^(1/7)                                 (Karras et al. 2022, 2206.00364)
  exponential  evenly in ln s
  beta         at quantiles of Beta(0.6, 0.6) in network time    (Lee et al. 2024, 2407.12173)
  log_shift    evenly in ln(s + c): like karras above c, and like s below it
On a flow, where s begins at infinity, the first node stays there and the others are spaced from
s = 50 (log_shift) or from the end of training time (karras, exponential).
"""

import math
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from skipstep.samplers.solvers.paths import Path

__all__ = ["Spacing", "nodes", "shifted"]

Spacing = Literal["time", "karras", "exponential", "beta", "log_shift"]

KARRAS_ROOT = 7.0
BETA = 0.6
FLOW_TOP = 50.0


def shifted(t: float, shift: float) -> float:
    """Return flow time t moved towards noise.

    >>> shifted(0.5, 3.0)
    0.75
    """
    return shift * t / (1 + (shift - 1) * t)


def nodes(
    path: Path, count: int, spacing: Spacing = "time", *, shift: float = 1.0, offset: float = 0.1
) -> list[float]:
    """Return `count` descending s and 0.

    Args:
        shift: of flow time, for "time" and "beta"; other paths keep 1.
        offset: c of "log_shift": about half of the nodes lie above it.
    """
    if spacing in ("time", "beta"):
        places = 1 - np.arange(count) / count
        if spacing == "beta":
            places = beta_quantiles(places)
        if path.kind == "flow":
            times = [path.length * shifted(float(each), shift) for each in places]
        elif path.kind == "vp":
            times = [path.length * float(each) - 1 for each in places]
        else:
            bottom = path.time(path.least)
            times = [bottom + (path.time(path.most) - bottom) * float(each) for each in places]
        return [*(path.at_time(each) for each in times), 0.0]
    top = min(path.most, FLOW_TOP if spacing == "log_shift" else path.length - 1.0)
    share = np.arange(count) / max(count - 1, 1)
    if spacing == "karras":
        roots = [each ** (1 / KARRAS_ROOT) for each in (top, path.least)]
        s = (roots[0] + (roots[1] - roots[0]) * share) ** KARRAS_ROOT
    elif spacing == "exponential":
        s = np.exp(math.log(top) + math.log(path.least / top) * share)
    else:
        share = np.arange(count) / count
        s = (top + offset) * (offset / (top + offset)) ** share - offset
    return [path.most, *(float(each) for each in s[1:]), 0.0]


def beta_quantiles(places: Float64[ndarray, " n"]) -> Float64[ndarray, " n"]:
    """Return quantiles of Beta(0.6, 0.6) by integrating its density on a fine grid."""
    grid = (1 - np.cos(np.linspace(0, np.pi, 4001))) / 2
    middle = (grid[1:] + grid[:-1]) / 2
    mass = (middle * (1 - middle)) ** (BETA - 1) * np.diff(grid)
    total = np.concatenate([[0.0], np.cumsum(mass)])
    found: Float64[ndarray, " n"] = np.interp(places, total / total[-1], grid)
    return found
