"""The linear step: schedulers of diffusers written as one, guidance and noise, one rounding."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from skipstep.kernels.sampler_step import _linear_step, linear_step

BACKENDS = ["torch", "interpret"]


def draw(seed: int) -> torch.Tensor:
    """Draw a latent."""
    return torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_guided_flow_step_is_one(backend: str) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    x, cond, uncond = draw(0), draw(1), draw(2)
    velocity = uncond + 4.0 * (cond - uncond)
    wanted = scheduler.step(velocity, scheduler.timesteps[0], x).prev_sample
    dt = float(scheduler.sigmas[1] - scheduler.sigmas[0])
    found = linear_step(x, 1.0, [cond], [dt], unconditional=[uncond], guidance=4.0, backend=backend)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_ddim_step_is_one() -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    x, noise, t = draw(0), draw(1), 501
    now, then = float(scheduler.alphas_cumprod[t]), float(scheduler.alphas_cumprod[t - 100])
    ratio = (then / now) ** 0.5
    found = linear_step(x, ratio, [noise], [(1 - then) ** 0.5 - ratio * (1 - now) ** 0.5])
    wanted = scheduler.step(noise, t, x).prev_sample
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_terms_of_bf16_are_rounded_once(backend: str) -> None:
    x = torch.full((2, 1030), 256.0, dtype=torch.bfloat16)
    terms = [x, x - 2, x]
    found = linear_step(x, 1.0, terms, [3.0, -2.5, -1.0], noise=x, noise_scale=0.5, backend=backend)
    # 256 (1 + 3 - 1 + 0.5) - 2.5 * 254 = 261, which is not a number of bf16; 260 and 262 are.
    assert found.dtype == torch.bfloat16 and set(found.flatten().tolist()) <= {260.0, 262.0}


def test_more_terms_than_the_kernel_takes_are_summed_in_torch() -> None:
    x = torch.ones(3)
    assert linear_step(x, 1.0, [x] * 9, [1.0] * 9).tolist() == [10.0] * 3
    with pytest.raises(ValueError, match="cannot serve this call: it takes 8 tensors, not 10"):
        linear_step(x, 1.0, [x] * 9, [1.0] * 9, backend="interpret")


def test_torch_accepts_the_op() -> None:
    torch.library.opcheck(_linear_step, ([draw(0), draw(1)], [1.0, -2.0], "torch"))


@pytest.mark.usefixtures("as_users_see_it")
def test_errors_say_what_fits() -> None:
    x = torch.ones(3)
    with pytest.raises(ValueError, match="1 predictions, 2 coefficients and 0 unconditional"):
        linear_step(x, 1.0, [x], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"given \(2,\) beside x \(3,\)"):
        linear_step(x, 1.0, [x[:2]], [1.0])
