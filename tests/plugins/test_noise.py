"""The noise level by the scheduler's tables equals what its own `add_noise` mixes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from skipstep.plugins.noise import noise_at

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("scheduler", "is_scaled"),
    [
        (DDIMScheduler(), False),
        (DPMSolverMultistepScheduler(), False),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), 0),
        (EulerDiscreteScheduler(), True),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), False),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_and_b_are_what_the_scheduler_mixes(scheduler: Any, is_scaled: bool) -> None:
    scheduler.set_timesteps(7)
    one, none = torch.ones(1, 1), torch.zeros(1, 1)
    mix = getattr(scheduler, "scale_noise", None) or scheduler.add_noise
    for index, t in enumerate(scheduler.timesteps):
        time = t.reshape(1)
        if hasattr(scheduler, "scale_noise"):
            a, b = (float(mix(x, time, eps)) for x, eps in ((one, none), (none, one)))
        else:
            a, b = (float(mix(x, eps, time)) for x, eps in ((one, none), (none, one)))
        if is_scaled:  # the denoiser sees the input divided by sqrt(1 + sigma^2)
            a, b = a / (1 + b * b) ** 0.5, b / (1 + b * b) ** 0.5
        assert noise_at(SimpleNamespace(scheduler=scheduler), index) == pytest.approx(
            (a, b), abs=1e-5
        )


def test_what_the_scheduler_does_not_tell_is_none() -> None:
    assert noise_at(SimpleNamespace(), 0) is None
    bare = SimpleNamespace(timesteps=torch.arange(3), config={})
    assert noise_at(SimpleNamespace(scheduler=bare), 0) is None
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    assert noise_at(SimpleNamespace(scheduler=scheduler), 4) is None
