"""Networks of every prediction type are one flow; walks and paths do what their formulas say."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from scipy.stats import kstest
from torch import Tensor, nn

from skipstep.samplers.distill.couplings import couple, immiscible
from skipstep.samplers.distill.flow import DenoiserBridge, Guided, vp_level
from skipstep.samplers.distill.paths import PathSource, teacher_path, write_paths
from skipstep.samplers.distill.plane import Mixture, ring
from skipstep.samplers.distill.scheduler import FewStepScheduler
from skipstep.samplers.distill.times import LossAwareTimes, draw_times
from skipstep.samplers.distill.walk import renoise, shifted_nodes, walk

VP = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


class ExactDenoiser(nn.Module):
    """A variance-preserving model that predicts exactly, of any prediction type."""

    def __init__(self, mixture: Mixture, prediction: str) -> None:
        super().__init__()
        self.mixture, self.prediction = mixture, prediction
        self.levels = VP.alphas_cumprod.double()

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        logs = (0.5 * ((1 - self.levels) / self.levels).log()).numpy()
        import numpy as np

        level = torch.tensor(np.interp(timestep.double().numpy(), np.arange(1000), logs))
        alpha = torch.rsqrt(1 + (2 * level).exp())[:, None].float()
        sigma = (1 - alpha**2).sqrt()
        t = (sigma / (alpha + sigma))[:, 0]
        x = sample / (alpha + sigma)
        v = self.mixture(x, t, {})
        x_0, eps = x - t[:, None] * v, x + (1 - t[:, None]) * v
        answers = {
            "epsilon": eps,
            "sample": x_0,
            "v_prediction": alpha * eps - sigma * x_0,
        }
        return (answers[self.prediction],)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_variance_preserving_model_is_the_same_flow(prediction: str) -> None:
    mixture = ring()
    bridge = DenoiserBridge(prediction, "sample", "timestep", 1.0, VP.alphas_cumprod)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 0.9, 64)
    v = bridge.velocity(ExactDenoiser(mixture, prediction), x, t, {})
    torch.testing.assert_close(v, mixture(x, t, {}), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_scheduler_walks_as_training_did(prediction: str) -> None:
    mixture, nodes = ring(), (1.0, 0.6, 0.2, 0.0)
    model = ExactDenoiser(mixture, prediction)
    alphas = VP.alphas_cumprod
    bridge = DenoiserBridge(prediction, "sample", "timestep", 1.0, alphas)
    noise = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))

    def flow(x: Tensor, t: Tensor, condition: Any, s: Any = None) -> Tensor:
        return bridge.velocity(model, x, t, condition)

    expected = walk(flow, noise, nodes, {})
    scheduler = FewStepScheduler([list(nodes)], prediction, 0.0, alphas.tolist())
    scheduler.set_timesteps(3)
    y = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        answer = model(scheduler.scale_model_input(y, t), t.expand(32), return_dict=False)[0]
        y = scheduler.step(answer, t, y, return_dict=False)[0]
    torch.testing.assert_close(y, expected, rtol=5e-3, atol=2e-3)  # float32 timesteps


def test_levels_of_a_schedule_come_back_at_its_own_entries() -> None:
    squared = VP.alphas_cumprod.double()
    alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
    found = vp_level(squared, sigma / (alpha + sigma))
    torch.testing.assert_close(found[0], alpha, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[2], torch.arange(1000).double(), rtol=1e-4, atol=1e-3)


def test_guidance_is_two_rows_of_one_call() -> None:
    calls = []

    def flow(x: Tensor, t: Tensor, condition: Any, s: Any = None) -> Tensor:
        calls.append(len(x))
        result: Tensor = condition["c"][:, None] * torch.ones_like(x)
        return result

    guided = Guided(flow, 3.0, {"c": torch.zeros(1)})
    out = guided(torch.zeros(2, 2), torch.ones(2), {"c": torch.tensor([1.0, 2.0])})
    assert calls == [4]
    torch.testing.assert_close(out[:, 0], torch.tensor([3.0, 6.0]))


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="predicts one of flow_prediction"):
        DenoiserBridge("epsilon")


def test_a_straight_flow_arrives_in_one_step_and_keeps_its_marginals_with_new_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, data = torch.randn(2, 20000, 1, generator=generator)

    def straight(x: Tensor, t: Tensor, condition: Any, s: Any = None) -> Tensor:
        v: Tensor = (x - data) / t[:, None]
        return v

    torch.testing.assert_close(walk(straight, noise, (1.0, 0.0), {}), data)
    for gamma in (0.3, 1.0):
        half = walk(straight, noise, (1.0, 0.5), {}, gamma=gamma, generator=generator)
        assert kstest(half[:, 0].numpy() / 0.5**0.5, "norm").pvalue > 1e-3
        end = walk(straight, noise, (1.0, 0.5, 0.0), {}, gamma=gamma, generator=generator)
        torch.testing.assert_close(end, data, rtol=1e-4, atol=1e-4)


def test_renoising_reaches_the_level_from_any_below_it() -> None:
    x, z = torch.zeros(2, 50000, 1)
    z = torch.randn(50000, 1, generator=torch.Generator().manual_seed(0))
    e = torch.randn(50000, 1, generator=torch.Generator().manual_seed(1))
    low, high = torch.full((50000,), 0.3), torch.full((50000,), 0.7)
    raised = renoise(0.7 * x + 0.3 * e, low, high, z)
    assert raised.std() == pytest.approx(0.7, abs=0.01)


def test_nodes_shift_towards_the_noise() -> None:
    assert shifted_nodes(2, 3.0) == (1.0, 0.75, 0.0)


def test_the_teachers_path_is_that_of_diffusers() -> None:
    mixture, steps = ring(), 6
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
    )
    theirs.set_timesteps(steps)
    times = [float(s) for s in theirs.sigmas]
    x = noise
    for t, s in zip(theirs.timesteps, times, strict=False):
        x = theirs.step(mixture(x, torch.full((16,), s), {}), t, x).prev_sample
    ours = teacher_path(mixture, noise, times, {})[:, -1]
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


def test_paths_come_back_from_files_at_the_times_asked_for(tmp_path: Any) -> None:
    path = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0))
    write_paths(tmp_path / "0.safetensors", path, shifted_nodes(4), ["a", "b"] * 3)
    table = {"c": torch.tensor([10.0, 20.0])}
    files = [tmp_path / "0.safetensors"]
    source = PathSource.read(files, (1.0, 0.5, 0.0), table, {"a": 0, "b": 1}, {"c": torch.zeros(1)})
    batch = source.draw(32, torch.Generator().manual_seed(0))
    rows = [
        int((path[:, 0].half() == noise.half()).all(1).nonzero()[0, 0]) for noise in batch.noise
    ]
    torch.testing.assert_close(batch.path, path[rows][:, [0, 2, 4]].half().float())
    torch.testing.assert_close(batch.condition["c"], table["c"][torch.tensor(rows) % 2])
    with pytest.raises(ValueError, match=r"has no states at \[0.3\]"):
        PathSource.read(files, (1.0, 0.3, 0.0), table, {"a": 0, "b": 1}, {})


def test_immiscible_noise_is_a_permutation_that_lies_nearer() -> None:
    data, noise = torch.randn(2, 64, 2, generator=torch.Generator().manual_seed(0))
    near = immiscible(data, noise)
    assert sorted(near[:, 0].tolist()) == sorted(noise[:, 0].tolist())
    assert (near - data).square().sum() < 0.5 * (noise - data).square().sum()
    assert couple("independent", data, noise) is noise


def test_time_laws_have_their_densities() -> None:
    generator = torch.Generator().manual_seed(0)
    times = {law: draw_times(law, 20000, generator) for law in ("logit_normal", "bifocal")}
    assert kstest(torch.logit(times["logit_normal"]).numpy(), "norm").pvalue > 1e-3
    ends, middle = (
        float(((times["bifocal"] - c).abs() < 0.05).float().mean()) for c in (0.05, 0.5)
    )
    # (exp(4 t) + exp(4 (1 - t))) at 0.05 and at 0.5
    assert ends / middle == pytest.approx((2.718**0.2 + 2.718**3.8) / (2 * 2.718**2), rel=0.1)


def test_loss_aware_times_follow_the_loss_and_stay_unbiased() -> None:
    generator, times = torch.Generator().manual_seed(0), LossAwareTimes()
    for _ in range(60):
        t, _ = times.draw(512, generator)
        times.note(t, (t > 0.5).float() + 0.01)
    t, weight = times.draw(40000, generator)
    assert (t > 0.5).float().mean() > 0.85
    assert float((weight * t).mean()) == pytest.approx(0.5, abs=0.02)
