"""Evolving plans: the known front of a toy, real runs of a tiny pipeline, and mistakes by name."""

from pathlib import Path
from typing import Any

import pytest

from skipstep.caching.ecad import ECAD
from skipstep.caching.spans.planned import whole_plan
from skipstep.pipelines.tune.ecad import Evolved, evolve_plan, first_generation, genome_of, plan_of
from skipstep.pipelines.tune.trial import Outcome, Trier
from skipstep.plugins.errors import PluginError
from skipstep.plugins.profile import profile
from skipstep.testing.families import run, tiny_pipeline
from skipstep.testing.tiny import Tiny

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_pipeline("pixart")


def test_a_genome_is_the_plan_behind_its_first_step(tiny: Tiny) -> None:
    whole = whole_plan(profile(tiny.pipe).denoisers[0], 4)
    assert whole.components == ("attention", "cross_attention", "feed_forward")
    genomes = first_generation(whole, 20, seed=0)
    assert len(genomes) == len(set(genomes)) >= 15
    for genome in genomes:
        plan = plan_of(genome, whole)
        assert genome_of(plan) == genome and plan.compute[0] == whole.compute[0]
        assert plan.computes(2, "cross_attention", 3) == genome[12 + 4 + 3]


def test_evolution_finds_the_front_of_a_toy_with_known_damage(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeating a feed-forward does most harm, cross-attention nearly none, front blocks more."""
    harm = {"attention": 3.0, "cross_attention": 0.01, "feed_forward": 30.0}

    def toy(self: Trier, plugins: Any, steps: int | None = None) -> Outcome:
        plan = plugins[0].plan
        distance = sum(
            harm[component] * (1 + 0.1 * (plan.blocks - block))
            for step in range(plan.steps)
            for component in plan.components
            for block in range(plan.blocks)
            if not plan.computes(step, component, block)
        )
        return Outcome(plan.share, 0.0, 0.0, distance, 1.0)

    monkeypatch.setattr(Trier, "run", toy)
    found = evolve_plan(tiny.pipe, ["a"], steps=2, trials=300, population=24, **tiny.call)
    front = {round(12 * (2 * outcome.work - 1)): plugin.plan for plugin, outcome in found.front}
    works = [outcome.work for _, outcome in found.front]
    distances = [outcome.distance for _, outcome in found.front]
    assert works == sorted(works) and distances == sorted(distances, reverse=True)
    for kept, plan in front.items():
        assert plan is not None
        ff, attention = plan.compute[1][2], plan.compute[1][0]
        if kept >= 4:
            assert ff == "1111", "feed-forwards go last"
        if kept >= 8:
            assert attention == "1111", "cross-attention goes first"
    assert {4, 8} <= set(front), "the corners of the front are found"


def test_on_a_pipeline_it_saves_a_plan_that_runs(tiny: Tiny, tmp_path: Path) -> None:
    tiny.pipe.enable_plugin("fora", interval=2)
    path = tmp_path / "plan.json"
    found = evolve_plan(
        tiny.pipe, ["a"], steps=4, trials=7, population=4, fraction=0.8, path=path, **tiny.call
    )
    tiny.pipe.disable_plugin("fora")
    assert len(found.tried) == 7 and all(outcome.distance >= 0 for _, outcome in found.tried)
    best, outcome = found.best(0.8)
    with tiny.pipe.plugins(ECAD(plan=str(path))) as handles:  # type: ignore[arg-type]
        run(tiny, steps=4)
        report = tiny.pipe.plugin_report()
    assert handles and best.plan is not None
    assert report.flops_done / report.flops_full == pytest.approx(outcome.work)
    assert not [note for note in report.notes if "made for" in note]


def test_mistakes_are_named(tiny: Tiny) -> None:
    with pytest.raises(PluginError, match="evolve_plan: .* 0 prompts is not allowed"):
        evolve_plan(tiny.pipe, [])
    with pytest.raises(PluginError, match="steps=1 is not allowed"):
        evolve_plan(tiny.pipe, ["a"], steps=1)
    tried = [(ECAD(), Outcome(0.7, 30.0, 30.0, 0.1, 1.0))]
    with pytest.raises(PluginError, match="at most 50% of the work, the least is 70%"):
        Evolved(tried).best(0.5)
