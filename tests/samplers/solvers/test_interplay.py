"""Solvers beside caches: what composes, and what is refused."""

import pytest
import torch

from skipstep.pipelines.reference.load import load_reference
from skipstep.pipelines.reference.planned import STEPS, planned_cache
from skipstep.plugins.errors import Incompatible, PluginError
from skipstep.testing import run, tiny_pipeline


@pytest.mark.parametrize("cache", ["easycache", "taylorseer"])
def test_a_cache_that_never_skips_leaves_the_solvers_picture(cache: str) -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.enable_plugin("solver", preset="dpm++2m")
    alone = run(tiny, steps=5)
    never = {"threshold": 0.0} if cache == "easycache" else {"interval": 1}
    tiny.pipe.enable_plugin(cache, **never)
    assert torch.equal(run(tiny, steps=5), alone)
    lively = {"threshold": 5.0, "warmup_steps": 1} if cache == "easycache" else {"interval": 2}
    tiny.pipe.enable_plugin(cache, **lively)
    skipped = run(tiny, steps=8)
    assert tiny.pipe.plugin_report().fraction < 1
    assert torch.isfinite(skipped).all()
    tiny.pipe.disable_plugin(cache)
    assert torch.equal(run(tiny, steps=5), alone)


def test_two_samplers_do_not_combine() -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.enable_plugin("solver")
    with pytest.raises(Incompatible, match="the sampler plugin 'solver' is already active"):
        tiny.pipe.enable_plugin("scheduler")


def test_a_schedule_planned_for_the_pipelines_own_sampler_refuses_a_solver() -> None:
    pipe = load_reference()
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_plugin("solver")
    pipe.enable_plugin(planned_cache())
    with pytest.raises((PluginError, ValueError), match="scheduler: made for 'DPMSolverMultistep"):
        pipe("a pizza", num_inference_steps=STEPS, output_type="latent")
