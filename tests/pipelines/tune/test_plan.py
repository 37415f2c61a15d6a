"""Planning schedules on a pipeline: what is planned runs as planned, where it was made for."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import skipstep
from skipstep.caching.forecasters.fitted import Fitted
from skipstep.caching.gates.schedule import Schedule, ScheduleGate
from skipstep.caching.product import Cache
from skipstep.caching.schedule_plan import path_error
from skipstep.pipelines.tune.plan import Trajectories, instrument, plan_cache, schedule_cache
from skipstep.plugins import recipe
from skipstep.plugins.errors import Incompatible, PluginError
from skipstep.testing.families import run, tiny_pipeline
from skipstep.testing.tiny import Tiny

STEPS = 8
PROMPTS = ["a red fox", "two birds"]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_pipeline("pixart")


@pytest.fixture(scope="module")
def found(tiny: Tiny) -> Trajectories:
    return instrument(tiny.pipe, PROMPTS, steps=STEPS, features=("residual", "output"), **tiny.call)


@pytest.fixture(autouse=True)
def clean(tiny: Tiny) -> Iterator[None]:
    yield
    tiny.pipe.disable_plugins()


def made(tiny: Tiny, **call: Any) -> torch.Tensor:
    result = tiny.pipe(
        prompt=PROMPTS[0],
        **{**tiny.call, "num_inference_steps": STEPS, **call},
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    return torch.from_numpy(result.images)


def test_both_features_of_every_prompt_and_guidance_branch_are_recorded(
    found: Trajectories,
) -> None:
    assert {name: tuple(grams.shape) for name, grams in found.grams.items()} == {
        "residual": (4, STEPS, STEPS),
        "output": (4, STEPS, STEPS),
    }
    assert found.fingerprint["steps"] == STEPS and found.fingerprint["size"] == [32, 32]
    assert found.fingerprint["guidance"] == 5.0


@pytest.mark.parametrize("span", ["residual", "output", "modules"])
def test_the_planned_steps_are_the_computed_ones(
    tiny: Tiny, found: Trajectories, span: str
) -> None:
    cache = found.cache(4, "lagrange", span)
    assert isinstance(cache.gate, ScheduleGate)
    with tiny.pipe.plugins(cache):
        made(tiny)
        report = tiny.pipe.plugin_report()
    computed = tuple(call.step for call in report.calls if call.computed)
    assert computed == cache.gate.schedule.compute and len(computed) <= 4
    assert not report.notes


def test_a_plan_for_all_steps_changes_nothing(tiny: Tiny, found: Trajectories) -> None:
    plain = made(tiny)
    with tiny.pipe.plugins(found.cache(STEPS)):
        assert torch.equal(made(tiny), plain)


def test_planning_errs_less_than_an_even_rhythm(found: Trajectories) -> None:
    cache = found.cache(4)
    assert isinstance(cache.gate, ScheduleGate)
    planned, even = (
        path_error(found.grams["residual"], steps, cache.forecaster, objective="squares")
        for steps in (cache.gate.schedule.compute, (0, 2, 4, 6))
    )
    assert planned <= even


def test_what_was_switched_on_stays_out_of_the_recording_and_comes_back(
    tiny: Tiny, found: Trajectories
) -> None:
    tiny.pipe.enable_plugin("fora", interval=2)
    again = instrument(tiny.pipe, PROMPTS, steps=STEPS, **tiny.call)
    torch.testing.assert_close(again.grams["residual"], found.grams["residual"])
    made(tiny)
    assert tiny.pipe.plugin_report().fraction < 1


def test_a_saved_plan_is_enabled_by_its_path_and_in_a_recipe(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    cache = plan_cache(tiny.pipe, PROMPTS, steps=STEPS, path=path, forecaster="fitted", **tiny.call)
    assert isinstance(cache.gate, ScheduleGate) and isinstance(cache.forecaster, Fitted)
    saved, weighed = Schedule.load(path), cache.forecaster.schedule
    assert replace(saved, weights=()) == cache.gate.schedule
    assert weighed is not None and weighed.weights == saved.weights != ()
    gate = {"type": "schedule", "schedule": str(path)}
    forecaster = {"type": "fitted", "schedule": str(path)}
    options = {"warmup_steps": 1, "final_steps": 0, "max_skips": None, "forecaster": forecaster}
    tiny.pipe.enable_plugin("cache", gate=gate, **options)
    with_path = made(tiny)
    recipe.save(tmp_path / "recipe.yaml", [cache])
    tiny.pipe.disable_plugins()
    tiny.pipe.load_plugins(tmp_path / "recipe.yaml")
    assert torch.equal(made(tiny), with_path)


def other(found: Trajectories, **change: Any) -> Schedule:
    """Return a plan that says it was made for something else."""
    return Schedule(steps=STEPS, compute=(0, 1, 4), fingerprint={**found.fingerprint, **change})


@pytest.mark.parametrize(
    ("entry", "value"),
    [("scheduler", "Other 123"), ("denoisers", ["Other 1"]), ("adapters", ["style"])],
)
def test_another_model_scheduler_or_lora_is_refused_or_told(
    tiny: Tiny, found: Trajectories, entry: str, value: Any
) -> None:
    strict = schedule_cache(other(found, **{entry: value}), "lagrange", "residual")
    with (
        tiny.pipe.plugins(strict),
        pytest.raises(Incompatible, match=rf"(?s){entry}: made for .*plan_cache.*on_mismatch"),
    ):
        made(tiny)
    gate = ScheduleGate(schedule=other(found, **{entry: value}), on_mismatch="warn")
    with tiny.pipe.plugins(Cache(gate=gate, warmup_steps=1)):
        made(tiny)
        assert any(f"{entry}: made for" in note for note in tiny.pipe.plugin_report().notes)


def test_another_size_or_guidance_is_told_and_another_version_is_not(
    tiny: Tiny, found: Trajectories
) -> None:
    plan = schedule_cache(
        other(found, guidance=9.0, size=[64, 64], torch="0.1"), "lagrange", "residual"
    )
    with tiny.pipe.plugins(plan):
        made(tiny)
        notes = " ".join(tiny.pipe.plugin_report().notes)
    assert "guidance: made for 9.0, running 5.0" in notes
    assert "size: made for [64, 64], running [32, 32]" in notes and "torch" not in notes


def test_a_pipeline_without_blocks_is_planned_on_its_output() -> None:
    unet = tiny_pipeline("sd15")
    call = dict(unet.call)
    recorded = instrument(unet.pipe, ["a"], steps=4, features=("residual", "output"), **call)
    assert list(recorded.grams) == ["output"]
    with pytest.raises(Incompatible, match="is a UNet"):
        instrument(unet.pipe, ["a"], steps=4, features=("residual",), **call)
    with unet.pipe.plugins(recorded.cache(2, "reuse", "output")):
        run(unet, steps=4)
        assert unet.pipe.plugin_report().fraction == 0.5


def test_mistakes_are_named(tiny: Tiny, found: Trajectories) -> None:
    with pytest.raises(PluginError, match="no prompts given"):
        instrument(tiny.pipe, [])
    with pytest.raises(PluginError, match="steps=1 is not allowed"):
        instrument(tiny.pipe, PROMPTS, steps=1)
    with pytest.raises(PluginError, match="name residual or output"):
        instrument(tiny.pipe, PROMPTS, features=("input",))
    with pytest.raises(PluginError, match="fraction=1.5 is not allowed"):
        skipstep.plan_cache(tiny.pipe, PROMPTS, fraction=1.5)
    with pytest.raises(ValueError, match="count=9 is not allowed"):
        found.cache(9)
