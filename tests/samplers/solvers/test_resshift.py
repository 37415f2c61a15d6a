"""ResShift: its step is the posterior of its forward process, and a perfect network restores."""

import math

import pytest
import torch

from skipstep.samplers.solvers.resshift import ResShiftScheduler, shift_levels

WIDE = torch.float64


def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    clean, degraded, noise = torch.randn(
        3, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=WIDE
    )
    return clean, degraded, noise


def test_levels_have_the_published_ends_and_rise() -> None:
    levels = shift_levels(4, least=0.1, most=0.99, power=0.3)
    assert math.isclose(levels[0], 0.1**2) and math.isclose(levels[-1], 0.99**2)
    assert levels == sorted(levels)


def test_the_step_is_the_posterior_of_the_forward_process() -> None:
    """With the true x_0, the mean and variance of x_(t-1) are those of q(x_(t-1) | x_0, y)."""
    scheduler = ResShiftScheduler()
    clean, degraded, noise = pictures()
    kappa, levels = scheduler.config.kappa, scheduler.levels
    for t in (3, 2, 1):
        eta, before = levels[t], levels[t - 1]
        x_t = scheduler.add_noise(clean, noise, torch.tensor([t, t]), degraded)
        draw = torch.Generator().manual_seed(1)
        z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1), dtype=WIDE)
        found = scheduler.step(clean, t, x_t, generator=draw).prev_sample
        # x_t carries the noise sqrt(eta) n; what of it stays and z are independent.
        stays = before / eta * kappa * math.sqrt(eta)
        spread = math.sqrt(kappa**2 * before - stays**2)
        expected = clean + before * (degraded - clean) + stays * noise + spread * z
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_perfect_network_ends_at_the_clean_picture_and_sees_unit_variance() -> None:
    scheduler = ResShiftScheduler()
    clean, degraded, noise = pictures()
    x = scheduler.start(degraded, noise)
    torch.testing.assert_close(
        scheduler.scale_model_input(x, 3), x / math.sqrt(4 * 0.99**2 + 1), rtol=0, atol=1e-12
    )
    for t in scheduler.timesteps:
        x = scheduler.step(clean, t, x, generator=torch.Generator().manual_seed(int(t))).prev_sample
    assert torch.equal(x, clean)


def test_other_steps_than_those_of_training_are_refused() -> None:
    with pytest.raises(ValueError, match="this network was trained with 4, pass that"):
        ResShiftScheduler().set_timesteps(10)
