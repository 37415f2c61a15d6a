"""Caches under samplers that step twice from one time, or add noise at every step."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from skipstep.caching.abcache import ABCache
from skipstep.caching.easycache import EasyCache
from skipstep.plugins.lifecycle import manager_for
from skipstep.plugins.run import Run
from skipstep.testing import run, tiny_pipeline
from skipstep.testing.tiny import Tiny
from tests.test_oracles import enabled, exchanged, polynomial_at

TWICE = ["HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]
NOISY = ["EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]


def with_scheduler(name: str) -> Tiny:
    """Build a tiny SDXL with another scheduler."""
    tiny = tiny_pipeline("sdxl")
    tiny.pipe.scheduler = getattr(diffusers, name).from_config(tiny.pipe.scheduler.config)
    return tiny


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HeunDiscreteScheduler", [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]),
        ("KDPM2AncestralDiscreteScheduler", None),
        ("KDPM2DiscreteScheduler", [(i, 0) for i in range(7)]),
        ("EulerDiscreteScheduler", [(i, 0) for i in range(4)]),
    ],
)
def test_a_time_that_is_stepped_from_twice_is_one_time(name: str, expected: Any) -> None:
    tiny = with_scheduler(name)
    tiny.pipe.scheduler.set_timesteps(4)
    made = Run(manager_for(tiny.pipe), tiny.pipe, {})
    found = [made.time_of(i) for i in range(made.count)]
    times = [float(t) for t in tiny.pipe.scheduler.timesteps]
    distinct = list(dict.fromkeys(times))
    assert [distinct[time] for time, _, _ in found] == times
    assert {count for _, count, _ in found} == {len(distinct)}
    assert expected is None or [(time, visit) for time, _, visit in found] == expected


@pytest.mark.parametrize("name", TWICE)
def test_each_visit_is_forecast_from_its_own_kind_at_the_true_times(name: str) -> None:
    """Straight lines through two values of the same visit, two true steps apart."""
    tiny = with_scheduler(name)
    steps = 8
    tiny.pipe.scheduler.set_timesteps(steps)
    made = Run(manager_for(tiny.pipe), tiny.pipe, {})
    when = [made.time_of(i) for i in range(made.count)]
    count = when[0][1]
    computes = {0, 1, 2, count - 1} | set(range(2, count, 2))
    call, kept = [-1], dict[int, dict[int, Tensor]]()

    def reference(original: Any, *args: Any, **kwargs: Any) -> Any:
        call[0] += 1
        time, _, visit = when[call[0]]
        known = kept.setdefault(visit, {})
        value = original(*args, **kwargs)[0]
        if time in computes or not known:
            known[time] = value
        else:
            times = sorted(known)[-2:]
            value = polynomial_at(times, [known[t] for t in times], time).float()
        return (value,)

    with exchanged(tiny.pipe.unet, reference):
        expected = run(tiny, steps=steps)
    with enabled(tiny, ABCache(order=2, interval=2, warmup_steps=3, final_steps=1)) as handle:
        found = run(tiny, steps=steps)
        assert handle.report().computed < handle.report().total
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("HeunDiscreteScheduler", "cfgcache"),
        ("KDPM2AncestralDiscreteScheduler", "easycache"),
        ("EulerAncestralDiscreteScheduler", "deepcache"),
    ],
)
def test_a_gate_that_never_skips_and_a_second_run_change_nothing(name: str, preset: str) -> None:
    tiny = with_scheduler(name)
    expected = run(tiny, steps=6)
    never = {"threshold": 0.0} if preset == "easycache" else {"interval": 1}
    tiny.pipe.enable_plugin(preset, **never)
    assert torch.equal(run(tiny, steps=6), expected)
    lively = {"threshold": 1.0} if preset == "easycache" else {"interval": 2}
    tiny.pipe.enable_plugin(preset, warmup_steps=2, **lively)
    first = run(tiny, steps=6)
    assert tiny.pipe.plugin_report().fraction < 1
    assert torch.equal(run(tiny, steps=6), first)


@pytest.mark.parametrize("name", NOISY)
def test_fresh_noise_in_the_input_is_said(name: str) -> None:
    tiny = with_scheduler(name)
    with enabled(tiny, EasyCache(threshold=1.0, warmup_steps=2)) as handle:
        run(tiny, steps=6)
        assert "adds noise at every step" in " ".join(handle.report().notes)
    tiny = with_scheduler("HeunDiscreteScheduler")
    with enabled(tiny, EasyCache(threshold=1.0, warmup_steps=2)) as handle:
        run(tiny, steps=6)
        assert "adds noise" not in " ".join(handle.report().notes)
