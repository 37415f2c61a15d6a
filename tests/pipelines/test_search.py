"""`pipe.search`: searches on pipelines find better pictures and leave them as they were."""

from typing import Any

import numpy as np
import pytest
import torch

from skipstep.pipelines.search import PipelineSampler
from skipstep.plugins.errors import BadOption, Incompatible, PluginError
from skipstep.testing import run, tiny_pipeline


def brightness(pictures: list[Any], prompt: Any) -> list[float]:
    return [float(np.asarray(picture, dtype=np.float64).mean()) for picture in pictures]


def call_of(tiny: Any) -> dict[str, Any]:
    left_out = ("output_type", "generator", "latents", "num_inference_steps")
    found = {name: value for name, value in tiny.call.items() if name not in left_out}
    found.pop(tiny.prompt_argument, None)
    return found


@pytest.mark.parametrize("family", ["pixart", "flux"])
def test_a_walk_in_pieces_is_the_walk_in_one(family: str) -> None:
    """Order one has no history to lose, so entering at a node changes nothing."""
    tiny = tiny_pipeline(family)
    tiny.pipe.set_progress_bar_config(disable=True)
    own = tiny.pipe.scheduler
    sampler = PipelineSampler(tiny.pipe, "a fox", 4, preset="ddim", call=call_of(tiny))
    x = sampler.noise(2, torch.Generator().manual_seed(0))
    whole = sampler.walk(x, 0, 4, keep=(2,))
    second = sampler.walk(whole.states[2], 2, 4)
    torch.testing.assert_close(second.state, whole.state, rtol=1e-4, atol=1e-4)
    assert brightness(second.pictures, "") == pytest.approx(brightness(whole.pictures, ""), abs=0.5)
    assert sampler.evaluations == 1 + 2 * 4 + 2 * 2
    assert tiny.pipe.scheduler is own


@pytest.mark.parametrize("method", ["best", "resample", "evolve"])
def test_every_method_returns_its_best_first_and_leaves_the_pipeline_alone(method: str) -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.set_progress_bar_config(disable=True)
    plain, own = run(tiny), tiny.pipe.scheduler
    options = {} if method == "best" else {"schedule": (0.5,)}
    found, again = (
        tiny.pipe.search(
            "a fox",
            reward=brightness,
            method=method,
            population=3,
            steps=4,
            batch=2,
            call=call_of(tiny),
            **options,
        )
        for _ in range(2)
    )
    assert found.scores == sorted(found.scores, reverse=True) == again.scores
    assert found.score == pytest.approx(brightness(found.pictures[:1], "")[0])
    assert tiny.pipe.scheduler is own and torch.equal(run(tiny), plain)


def test_best_runs_beside_a_sampler_plugin_and_the_others_say_why_not() -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.set_progress_bar_config(disable=True)
    tiny.pipe.enable_plugin("solver")
    call = call_of(tiny)
    found = tiny.pipe.search(
        "a fox", reward=brightness, method="best", population=2, steps=3, call=call
    )
    assert len(found.pictures) == 2
    with pytest.raises(Incompatible, match="'solver' brings a scheduler of its own"):
        tiny.pipe.search("a fox", reward=brightness, method="evolve", call=call)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "bset"}, BadOption, "unknown method 'bset'. Methods: best, evolve, resample"),
        ({"population": 1}, BadOption, "greater than or equal to 2"),
        ({"call": {"latents": 1}}, BadOption, "latents cannot be passed on"),
        ({"method": "best", "reward": lambda p, t: [0.0]}, PluginError, r"\(1,\) for 8 pictures"),
        ({"method": "best", "reward": lambda p, t: [np.nan] * 8}, PluginError, "NaN or infinity"),
    ],
)
def test_mistakes_are_named(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.set_progress_bar_config(disable=True)
    given = {"reward": brightness, "steps": 2, "call": call_of(tiny), **arguments}
    with pytest.raises(error, match=message):
        tiny.pipe.search("a fox", **given)
