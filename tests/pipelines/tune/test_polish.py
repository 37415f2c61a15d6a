"""Polishing schedules: it starts from the plan, tries none twice and never returns a worse one."""

from typing import Any

import pytest

from skipstep.caching.gates.schedule import ScheduleGate
from skipstep.caching.product import Cache
from skipstep.pipelines.tune.plan import instrument
from skipstep.pipelines.tune.polish import polish
from skipstep.pipelines.tune.trial import Outcome, Trier
from skipstep.plugins.errors import PluginError
from skipstep.testing.families import tiny_pipeline
from skipstep.testing.tiny import Tiny

pytest.importorskip("optuna")

STEPS = 6


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_pipeline("pixart")


def steps_of(cache: Cache) -> tuple[int, ...]:
    assert isinstance(cache.gate, ScheduleGate)
    return cache.gate.schedule.compute


def test_evolution_finds_the_front_of_a_toy_and_starts_from_the_plan(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = instrument(tiny.pipe, ["a"], steps=STEPS, **tiny.call)
    damage = {1: 5.0, 2: 0.1, 3: 4.0, 4: 0.2, 5: 3.0}
    seen: list[tuple[int, ...]] = []

    def run(self: Trier, plugins: Any, steps: int | None = None) -> Outcome:
        compute = steps_of(plugins[0])
        seen.append(compute)
        distance = sum(lost for step, lost in damage.items() if step not in compute)
        return Outcome(len(compute) / STEPS, 0.0, 0.0, distance, 1.0)

    monkeypatch.setattr(Trier, "run", run)
    polished = polish(tiny.pipe, found, 4, ["a"], trials=32, population=12, **tiny.call)
    assert seen[0] == steps_of(found.cache(4)) and len(seen) == len(set(seen)) <= 32
    best = {len(steps_of(cache)): steps_of(cache) for cache, _ in polished.front}
    assert best[3] == (0, 1, 3) and best[4] == (0, 1, 3, 5)
    assert steps_of(polished.best[0]) == (0, 1, 3, 5)


def test_on_a_pipeline_it_is_no_worse_than_the_plan_and_leaves_it_as_it_was(tiny: Tiny) -> None:
    found = instrument(tiny.pipe, ["a"], steps=STEPS, **tiny.call)
    tiny.pipe.enable_plugin("fora", interval=2)
    polished = polish(tiny.pipe, found, 3, ["a", "b"], trials=4, population=4, **tiny.call)
    tiny.pipe.disable_plugin("fora")
    plan, best = polished.tried[0][1], polished.best[1]
    assert best.distance <= plan.distance and best.work <= plan.work
    assert len(polished.tried) == 4


def test_mistakes_are_named(tiny: Tiny) -> None:
    found = instrument(tiny.pipe, ["a"], steps=STEPS, **tiny.call)
    with pytest.raises(PluginError, match="0 prompts is not allowed"):
        polish(tiny.pipe, found, 3, [])
