"""Tuning to a target: kept trials, honest prompts, the best recipe on, mistakes named."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from skipstep.pipelines.tune.arms import ArmSpace, describe
from skipstep.pipelines.tune.autotune import autotune, ranked, stored_tasks
from skipstep.pipelines.tune.plan import instrument
from skipstep.pipelines.tune.solvers import Solvers
from skipstep.pipelines.tune.trial import Outcome, Trier
from skipstep.pipelines.tune.tuning import Target, Trial, Tuning, draw
from skipstep.plugins.errors import PluginError
from skipstep.testing.families import tiny_pipeline
from skipstep.testing.tiny import Tiny

optuna = pytest.importorskip("optuna")

STEPS = 6
PROMPTS = ["a red fox", "two birds", "city"]


class Stopped(BaseException):
    """What ends a tuning from outside."""


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_pipeline("pixart")


@pytest.fixture(autouse=True)
def clean(tiny: Tiny) -> Iterator[None]:
    yield
    tiny.pipe.disable_plugins()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Any], int]]:
    """List the prompts and the number of plugins of every arm that runs."""
    seen: list[tuple[list[Any], int]] = []
    run = Trier.run

    def spy(self: Trier, plugins: Any, steps: int | None = None) -> Outcome:
        seen.append((list(self.prompts), len(plugins)))
        return run(self, plugins, steps)

    monkeypatch.setattr(Trier, "run", spy)
    return seen


def tune(tiny: Tiny, **options: Any) -> Tuning:
    given = {"steps": STEPS, "trials": 3, "target_speedup": 1.4, **tiny.call, **options}
    found: Tuning = tiny.pipe.autotune(PROMPTS, **given)
    return found


def test_a_stopped_tuning_goes_on_and_repeats_no_trial(
    tiny: Tiny, tried: list[tuple[list[Any], int]], tmp_path: Path
) -> None:
    store = tmp_path / "trials.db"

    def stop_at_the_second(done: int, total: int, what: str) -> None:
        if done == 1 and total == 3:
            raise Stopped

    with pytest.raises(Stopped):
        tune(tiny, store=store, progress=stop_at_the_second)
    assert len(tried) == 1
    tried.clear()
    names: list[str] = []
    found = tune(tiny, store=store, progress=lambda done, total, what: names.append(what))
    on_tuned = [prompts for prompts, _ in tried if prompts == PROMPTS[:2]]
    assert len(found.trials) == 3 and len(on_tuned) == 2 and len(set(names)) == 2
    assert not any("recording" in name for name in names), "the recorded runs are kept too"
    assert len({describe(trial.params) for trial in found.trials}) == 3
    tried.clear()
    again = tune(tiny, store=store)
    assert [t.to_dict() for t in again.trials] == [t.to_dict() for t in found.trials]
    assert all(prompts == PROMPTS[2:] for prompts, _ in tried), "only the judgement runs again"


def test_another_target_reads_the_trials_and_another_tuning_learns_from_them(
    tiny: Tiny, tried: list[tuple[list[Any], int]], tmp_path: Path
) -> None:
    store = tmp_path / "trials.db"
    first = tune(tiny, store=store)
    tried.clear()
    call = {**tiny.call, "steps": STEPS, "trials": 3, "store": store}
    again = tiny.pipe.autotune(PROMPTS, min_psnr=5.0, **call)
    assert [t.params for t in again.trials] == [t.params for t in first.trials]
    assert all(prompts == PROMPTS[2:] for prompts, _ in tried)
    storage = optuna.storages.RDBStorage(f"sqlite:///{store}")
    new = optuna.create_study(storage=storage, study_name="new", directions=["minimize"] * 2)
    (task,) = stored_tasks(new)
    assert task.features["steps"] == pytest.approx(math.log2(STEPS))
    seen = [(each.params, each.work, each.distance) for each in task.trials]
    assert seen == [(t.params, t.outcome.work, t.outcome.distance) for t in first.trials]
    assert all((s.error is not None) == (s.params["method"] == "planned") for s in task.trials)


def test_the_winner_is_judged_on_prompts_no_trial_saw_and_then_enabled(
    tiny: Tiny, tried: list[tuple[list[Any], int]], tmp_path: Path
) -> None:
    tiny.pipe.enable_plugin("fora", interval=2)
    found = tune(tiny)
    assert [prompts for prompts, _ in tried[:3]] == [PROMPTS[:2]] * 3
    assert {tuple(prompts) for prompts, _ in tried[3:]} == {(PROMPTS[2],)}
    assert found.prompts == PROMPTS[:2] and found.held_out_prompts == PROMPTS[2:]
    assert found.target.is_met(found.held_out, slack=0.05)
    assert found.plugins, "on this random model a cache wins"
    tiny.pipe(PROMPTS[0], **tiny.call, num_inference_steps=STEPS)
    report = tiny.pipe.plugin_report()
    assert report.flops_done / report.flops_full == pytest.approx(found.held_out.work)
    found.save_recipe(tmp_path / "recipe.yaml")
    tiny.pipe.disable_plugins()
    tiny.pipe.load_plugins(tmp_path / "recipe.yaml")
    tiny.pipe(PROMPTS[0], **tiny.call, num_inference_steps=STEPS)
    assert tiny.pipe.plugin_report().fraction == report.fraction


def test_what_is_found_is_written_as_json_and_drawn(tiny: Tiny, tmp_path: Path) -> None:
    found = tune(tiny, trials=2)
    read = json.loads(found.to_json(tmp_path / "a.json"))
    assert read == json.loads((tmp_path / "a.json").read_text())
    assert [t["number"] for t in read["trials"]] == [t.number for t in found.trials]
    assert read["held_out_prompts"] == PROMPTS[2:] and read["best"] == found.best.number
    found.save_picture(tmp_path / "front.png")
    with Image.open(tmp_path / "front.png") as picture:
        assert picture.size == (900, 560)
    for word in ("less work", "in wall time", "held-out", found.best.name):
        assert word in str(found)


def outcome(work: float, distance: float, psnr: float = 30.0) -> Outcome:
    return Outcome(work, psnr, psnr, distance, 1.0)


def trial(number: int, work: float, distance: float, method: str = "adaptive") -> Trial:
    params: dict[str, Any] = {"method": method, "preset": "x", "threshold": 0.1, "count": 9}
    params |= {"solver": "unipc", "rhythm": "every 2nd"}
    return Trial(number, params, outcome(work, distance, psnr=40 - 100 * distance))


TRIALS = [
    trial(0, 0.5, 0.10),
    trial(1, 0.4, 0.20, "fewer"),
    trial(2, 0.6, 0.15),
    trial(3, 0.3, 0.20),
    trial(4, 0.9, 0.01),
]


@pytest.mark.parametrize(
    ("target", "order"),
    [
        (Target("target_speedup", 2.0), [0, 1, 3]),
        (Target("max_feature_distance", 0.15), [0, 2, 4]),
        (Target("min_psnr", 25.0), [0, 2, 4]),
        (Target("target_speedup", 9.0), [3]),
        (Target("max_feature_distance", 0.001), [4]),
        (Target("min_psnr", 60.0), [4]),
    ],
)
def test_arms_that_meet_the_target_are_ranked_and_else_the_nearest_is_taken(
    target: Target, order: list[int]
) -> None:
    assert [each.number for each in ranked(TRIALS, target)] == order


def tuning(best: Trial, held: Outcome, plain: Outcome | None) -> Tuning:
    return Tuning("Pipe", Target("target_speedup", 2.0), 20, TRIALS, best, [], held, plain, 10, 2.0)


def test_the_front_is_what_nothing_beats_in_both() -> None:
    found = tuning(TRIALS[0], outcome(0.5, 0.1), None)
    assert [each.number for each in found.front] == [3, 0, 4]
    assert draw(found).size == (900, 560)


def test_the_outcome_says_when_fewer_steps_win_and_when_the_promise_is_broken() -> None:
    wins = tuning(TRIALS[1], outcome(0.45, 0.2), None)
    assert wins.is_plain and wins.run_steps == 9
    assert "Fewer plain steps win" in str(wins) and "num_inference_steps=9" in str(wins)
    cache = tuning(TRIALS[0], outcome(0.5, 0.1), outcome(0.5, 0.05))
    assert "10 plain steps would be as good or better" in str(cache) and cache.run_steps == 20
    solved = tuning(trial(7, 0.5, 0.1, "solver"), outcome(0.5, 0.1), outcome(0.5, 0.2))
    assert solved.run_steps == 9 and not solved.is_plain
    assert "A solver wins: call the pipeline with num_inference_steps=9. 10 plain" in str(solved)
    assert "9 steps of unipc, every 2nd computed" in str(solved)
    better = tuning(TRIALS[0], outcome(0.51, 0.1), outcome(0.5, 0.3))
    assert "10 plain steps would be worse" in str(better)
    assert "missed by less than 5 %" in str(better)
    assert "missed on the held-out prompts" in str(tuning(TRIALS[0], outcome(0.6, 0.1), None))


def test_the_first_arms_show_every_sort_before_any_twice(tiny: Tiny) -> None:
    found = instrument(tiny.pipe, PROMPTS[:1], steps=STEPS, **tiny.call)
    space = ArmSpace.of(tiny.pipe, found, Solvers(tiny.pipe, PROMPTS[:1], STEPS, 0, tiny.call))
    first = space.first(0.5)
    sorts = [(p["method"], p.get("span") or p.get("solver"), p.get("preset")) for p in first]
    kinds = set(sorts)
    assert set(sorts[: len(kinds)]) == kinds and len(first) > len(kinds)
    assert {"residual", "output", "modules"} == {s for m, s, _ in kinds if m == "planned"}
    assert {"unipc", "dpm++2m", "calibrated"} == {s for m, s, _ in kinds if m == "solver"}
    assert ("fewer", None, None) in kinds and ("adaptive", None, "easycache") in kinds
    assert all(p["count"] <= STEPS for p in first if "count" in p)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "0 targets given: give one of target_speedup"),
        ({"target_speedup": 2, "min_psnr": 30}, "2 targets given"),
        ({"target_speedup": 1.0}, "target_speedup=1.0 is not allowed: must be above 1"),
        ({"min_psnr": float("nan")}, "min_psnr=nan is not allowed"),
        ({"min_psnr": 30, "trials": 0}, "trials=0 is not allowed"),
        ({"min_psnr": 30, "steps": 2}, "steps=2 is not allowed"),
        ({"min_psnr": 30, "budget_minutes": 0}, "budget_minutes=0 is not allowed"),
        ({"min_psnr": 30, "generator": None}, "generator cannot be passed on"),
        ({"min_psnr": 30, "held_out": ["a red fox"]}, "to be tuned on and held out"),
        ({"min_psnr": 30, "store": "/no/such/folder/x.db"}, "there is no folder"),
    ],
)
def test_mistakes_are_named(tiny: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        autotune(tiny.pipe, PROMPTS, **options)


def test_options_that_neither_autotune_nor_the_pipeline_knows_are_refused(tiny: Tiny) -> None:
    with pytest.raises(PluginError, match="unknown option 'target_sped'"):
        autotune(tiny.pipe, PROMPTS, target_sped=2.0, target_speedup=2.0)


def test_one_prompt_and_none_for_a_foreign_pipeline_are_refused(tiny: Tiny) -> None:
    with pytest.raises(PluginError, match="another to judge on"):
        autotune(tiny.pipe, ["one"], min_psnr=30)
    with pytest.raises(PluginError, match="give a dozen"):
        autotune(tiny.pipe, min_psnr=30)
