"""The ranker learns from other tasks, listens to its own trials, and proposes nothing twice."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstep.pipelines.tune.ranker import (
    Ranker,
    Seen,
    Task,
    hypervolume,
    read_tasks,
    shipped_tasks,
    write_tasks,
)

FEATURES = {"steps": 4.0, "unet": 0.0}
POINTS = st.lists(st.tuples(st.floats(0, 1), st.floats(-4, 0)), max_size=6)


def planned(span: str, count: int) -> dict[str, Any]:
    return {"method": "planned", "count": count, "forecaster": "reuse", "span": span}


def task(good: str, bad: str, level: float = 1.0) -> Task:
    """Return a task on which spans differ ten times in distance, at every count."""
    trials = [
        Seen(planned(span, count), count / 10, level * factor * (1 - count / 10), count / 10, -2.0)
        for span, factor in ((good, 0.1), (bad, 1.0))
        for count in (2, 5, 8)
    ]
    return Task({"model": "toy"}, dict(FEATURES), trials)


def unmeasured(of: Task) -> list[Seen]:
    return [Seen(each.params, 0.0, 1.0, each.share, each.error) for each in of.trials]


@given(POINTS, POINTS)
def test_the_area_under_a_front_only_grows_with_its_points(
    some: list[tuple[float, float]], more: list[tuple[float, float]]
) -> None:
    assert 0 <= hypervolume(some, 0.0) <= hypervolume([*some, *more], 0.0) + 1e-12 <= 4 + 1e-9


def test_what_was_good_elsewhere_comes_first_whatever_that_tasks_own_level() -> None:
    others = [task("output", "residual"), task("output", "residual", level=0.01)]
    ranker, new = Ranker(others, FEATURES), task("output", "residual", level=0.1)
    done: list[Seen] = []
    for _ in range(3):
        chosen = ranker.propose(unmeasured(new), done)
        assert chosen is not None and chosen.params["span"] == "output"
        done.append(next(each for each in new.trials if each.params == chosen.params))
    assert {each.params["count"] for each in done} == {2, 5, 8}


def test_a_task_on_which_it_is_the_other_way_round_is_believed() -> None:
    ranker, new = Ranker([task("output", "residual")], FEATURES), task("residual", "output")
    done = [each for each in new.trials if each.params["count"] != 5]
    chosen = ranker.propose(unmeasured(new), done)
    assert chosen is not None and chosen.params["span"] == "residual"


def test_with_a_wanted_speed_the_best_within_it_is_proposed_and_nothing_twice() -> None:
    known = task("output", "residual")
    ranker = Ranker([known], FEATURES)
    chosen = ranker.propose(unmeasured(known), [], most_work=0.6)
    assert chosen is not None and chosen.params == planned("output", 5)
    assert ranker.propose(unmeasured(known), known.trials) is None


def test_tasks_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    tasks = [task("output", "residual"), task("residual", "output", level=0.5)]
    write_tasks(tmp_path / "tasks.json", tasks)
    found = read_tasks(tmp_path / "tasks.json")
    assert [each.about for each in found] == [{"model": "toy"}] * 2
    for before, after in zip(tasks, found, strict=True):
        assert after.features == before.features and len(after.trials) == len(before.trials)
        assert after.trials[0].params == before.trials[0].params
        assert after.trials[0].distance == pytest.approx(before.trials[0].distance, rel=1e-4)


def test_the_tasks_that_come_with_the_package_are_whole() -> None:
    tasks = shipped_tasks()
    assert tasks and {each.about["model"] for each in tasks} == {"picture", "unet"}
    methods = {"planned", "adaptive", "fewer", "solver"}
    for each in tasks:
        assert {seen.params["method"] for seen in each.trials} == methods
        assert all(0 < seen.work < 1.5 and seen.distance >= 0 for seen in each.trials)
        assert each.features.keys() == tasks[0].features.keys()
