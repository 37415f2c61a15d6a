"""What a scheduler tells of noise: how much the denoiser's input has, and whether more is added.

The input is x = a x_0 + b eps, up to a factor:
    flow matching          a = 1 - sigma,  b = sigma                       sigma in [0, 1]
    everything else        a = 1 / sqrt(1 + sigma^2),  b = sigma a         sigma = sqrt((1 - A) / A)
with sigma the scheduler's own, or from A = alphas_cumprod where it has none. diffusers keeps these
tables on the CPU or small, so nothing waits for the device in the common case.
"""

import math
from typing import Any

__all__ = ["adds_noise", "noise_at"]


def noise_at(pipe: Any, index: int) -> tuple[float, float] | None:
    """Return (a, b) of the run's step `index`, or None where the scheduler does not tell."""
    scheduler = getattr(pipe, "scheduler", None)
    sigma = _sigma(scheduler, index)
    if sigma is None or not math.isfinite(sigma) or sigma < 0:
        return None
    if _is_flow(scheduler):
        return (1 - sigma, sigma) if sigma <= 1 else None
    a = 1 / math.sqrt(1 + sigma * sigma)
    return a, sigma * a


def adds_noise(pipe: Any) -> bool:
    """Say whether a pipeline's scheduler is stochastic: ours say so, of others the name and the
    configured algorithm tell.
    """
    scheduler = getattr(pipe, "scheduler", None)
    algorithm = getattr(getattr(scheduler, "config", None), "algorithm_type", None)
    name = type(scheduler).__name__
    said = bool(getattr(scheduler, "adds_noise", False))
    return said or any(word in name for word in ("Ancestral", "SDE")) or "sde" in str(algorithm)


def _sigma(scheduler: Any, index: int) -> float | None:
    """Look sigma up by the step's number: schedulers list one entry per step, in order."""
    index += int(getattr(scheduler, "begin_index", None) or 0)
    steps = getattr(scheduler, "timesteps", None)
    if steps is None or index >= len(steps):
        return None
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) in (len(steps), len(steps) + 1):
        return float(sigmas[index])
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is None:
        return None
    step = int(steps[index])
    if not 0 <= step < len(products):
        return None
    product = float(products[step])
    return math.sqrt((1 - product) / product) if product > 0 else None


def _is_flow(scheduler: Any) -> bool:
    """Tell flow matching from the rest by what its configuration and tables have."""
    config = dict(getattr(scheduler, "config", {}))
    if config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas"):
        return True
    return not hasattr(scheduler, "alphas_cumprod") and "sigma_data" not in config
