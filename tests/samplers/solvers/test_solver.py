"""The plugin "solver": the pipeline's own path, for the run only."""

from typing import Any

import diffusers
import pytest
import torch

from skipstep.plugins.errors import Incompatible
from skipstep.samplers.solvers.solver import Solver, path_config
from skipstep.testing import run, tiny_pipeline


@pytest.mark.parametrize(
    "family",
    ["flux", "sdxl", "pixart", *(pytest.param(f, marks=pytest.mark.slow) for f in ("sd3", "wan"))],
)
def test_it_runs_and_leaves_no_trace(family: str) -> None:
    tiny = tiny_pipeline(family)
    own, plain = tiny.pipe.scheduler, run(tiny)
    seen = []

    def look(pipe: Any, *_: Any) -> dict[str, Any]:
        seen.append(pipe.scheduler)
        return {}

    tiny.pipe.enable_plugin("solver", preset="dpm++2m", spacing="log_shift")
    extra: dict[str, Any] = {"callback_on_step_end": look} if family != "pixart" else {}
    changed = run(tiny, **extra)
    assert torch.isfinite(changed).all() and not torch.equal(changed, plain)
    assert {type(each).__name__ for each in seen} <= {"ExponentialAdamsScheduler"}
    assert tiny.pipe.scheduler is own
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny), plain)


def test_ddim_is_the_pipelines_own_euler_where_both_ask_at_the_same_times() -> None:
    tiny = tiny_pipeline("sd3")
    sigmas = [1.0, 0.8, 0.5, 0.25]
    plain = run(tiny, sigmas=sigmas)
    tiny.pipe.enable_plugin("solver", preset="ddim")
    torch.testing.assert_close(run(tiny, sigmas=sigmas), plain, rtol=0, atol=1e-4)


def test_the_path_is_the_pipelines_own() -> None:
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    assert path_config(flow)["shift"] == 3.0 and path_config(flow)["use_dynamic_shifting"]
    dpm = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    assert path_config(dpm)["shift"] == 5.0
    edm = diffusers.EDMEulerScheduler(sigma_max=60.0)
    assert Solver().build(edm).path.most == 60.0
    betas = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_end=0.012)
    built = Solver().build(betas)
    torch.testing.assert_close(built.alphas_cumprod, betas.alphas_cumprod, rtol=1e-5, atol=1e-7)
    odd = diffusers.CogVideoXDDIMScheduler(snr_shift_scale=3.0)
    built = Solver().build(odd)
    torch.testing.assert_close(
        built.alphas_cumprod, odd.alphas_cumprod.float(), rtol=1e-3, atol=1e-6
    )


def test_a_shift_without_a_flow_is_refused() -> None:
    tiny = tiny_pipeline("sdxl")
    with pytest.raises(Incompatible, match="shift=3 moves flow time and this pipeline has betas"):
        tiny.pipe.enable_plugin("solver", shift=3.0)


def test_a_path_that_is_none_of_the_three_is_refused() -> None:
    with pytest.raises(ValueError, match="SCMScheduler has neither betas nor a flow"):
        path_config(diffusers.SCMScheduler())
