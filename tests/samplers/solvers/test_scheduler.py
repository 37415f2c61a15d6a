"""The scheduler as pipelines use it: diffusers' own conventions, every path, every spacing."""

import copy
import math
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.samplers.solvers.presets import PRESETS
from skipstep.samplers.solvers.scheduler import ExponentialAdamsScheduler
from skipstep.samplers.solvers.sums import combined
from skipstep.testing import run, tiny_pipeline
from skipstep.testing.mixtures import Network, mixture, relative_errors, solve_finely

STABLE_DIFFUSION: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction"}
EDM: dict[str, Any] = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
PATHS: dict[str, dict[str, Any]] = {"vp": STABLE_DIFFUSION, "flow": FLOW, "edm": EDM}
IN_SHORT = {("flow", "exact2"), ("vp", "unipc"), ("edm", "ab2")}
SPACINGS = ["time", "karras", "exponential", "beta", "log_shift"]


def made(steps: int | None = None, **config: Any) -> Any:
    scheduler = ExponentialAdamsScheduler(**config)
    if steps is not None:
        scheduler.set_timesteps(steps)
    return scheduler


def sample() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def walk(scheduler: Any, x: torch.Tensor) -> torch.Tensor:
    """Run all steps on a network that is smooth and says nothing in particular."""
    for t in scheduler.timesteps:
        output = torch.tanh(scheduler.scale_model_input(x, t)) + 1e-4 * t
        x = scheduler.step(output, t, x).prev_sample
    return x


# What diffusers' SchedulerCommonTest asks of a scheduler.


@pytest.mark.parametrize("path", PATHS)
def test_saving_and_loading_change_nothing(path: str, tmp_path: Path) -> None:
    scheduler = made(10, **PATHS[path], preset="dpm++2m", spacing="karras")
    scheduler.save_pretrained(tmp_path)
    loaded = ExponentialAdamsScheduler.from_pretrained(tmp_path)
    loaded.set_timesteps(10)
    assert torch.equal(walk(loaded, sample()), walk(scheduler, sample()))


def test_compatible_schedulers_take_each_others_configs() -> None:
    scheduler = made(**STABLE_DIFFUSION)
    assert len(scheduler.compatibles) > 5
    euler = diffusers.EulerDiscreteScheduler.from_config(scheduler.config)
    assert euler.config.beta_end == 0.012
    back = ExponentialAdamsScheduler.from_config(euler.config)
    assert dict(back.config) == dict(scheduler.config) | {
        key: value for key, value in back.config.items() if key not in scheduler.config
    }


def test_tuples_and_outputs_hold_the_same() -> None:
    scheduler = made(4, **STABLE_DIFFUSION)
    x, output = sample(), torch.tanh(sample())
    first = scheduler.step(output, scheduler.timesteps[0], x)
    scheduler.set_timesteps(4)
    pair = scheduler.step(output, scheduler.timesteps[0], x, return_dict=False)
    assert torch.equal(pair[0], first.prev_sample)
    assert torch.equal(pair[1], first.pred_original_sample)


@pytest.mark.parametrize("preset", [name for name in PRESETS if PRESETS[name].start_up == "none"])
def test_one_step_gives_the_picture_as_the_second_item(preset: str) -> None:
    scheduler = made(1, **FLOW, preset=preset)
    pair = scheduler.step(sample(), scheduler.timesteps[0], sample(), return_dict=False)
    torch.testing.assert_close(pair[0], torch.zeros_like(pair[0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(pair[1], pair[0], rtol=0, atol=1e-6)


def test_trained_betas_and_the_length_are_the_configs() -> None:
    scheduler = made(trained_betas=np.linspace(0.1, 0.2, 50).tolist(), num_train_timesteps=50)
    assert len(scheduler) == 50
    assert scheduler.betas[-1] == pytest.approx(0.2)


def test_noise_is_added_at_training_times_and_at_planned_ones() -> None:
    scheduler, theirs = made(**STABLE_DIFFUSION), diffusers.DDIMScheduler(**STABLE_DIFFUSION)
    x, noise, times = sample(), torch.randn(2, 3, 8, 8), torch.tensor([10, 700])
    expected = theirs.add_noise(x, noise, times)
    torch.testing.assert_close(scheduler.add_noise(x, noise, times), expected, rtol=0, atol=1e-6)
    flow = made(4, **FLOW, shift=3.0)
    for t, sigma in zip(flow.timesteps, flow.sigmas, strict=False):
        found = flow.scale_noise(x, t[None].expand(2), noise)
        torch.testing.assert_close(found, (1 - sigma) * x + sigma * noise, rtol=0, atol=1e-6)


def test_a_step_before_set_timesteps_and_one_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="call set_timesteps first"):
        made().step(sample(), 10, sample())
    scheduler = made(1)
    scheduler.step(sample(), scheduler.timesteps[0], sample())
    with pytest.raises(ValueError, match="all 1 steps are done"):
        scheduler.step(sample(), scheduler.timesteps[0], sample())


# Spacings and paths.


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_every_spacing_falls_to_zero_and_asks_at_floats(
    path: str, spacing: str, steps: int
) -> None:
    scheduler = made(steps, **PATHS[path], spacing=spacing)
    assert scheduler.sigmas[-1] == 0 and len(scheduler.sigmas) == steps + 1
    assert (scheduler.sigmas.diff() < 0).all()
    assert scheduler.timesteps.dtype == torch.float32
    assert torch.isfinite(walk(scheduler, sample())).all()


@pytest.mark.parametrize("path", PATHS)
def test_time_and_its_inverse_agree(path: str) -> None:
    found = made(**PATHS[path]).path
    for s in (0.05, 0.7, 3.0, 11.0):
        assert found.at_time(found.time(s)) == pytest.approx(s)
        alpha, sigma = found.alpha(s), found.sigma(s)
        assert sigma / alpha == pytest.approx(s)
        total = {"vp": alpha**2 + sigma**2, "flow": alpha + sigma, "edm": alpha}[path]
        assert total == pytest.approx(1)


def test_what_flow_pipelines_always_pass_is_no_opinion() -> None:
    plain = made(8, **FLOW, shift=3.0)
    told = made(**FLOW, shift=3.0)
    told.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8), mu=0.9)
    assert torch.equal(told.sigmas, plain.sigmas)
    told.set_timesteps(sigmas=[1.0, 0.5, 0.25])
    torch.testing.assert_close(told.sigmas, torch.tensor([1.0, 0.75, 0.5, 0.0]))
    dynamic = made(**FLOW, use_dynamic_shifting=True)
    dynamic.set_timesteps(2, mu=math.log(3))
    torch.testing.assert_close(dynamic.sigmas, torch.tensor([1.0, 0.75, 0.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "was given nothing"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is not allowed"),
        ({"timesteps": [900.0, 1.0], "sigmas": [9.0, 1.0]}, "give one of them"),
        ({"timesteps": [100.0, 500.0]}, "must fall from step to step"),
    ],
)
def test_senseless_steps_are_refused_in_words(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made().set_timesteps(**arguments)


# Exact scores.


@pytest.mark.parametrize(
    ("path", "preset"),
    [
        pytest.param(path, preset, marks=[] if (path, preset) in IN_SHORT else pytest.mark.slow)
        for path in PATHS
        for preset in ("unipc", "exact2", "ab2")
    ],
)
def test_fifty_steps_reach_the_exact_solution_on_every_path(path: str, preset: str) -> None:
    target = mixture("latent")
    scheduler = made(50, **PATHS[path], preset=preset, spacing="log_shift")
    start = torch.randn(8, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if path == "edm":
        start = start * scheduler.init_noise_sigma
    truth = solve_finely(target, scheduler.path, start)
    x = start
    for i, t in enumerate(scheduler.timesteps):
        s = min(scheduler._moves[i].s, 1e8)
        scale = scheduler.path.alpha(s)
        picture = target.picture(x / scale, s)
        eps = (x - scale * picture) / scheduler.path.sigma(s)
        if path == "edm":
            skip, out = 0.25 / (s * s + 0.25), s * 0.5 / math.hypot(s, 0.5)
            scaled = scheduler.scale_model_input(x, t)
            torch.testing.assert_close(scaled, x / math.hypot(s, 0.5))
            eps = (picture - skip * x) / out
        output = eps - picture if path == "flow" else eps
        x = scheduler.step(output, t, x).prev_sample
    assert relative_errors(x, truth).median() < 2e-3


def test_float_times_leave_no_floor() -> None:
    """diffusers' UniPC rounds its times to integers and stays at 1e-3 where ours falls on."""
    target, scheduler = mixture("ring"), made(100, **FLOW, preset="unipc")
    start = torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = solve_finely(target, scheduler.path, start)
    theirs = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    theirs.set_timesteps(100)
    medians = []
    for each in (scheduler, theirs):
        network, x = Network(target, scheduler.path, "flow_prediction"), start
        for t in each.timesteps:
            x = each.step(network(x, float(t)), t, x).prev_sample
        medians.append(float(relative_errors(x.double(), truth).median()))
    assert medians[0] < 1e-3 and medians[0] < medians[1]


def test_noise_correction_keeps_the_start_as_the_noise() -> None:
    """Kohler et al.: x' = alpha' x0 + sigma' x_T, whatever the kernel."""
    for preset in ("ddim", "deis", "ab2"):
        scheduler = made(4, **STABLE_DIFFUSION, preset=preset, noise_correction=True)
        path, x, eps = scheduler.path, sample(), torch.tanh(sample())
        s, to = scheduler._nodes[0], scheduler._nodes[1]
        picture = (x - path.sigma(s) * eps) / path.alpha(s)
        expected = path.alpha(to) * picture + path.sigma(to) * x
        found = scheduler.step(eps, scheduler.timesteps[0], x).prev_sample
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


# As part of a pipeline.


def test_two_runs_and_a_copy_share_no_history() -> None:
    scheduler = made(6, **FLOW)
    expected = walk(scheduler, sample())
    scheduler.set_timesteps(6)
    half = sample()
    for t in scheduler.timesteps[:3]:
        half = scheduler.step(torch.tanh(half) + 1e-4 * t, t, half).prev_sample
    copied = copy.deepcopy(scheduler)
    scheduler.set_timesteps(6)
    assert torch.equal(walk(scheduler, sample()), expected)
    for t in copied.timesteps[3:]:
        half = copied.step(torch.tanh(half) + 1e-4 * t, t, half).prev_sample
    assert torch.equal(half, expected)


def test_a_run_that_begins_later_has_no_history() -> None:
    scheduler = made(6, **FLOW)
    scheduler.set_begin_index(2)
    fresh = made(**FLOW)
    fresh.set_timesteps(timesteps=scheduler.timesteps[2:].tolist())
    x = y = sample()
    for t, u in zip(scheduler.timesteps[2:], fresh.timesteps, strict=True):
        x = scheduler.step(torch.tanh(x), t, x).prev_sample
        y = fresh.step(torch.tanh(y), u, y).prev_sample
    torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def test_half_precision_in_is_half_precision_out() -> None:
    scheduler = made(5, **FLOW, preset="dpm++2m")
    wide = walk(scheduler, sample())
    scheduler.set_timesteps(5)
    x = sample().to(torch.bfloat16)
    for t in scheduler.timesteps:
        x = scheduler.step((torch.tanh(x.float()) + 1e-4 * t).to(x.dtype), t, x).prev_sample
    assert x.dtype == torch.bfloat16
    torch.testing.assert_close(x.float(), wide, rtol=0, atol=0.05)


@pytest.mark.parametrize("family", ["flux", "sdxl", pytest.param("wan", marks=pytest.mark.slow)])
def test_pipelines_run_with_it_as_their_own_scheduler(family: str) -> None:
    tiny = tiny_pipeline(family)
    config = dict(tiny.pipe.scheduler.config)
    is_flow = "shift" in config
    if is_flow:
        config |= FLOW | {"use_flow_sigmas": True}
    tiny.pipe.scheduler = ExponentialAdamsScheduler.from_config(config)
    found = run(tiny, steps=5)
    assert torch.isfinite(found).all()
    assert torch.equal(run(tiny, steps=5), found)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=5), st.booleans())
def test_a_sum_is_the_same_whichever_way_it_is_taken(weights: list[float], whole: bool) -> None:
    """A chain of means where weights sum to one, else a scaled copy and additions."""
    if whole:
        weights = [1 - sum(weights), *weights]
    generator = torch.Generator().manual_seed(0)
    terms = [torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in weights]
    kept = [each.clone() for each in terms]
    found = combined(weights[0], terms[0], weights[1:], terms[1:])
    wanted = sum((w * t for w, t in zip(weights, terms, strict=True)), torch.zeros(2, 3))
    torch.testing.assert_close(found, torch.as_tensor(wanted), rtol=0, atol=1e-9, check_dtype=False)
    assert all(torch.equal(a, b) for a, b in zip(terms, kept, strict=True))


def test_a_corrected_solver_goes_on_from_what_it_is_given() -> None:
    """Inpainting changes the state between two steps; the corrector moves that, not its own."""
    changed, plain = (made(4, **FLOW, preset="exact2") for _ in range(2))
    x, output = sample(), torch.tanh(sample())
    ends = []
    for scheduler, shift in ((plain, 0.0), (changed, 0.5)):
        y = scheduler.step(output, scheduler.timesteps[0], x).prev_sample + shift
        ends.append(scheduler.step(output, scheduler.timesteps[1], y).prev_sample)
    assert float((ends[1] - ends[0]).abs().min()) > 0.1
