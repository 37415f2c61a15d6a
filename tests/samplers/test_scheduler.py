"""Another scheduler for the run only: what carries over, and what is refused in words."""

from typing import Any

import pytest
import torch

from skipstep.plugins.errors import BadOption, Incompatible
from skipstep.testing import run, tiny_pipeline


@pytest.mark.parametrize("family", ["sd3", "wan", "flux"])
def test_the_default_runs_on_a_flow_and_carries_the_shift_over(family: str) -> None:
    tiny = tiny_pipeline(family)
    own, plain = tiny.pipe.scheduler, run(tiny)
    seen = []

    def look(pipe: Any, *_: Any) -> dict[str, Any]:
        seen.append(pipe.scheduler)
        return {}

    tiny.pipe.enable_plugin("scheduler")
    changed = run(tiny, callback_on_step_end=look)
    assert torch.isfinite(changed).all() and not torch.equal(changed, plain)
    assert {type(each).__name__ for each in seen} == {"UniPCMultistepScheduler"}
    assert seen[0].config.flow_shift == own.config.shift
    assert seen[0].config.prediction_type == "flow_prediction"
    assert tiny.pipe.scheduler is own
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny), plain)


def test_a_scheduler_with_betas_keeps_the_pipelines_own_betas() -> None:
    tiny = tiny_pipeline("sdxl")
    own = tiny.pipe.scheduler
    tiny.pipe.enable_plugin("scheduler", scheduler="EulerDiscreteScheduler")
    same = run(tiny)
    tiny.pipe.disable_plugins()
    assert type(own).__name__ == "EulerDiscreteScheduler"
    assert torch.equal(same, run(tiny))


@pytest.mark.parametrize(
    ("family", "scheduler", "message"),
    [
        ("flux", "DDIMScheduler", "knows no flow sigmas"),
        ("sdxl", "FlowMatchHeunDiscreteScheduler", "EulerDiscreteScheduler does not"),
    ],
)
def test_flows_and_betas_are_not_mixed(family: str, scheduler: str, message: str) -> None:
    tiny = tiny_pipeline(family)
    own = tiny.pipe.scheduler
    with pytest.raises(Incompatible, match=message):
        tiny.pipe.enable_plugin("scheduler", scheduler=scheduler)
    assert tiny.pipe.scheduler is own


def test_an_unknown_scheduler_is_refused_by_name() -> None:
    with pytest.raises(BadOption, match="'UniPC' is not a scheduler class of diffusers"):
        tiny_pipeline("sdxl").pipe.enable_plugin("scheduler", scheduler="UniPC")
