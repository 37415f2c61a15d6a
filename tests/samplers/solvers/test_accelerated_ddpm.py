"""Accelerated DDPM: second order in distribution, where DDPM is of first."""

import math

import pytest
import torch

from skipstep.plugins.errors import Incompatible
from skipstep.samplers.solvers.accelerated_ddpm import AcceleratedDDPMScheduler
from skipstep.testing import run, tiny_pipeline

VARIANCE = 0.3


def errors_before_the_last_step(steps: int) -> tuple[float, float]:
    """Return how wrong the variance of data N(0, 0.3) is by then: ours, and DDPM's.

    Both updates are linear on a Gaussian, so variances follow by arithmetic; ours is read off the
    scheduler itself, whose noise is known from its seed. The last step, which adds no noise, is
    left out: it shrinks both alike.
    """
    scheduler = AcceleratedDDPMScheduler()
    scheduler.set_timesteps(steps)
    products = [1 / (1 + s * s) for s in scheduler.nodes]
    true = [a * VARIANCE + 1 - a for a in products]
    y = torch.ones(1, 1, dtype=torch.float64)
    ours = true[0] + (1 - scheduler.ratios[0]) / 2
    theirs = true[0]
    for i, ratio in enumerate(scheduler.ratios[:-1]):
        sigma = scheduler.path.sigma(scheduler.nodes[i])
        rate = (1 - (1 - ratio) / true[i]) / math.sqrt(ratio)
        draw, same = (torch.Generator().manual_seed(i) for _ in range(2))
        z = torch.randn(1, 1, dtype=torch.float64, generator=same)
        found = scheduler.step(y * sigma / true[i], scheduler.timesteps[i], y, generator=draw)
        spread = float((found.prev_sample - rate * y) / z)
        ours = rate**2 * ours + spread**2
        theirs = rate**2 * theirs + 1 - ratio
    ours -= (1 - scheduler.ratios[-1]) / 2
    return abs(ours - true[-2]), abs(theirs - true[-2])


def test_its_variance_is_of_second_order_and_ddpms_of_first() -> None:
    (ours, theirs), (ours_finer, theirs_finer) = map(errors_before_the_last_step, (100, 200))
    assert abs(math.log2(ours / ours_finer) - 2) < 0.15
    assert abs(math.log2(theirs / theirs_finer) - 1) < 0.15
    assert ours_finer < theirs_finer / 10


def test_a_pipeline_runs_with_it_and_gets_its_own_back() -> None:
    tiny = tiny_pipeline("sdxl")
    plain, own = run(tiny), tiny.pipe.scheduler
    tiny.pipe.enable_plugin("accelerated_ddpm")
    found = run(tiny, steps=4)
    assert torch.isfinite(found).all() and torch.equal(run(tiny, steps=4), found)
    assert tiny.pipe.scheduler is own
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny), plain)


def test_a_flow_is_refused() -> None:
    with pytest.raises(Incompatible, match="walks a schedule of betas"):
        tiny_pipeline("sd3").pipe.enable_plugin("accelerated_ddpm")


def test_senseless_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="num_inference_steps=0 is not allowed"):
        AcceleratedDDPMScheduler().set_timesteps(0)
