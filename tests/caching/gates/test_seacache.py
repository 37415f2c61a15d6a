"""SeaCache's gate: the filter by closed forms, decisions by hand, unknown noise in words."""

import math

import pytest
import torch

from skipstep.caching.base import Seen, Step
from skipstep.caching.gates.seacache import SeaCacheGate, unfold, wiener
from skipstep.testing import run, tiny_pipeline

torch.set_num_threads(1)


def wave(cycles: int, n: int = 16) -> torch.Tensor:
    """Return [1, 1, n, n], a cosine down the rows."""
    line = torch.cos(2 * math.pi * cycles * torch.arange(n) / n)
    return line.reshape(1, 1, n, 1).expand(1, 1, n, n).contiguous()


@pytest.mark.parametrize("noise", [(0.3, 0.7), (0.0, 1.0), (0.9, 0.1)])
def test_a_wave_is_scaled_by_the_formula(noise: tuple[float, float]) -> None:
    a, b = noise
    n, floor = 16, 1e-2

    def g(cycles: int) -> float:
        f = min(cycles, n - cycles) / n
        power = 1 / (f**3 + floor)
        return power / (a * a * power + b * b)

    mean = sum(g(k) for k in range(n)) / n
    for cycles in (1, 3, 8):
        expected = wave(cycles) * g(cycles) * g(0) / mean**2
        found = wiener(wave(cycles), a=a, b=b, floor=floor)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_factor_a_of_the_paper_cancels() -> None:
    x, floor, sigma = torch.randn(2, 3, 8, 8), 1e-3, 0.6
    f = torch.fft.fftfreq(8).abs()
    power = 1 / (f**3 + floor)
    g = (1 - sigma) * power / ((1 - sigma) ** 2 * power + sigma**2)
    gain = g[:, None] * g[None, :]
    expected = torch.fft.ifft2(torch.fft.fft2(x) * (gain / gain.mean())).real
    torch.testing.assert_close(wiener(x, a=1 - sigma, b=sigma, floor=floor), expected)


def test_noise_hides_fine_changes_and_shows_coarse_ones() -> None:
    base = torch.full((1, 1, 16, 16), 1.0)
    values = {}
    for name, cycles in (("coarse", 1), ("fine", 8)):
        for sigma in (0.1, 0.9):
            gate = SeaCacheGate()
            state = gate.init(1)
            for index, x in enumerate((base, base + 0.2 * wave(cycles))):
                (choice,) = gate.decide(state, Step(index, 2, (1 - sigma, sigma)), x)
            values[name, sigma] = choice.value or 0.0
    assert values["fine", 0.9] < 0.2 * values["fine", 0.1]
    assert values["fine", 0.9] < 0.2 * values["coarse", 0.9]


def test_without_noise_it_accumulates_plain_changes() -> None:
    gate = SeaCacheGate(threshold=0.25)
    state, computed = gate.init(1), []
    for index in range(8):
        x = torch.full((1, 2, 4, 4), 1.1**index)
        step = Step(index, 8, (1.0, 0.0))
        (choice,) = gate.decide(state, step, x)
        if choice.compute:
            computed.append(index)
            gate.observe(state, Seen(step, [0], x, x))
    assert computed == [0, 3, 6]


def test_an_unknown_noise_level_computes_and_says_so() -> None:
    gate = SeaCacheGate(threshold=10)
    state, x = gate.init(2), torch.ones(2, 1, 4, 4)
    for index in range(3):
        choices = gate.decide(state, Step(index, 3), x)
        assert [(c.compute, c.why) for c in choices] == [(True, "no noise level")] * 2


def test_tokens_are_laid_out_in_order_and_a_wrong_grid_is_refused() -> None:
    tokens = torch.arange(12.0).reshape(1, 6, 2)
    assert torch.equal(unfold(tokens, (2, 3))[0, 0], torch.tensor([[0.0, 2, 4], [6, 8, 10]]))
    assert unfold(tokens, None).shape == (1, 2, 6)
    with pytest.raises(ValueError, match=r"grid \(2, 2\) has 4 places and the latents have 6"):
        unfold(tokens, (2, 2))


def test_a_pipeline_without_a_noise_level_is_told_in_the_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.enable_plugin("seacache", threshold=5.0)
    run(tiny, steps=6)
    assert tiny.pipe.plugin_report().fraction < 1
    monkeypatch.setattr("skipstep.plugins.cache_call.noise_at", lambda pipe, index: None)
    run(tiny, steps=6)
    assert "no noise level" in tiny.pipe.plugin_report().verdict
