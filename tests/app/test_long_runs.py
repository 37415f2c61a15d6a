"""Compare, sweep and autotune from the page: limits first, then the same as on the command line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skipstep.pipelines.ui.autotune_tab import recipe_of, run_autotune
from skipstep.pipelines.ui.compare_tab import framed, run_compare, save_comparison
from skipstep.pipelines.ui.limits import Limits, read_recipe
from skipstep.pipelines.ui.long_runs import Part, Result, Step, progress_line
from skipstep.pipelines.ui.offered import REFERENCE
from skipstep.pipelines.ui.scatter import Point, scatter
from skipstep.pipelines.ui.studio import Studio
from skipstep.pipelines.ui.sweep_tab import chart, sheet
from skipstep.pipelines.ui.sweeps import read_values, run_sweep
from skipstep.plugins.errors import PluginError

SWEEP: dict[str, Any] = {
    "model": REFERENCE,
    "plugin": "fora",
    "option": "interval",
    "values": "1, 2",
    "prompts": "a sun",
    "steps": 8,
    "seed": 0,
}
COMPARE: dict[str, Any] = {
    "model": REFERENCE,
    "prompts": ["<script>alert(1)</script>"],
    "recipes": "fora:interval=2,warmup_steps=1,final_steps=0",
    "steps": 4,
    "seed": 0,
}
TUNE: dict[str, Any] = {
    "model": REFERENCE,
    "target": "target_speedup",
    "value": 1.5,
    "prompts": "a sun\na pizza",
    "steps": 6,
    "trials": 1,
    "minutes": 1,
}


def result_of(events: Iterator[Any]) -> Any:
    """Return what a run ended with."""
    *_, last = events
    assert isinstance(last, Result)
    return last.value


def test_a_comparison_ends_in_a_page_and_files(studio: Studio, tmp_path: Path) -> None:
    outcome = result_of(run_compare(studio, Limits(), **COMPARE))
    assert outcome[str(COMPARE["recipes"])].fraction == pytest.approx(0.5)
    names = [Path(path).name for path in save_comparison(outcome, tmp_path)]
    assert names == ["compare.json", "index.html", "sheet.png"]
    shown = framed(outcome)
    assert 'sandbox="allow-scripts"' in shown and "<script>alert" not in shown


def test_old_reports_go(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipstep.pipelines.ui.reports.MOST_REPORTS", 2)
    outcome = result_of(run_compare(studio, Limits(), **COMPARE))
    for _ in range(4):
        paths = save_comparison(outcome, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and Path(paths[0]).is_file()


def test_a_sweep_shows_every_cell_as_it_comes(studio: Studio) -> None:
    events = list(run_sweep(studio, Limits(), **SWEEP))
    parts = [event.value for event in events if isinstance(event, Part)]
    plain = [f"{steps} plain steps" for steps in (3, 4, 6, 7)]
    assert [cell.name for cell in parts] == ["8 plain steps", "interval 1", "interval 2", *plain]
    assert events[-1].value == parts
    truth, one, two = parts[:3]
    assert one.outcome.work == 1 and one.is_equal and two.outcome.work < 1 and not two.is_equal
    assert (one.picture == truth.picture).all() and (one.picture != two.picture).any()
    assert sheet(parts).count("<figure>") == 7 and sheet(parts).count("identical") == 2
    assert chart(parts).count("<circle") == 7


def test_two_options_make_a_grid(studio: Studio) -> None:
    grid = SWEEP | {"second": "warmup_steps", "second_values": "1, 2", "steps": 2}
    cells = result_of(run_sweep(studio, Limits(), **grid))
    assert [cell.options for cell in cells if cell.options] == [
        {"interval": a, "warmup_steps": b} for a in (1, 2) for b in (1, 2)
    ]


def test_leaving_a_sweep_stops_it_and_switches_everything_off(studio: Studio) -> None:
    events = run_sweep(studio, Limits(), **SWEEP)
    for event in events:
        if isinstance(event, Part):
            break
    events.close()  # type: ignore[attr-defined]  # a generator, as the server knows
    assert not studio.lock.locked()


def test_a_tuning_ends_in_a_recipe_and_nothing_stays_on(studio: Studio) -> None:
    tuning = result_of(run_autotune(studio, Limits(), **TUNE))
    read_recipe(recipe_of(tuning))
    assert tuning.trials


@pytest.mark.parametrize(
    ("run", "change", "words"),
    [
        (run_compare, {"recipes": "\n".join(["fora"] * 9)}, "9 recipes were given: 1 to 8"),
        (
            run_compare,
            {"prompts": ["a"] * 16, "recipes": "fora\npab\nfoca\neasycache\nhicache\nabcache"},
            "238 pipeline calls: at most 200",
        ),
        (run_compare, {"prompts": "a\x00"}, "control character"),
        (run_compare, {"recipes": "/etc/passwd.yaml"}, "unknown plugin"),
        (run_compare, {"model": "other"}, "is not offered here"),
        (run_sweep, {"values": "1, " * 20}, "values were given: 1 to 8"),
        (run_sweep, {"values": "{"}, "cannot be read"),
        (run_sweep, {"values": 7}, "values are 7"),
        (run_sweep, {"values": "101"}, "interval=101 is not allowed"),
        (run_sweep, {"option": "intervall"}, "did you mean 'interval'"),
        (run_sweep, {"second": "interval", "second_values": "1"}, "is on both axes"),
        (run_sweep, {"plugin": "nonesuch"}, "unknown plugin"),
        (run_sweep, {"steps": 1000}, "steps=1000 is not allowed"),
        (run_autotune, {"target": "speed"}, "target 'speed' is not known"),
        (run_autotune, {"value": "much"}, "must be a number"),
        (run_autotune, {"trials": 1000}, "trials=1000 is not allowed here: 1 to 60"),
        (run_autotune, {"minutes": 1e9}, "minutes=1000000000.0 is not allowed"),
        (run_autotune, {"prompts": "a\n" * 20}, "20 prompts were given: 1 to 16"),
    ],
)
def test_too_much_is_refused_before_anything_runs(
    run: Any, change: dict[str, Any], words: str
) -> None:
    usual = {run_compare: COMPARE, run_sweep: SWEEP, run_autotune: TUNE}[run]
    with pytest.raises(PluginError, match=words):
        run(Studio(load=lambda name: pytest.fail("loaded")), Limits(), **usual | change)


def test_values_keep_brackets_together() -> None:
    assert read_values("values", "[1, 2], null, x") == [[1, 2], None, "x"]


def test_a_chart_names_its_points_and_escapes_them() -> None:
    points = [
        Point(0.5, 40.0, "<b>fast</b>", is_best=True),
        Point(0.25, float("inf"), "nowhere"),
        Point(0.4, 30.0, "a", "fewer"),
        Point(0.6, 35.0, "b", "fewer"),
    ]
    drawn = scatter(points, y_name="PSNR", y_unit=" dB")
    assert "<b>fast" not in drawn and "&lt;b&gt;fast" in drawn
    assert drawn.count("<title>") == 4 and drawn.count("<polyline") == 1
    assert "nowhere: 25% of the work, identical" in drawn
    assert 'role="img"' in drawn and 'class="best"' in drawn
    assert scatter([points[1]], y_name="PSNR") == ""


def test_progress_is_told_to_screen_readers() -> None:
    line = progress_line(Step(1, 4, "<i>"))
    assert 'aria-valuenow="25"' in line and 'role="status"' in line and "<i>:" not in line
    assert "&lt;i&gt;" in line
