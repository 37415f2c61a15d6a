"""Plans of modules: they run and count as written, and are refused where they do not fit."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from skipstep.caching.ecad import ECAD
from skipstep.caching.spans.planned import ModulePlan, whole_plan
from skipstep.plugins.errors import Incompatible, PluginError
from skipstep.plugins.fingerprint import fingerprint
from skipstep.plugins.profile import profile
from skipstep.testing import run, tiny_pipeline
from skipstep.testing.presets import lively
from tests.test_oracles import enabled, exchanged

STEPS = 6


def test_a_plan_equals_modules_exchanged_by_hand_and_counts_what_it_says() -> None:
    tiny = tiny_pipeline("pixart")
    plan = lively("ecad", tiny, STEPS).plan  # type: ignore[attr-defined]
    assert plan.components == ("attention", "cross_attention", "feed_forward")
    step, ran = [-1], [0]

    def count(original: Any, *args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        return original(*args, **kwargs)

    def module(component: Any, block: int) -> Any:
        kept: list[Tensor] = []

        def reference(original: Any, *args: Any, **kwargs: Any) -> Tensor:
            if plan.compute[step[0]][plan.components.index(component)][block] == "1":
                ran[0] += 1
                kept[:] = [original(*args, **kwargs)]
            return kept[0]

        return reference

    with contextlib.ExitStack() as stack:
        stack.enter_context(exchanged(tiny.pipe.transformer, count))
        for number, block in enumerate(tiny.pipe.transformer.transformer_blocks):
            for component, child in zip(
                plan.components, (block.attn1, block.attn2, block.ff), strict=True
            ):
                stack.enter_context(exchanged(child, module(component, number)))
        expected = run(tiny, steps=STEPS, batch=2)
    with enabled(tiny, ECAD(plan=plan)) as handle:
        assert torch.equal(run(tiny, steps=STEPS, batch=2), expected)
        report = handle.report()
    share = ran[0] / (STEPS * plan.blocks * 3)
    assert report.fraction == pytest.approx(share) == pytest.approx(plan.share)


@pytest.mark.parametrize("family", ["flux", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_plan_of_ones_is_the_plain_pipeline_to_the_bit(family: str) -> None:
    tiny = tiny_pipeline(family)
    plain = run(tiny, steps=3)
    whole = whole_plan(profile(tiny.pipe).denoisers[0], 3)
    with enabled(tiny, ECAD(plan=whole)) as handle:
        assert torch.equal(run(tiny, steps=3), plain)
        assert handle.report().fraction == 1


def test_what_it_was_not_made_for_is_refused_in_words(tmp_path: Path) -> None:
    tiny = tiny_pipeline("pixart")
    whole = whole_plan(profile(tiny.pipe).denoisers[0], STEPS)
    assert "skipstep.evolve_plan(" in (ECAD().why_not(None) or "")
    with pytest.raises(Incompatible, match="ecad has no plan"):
        tiny.pipe.enable_plugin("ecad")
    fewer = replace(whole, compute=tuple(tuple(b[1:] for b in row) for row in whole.compute))
    with pytest.raises(Incompatible, match="the plan is for 3 blocks and .* has 4"):
        tiny.pipe.enable_plugin(ECAD(plan=fewer))
    with enabled(tiny, ECAD(plan=whole)), pytest.raises(ValueError, match="is for 6 steps and"):
        run(tiny, steps=4)
    with enabled(tiny, ECAD(plan=whole, on_mismatch="warn")):
        run(tiny, steps=4)
    made_for = fingerprint(tiny.pipe) | {"scheduler": "EulerDiscreteScheduler 0"}
    path = tmp_path / "plan.json"
    replace(whole, fingerprint=made_for).save(path)
    with (
        enabled(tiny, ECAD(plan=str(path))),  # type: ignore[arg-type]
        pytest.raises(Incompatible, match="ecad: .*scheduler: made for"),
    ):
        run(tiny, steps=STEPS)
    gates: dict[str, Any] = {
        "gate": "easycache",
        "span": {"type": "planned_modules", "plan": whole},
    }
    with pytest.raises(PluginError, match="use gate 'interval', not 'easycache'"):
        tiny.pipe.enable_plugin("cache", **gates)


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        ((("10",),), "step 0 must compute everything"),
        ((("11",), ("1",)), "unlike length"),
        ((("11",), ("11", "11")), "step 1 has 2 strings for 1 components"),
        ((("11",), ("1x",)), "should match pattern"),
        ((), "at least 1"),
    ],
)
def test_what_is_no_plan_is_refused(compute: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModulePlan(components=("attention",), compute=compute)


def test_a_component_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="name one twice"):
        ModulePlan(components=("attention", "attention"), compute=(("1", "1"),))
