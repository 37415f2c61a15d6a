"""The benchmark beside peers: who is ahead is worked out right, and a peer can misbehave freely."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from skipstep.benchmarks.peers import drivers
from skipstep.benchmarks.peers.__main__ import job_of, main, parse
from skipstep.benchmarks.peers.arms import OURS, PEERS, STEPS_ALONE, grid
from skipstep.benchmarks.peers.count import FlopCount, denoiser_share
from skipstep.benchmarks.peers.fronts import (
    Point,
    at_speed,
    best_of,
    compare_at,
    front,
    over_range,
    speed_at,
    verdict,
)
from skipstep.benchmarks.peers.protocol import Job, Measured, ask, read_answer
from skipstep.benchmarks.peers.table import PSNR, refusals
from skipstep.plugins import catalog, options
from skipstep.plugins.flops import CPU_ATTENTION
from skipstep.testing import run as run_tiny
from skipstep.testing import tiny_pipeline

SPEEDS = st.floats(1.0, 8.0)
VALUES = st.floats(10.0, 60.0)
CLOUDS = st.lists(st.tuples(SPEEDS, VALUES), min_size=1, max_size=12)


def line(peer: str, *points: tuple[float, float], spread: float = 0.5) -> list[Point]:
    """Return settings with a mean, over eight prompts that lie around it."""
    offsets = [spread * (i - 3.5) for i in range(8)]
    return [
        Point(peer, f"{peer}{speed:g}", speed, tuple(mean + offset for offset in offsets))
        for speed, mean in points
    ]


@given(CLOUDS)
def test_a_front_falls_and_nothing_measured_beats_it(cloud: list[tuple[float, float]]) -> None:
    points = line("p", *cloud)
    found = front(points)
    for a, b in zip(found, found[1:], strict=False):
        assert a.speed < b.speed and a.mean > b.mean
    for point in points:
        assert any(each.speed >= point.speed and each.mean >= point.mean for each in found)
        assert not any(each.speed < point.speed and each.mean < point.mean for each in [point])


@given(CLOUDS, SPEEDS)
def test_a_front_says_nothing_beyond_its_ends_and_stays_between_its_neighbours(
    cloud: list[tuple[float, float]], speed: float
) -> None:
    found = front(line("p", *cloud))
    values = at_speed(found, speed)
    if not found[0].speed <= speed <= found[-1].speed:
        assert values is None
    elif values is not None:
        mean = math.fsum(values) / len(values)
        assert found[-1].mean - 1e-9 <= mean <= found[0].mean + 1e-9


def test_fidelity_is_linear_in_the_logarithm_of_the_speed() -> None:
    found = line("p", (1.0, 40.0), (4.0, 20.0), spread=0)
    assert at_speed(found, 2.0) == pytest.approx((30.0,) * 8)
    assert at_speed(found, 4 ** (1 / 4)) == pytest.approx((35.0,) * 8)
    assert speed_at(found, 30.0) == pytest.approx(2.0)
    assert at_speed(found, 0.9) is None and at_speed(found, 4.1) is None
    assert speed_at(found, 41.0) is None and speed_at(found, 19.0) is None


def test_the_best_peer_is_chosen_anew_at_each_speed() -> None:
    fronts = {
        "early": line("early", (1.0, 50.0), (4.0, 10.0)),
        "late": line("late", (1.5, 30.0), (4.0, 25.0)),
    }
    assert best_of(fronts, 1.2) == "early" and best_of(fronts, 3.0) == "late"
    assert best_of(fronts, 9.0) is None


def test_a_gap_is_paired_over_prompts_so_that_their_common_spread_drops_out() -> None:
    own, other = (
        line("us", (1.0, 42.0), (4.0, 22.0), spread=9),
        line("p", (1.0, 40.0), (4.0, 20.0), spread=9),
    )
    gap = compare_at(own, {"p": other}, 2.0)
    assert gap is not None
    assert (gap.gain, gap.low, gap.high) == pytest.approx((2.0, 2.0, 2.0))
    # 2 dB of a slope of 10 dB for each doubling.
    assert gap.speed_ratio == pytest.approx(2**0.2)
    assert gap.settings == ("p1", "p4") and gap.own_settings == ("us1", "us4")


def test_swapping_the_sides_turns_the_sign() -> None:
    a, b = line("a", (1.0, 40.0), (4.0, 20.0)), line("b", (1.2, 45.0), (3.0, 15.0))
    there, back = compare_at(a, {"b": b}, 2.0), compare_at(b, {"a": a}, 2.0)
    assert there is not None and back is not None
    assert there.gain == pytest.approx(-back.gain)


def test_verdicts_say_who_wins_and_when_nobody_can_tell() -> None:
    flat, ahead = line("p", (1.0, 40.0), (4.0, 20.0)), line("us", (1.0, 43.0), (4.0, 23.0))
    wins = verdict(compare_at(ahead, {"p": flat}, 2.0), 2.0, PSNR, "us")
    assert wins.startswith("at 2x: us is 3.0 dB ahead of the best peer, p (p1 and p4)")
    loses = verdict(compare_at(flat, {"us": ahead}, 2.0), 2.0, PSNR, "p")
    assert loses.startswith("at 2x: us (us1 and us4) wins, p is 3.0 dB behind")
    noisy = [Point("q", each.setting, each.speed, tuple(reversed(each.goodness))) for each in flat]
    assert "cannot be told apart" in verdict(compare_at(noisy, {"p": flat}, 2.0), 2.0, PSNR, "q")
    few = [Point("r", each.setting, each.speed, each.goodness[:2]) for each in ahead]
    short = [Point("p", each.setting, each.speed, each.goodness[:2]) for each in flat]
    assert "too few prompts" in verdict(compare_at(few, {"p": short}, 2.0), 2.0, PSNR, "r")
    assert "nothing to compare" in verdict(compare_at(ahead, {"p": flat}, 9.0), 9.0, PSNR, "us")


def test_a_range_counts_only_speeds_that_both_sides_measured() -> None:
    own, other = line("us", (1.0, 40.0), (4.0, 20.0)), line("p", (2.0, 40.0), (4.0, 20.0))
    gaps = over_range(own, {"p": other}, 1.0, 4.0)
    assert [gap.speed for gap in gaps] == pytest.approx([2.0 * 2 ** (i / 4) for i in range(5)])
    assert all(gap.gain <= 1e-9 for gap in gaps)


def test_every_setting_of_ours_is_a_plugin_and_no_setting_is_there_twice() -> None:
    for peer in PEERS.values():
        assert len(set(peer.settings)) == len(peer.settings)
        assert set(peer.quick) <= set(peer.settings)
    for setting in PEERS[OURS].settings:
        name, chosen = options.parse_spec(setting)
        if name in catalog.BUILTIN and name != "magcache":
            options.build(name, chosen)
        else:
            assert name in ("planned", "scheduled", "fitted", "magcache")


def test_a_grid_is_every_combination_in_order() -> None:
    assert grid("%(a)s%(b)s", a=(1, 2), b=("x", "y")) == ("1x", "1y", "2x", "2y")


@pytest.mark.parametrize("steps", [5, 12, 28, 50])
@pytest.mark.parametrize("name", list(drivers.HAND_MADE))
def test_schedules_by_hand_begin_and_end_computed_at_every_number_of_steps(
    name: str, steps: int
) -> None:
    found = drivers.shown_steps(name, steps)
    assert found[0] == 0 and found[-1] == steps - 1 and found == sorted(set(found))


def test_a_misspelled_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="no option tresh"):
        drivers.take({"tresh": 1}, "first_block:tresh=1", threshold=0.1)


@pytest.mark.parametrize("family", ["pixart", "sd15"])
def test_flops_are_those_of_torchs_own_counter(family: str) -> None:
    tiny = tiny_pipeline(family)
    with FlopCount() as ours:
        run_tiny(tiny, steps=3)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as theirs:
        run_tiny(tiny, steps=3)
    assert ours.total == theirs.get_total_flops() > 0


def test_the_share_of_the_denoiser_leaves_text_and_decoding_out() -> None:
    def cost(steps: float) -> float:
        return 700 + 30 * steps

    share = denoiser_share(cost(7), full=cost(28), fewer=cost(14), steps=28, less=14)
    assert share == pytest.approx(0.25)


FAKE = """
import os, sys, time
from skipstep.benchmarks.peers.drivers import CannotRun
from skipstep.pipelines.reference import load_reference as load

def drive(pipe, setting, steps):
    if setting == "refuses":
        raise CannotRun("it is for UNets")
    if setting == "breaks":
        raise KeyError("transformer")
    if setting == "crashes":
        os._exit(3)
    if setting == "hangs":
        time.sleep(60)
    if setting == "halves":
        return lambda **call: pipe(**{**call, "num_inference_steps": steps // 2})
    type(pipe).__call__ = lambda self, *a, _call=type(pipe).__call__, **k: _call(self, *a, **k)
    return pipe
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a peer that can misbehave on the import path of the processes."""
    (tmp_path / "fake_peer.py").write_text(FAKE, encoding="utf-8")
    paths = [str(tmp_path), *(path for path in sys.path if path)]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    return tmp_path


def job(*settings: str, **changes: object) -> Job:
    """Return a job for the fake peer."""
    asked = {
        "peer": "fake",
        "driver": "fake_peer:drive",
        "package": "torch",
        "loader": "fake_peer:load",
        "model": "picture",
        "stock_class": "PixArtAlphaPipeline",
        "settings": list(settings),
        "prompts": ["a", "b"],
        "seeds": [0, 1],
        "steps": 4,
        "rounds": 2,
        "threads": 1,
        **changes,
    }
    return Job(**asked)  # type: ignore[arg-type]


def test_a_peer_is_measured_in_its_own_process_and_one_setting_cannot_spoil_another(
    fake: Path,
) -> None:
    answer = ask(job("patches", "refuses", "breaks", "halves"), fake / "answer.json")
    patches, refuses, breaks, halves = answer.results
    assert answer.version == torch.__version__ and len(answer.digest) == 16
    assert patches.fraction == [1.0, 1.0] and patches.psnr == [120.0, 120.0]
    assert patches.feature_distance == [0.0, 0.0]
    assert refuses.cannot_run == "it is for UNets"
    assert breaks.cannot_run == "KeyError: 'transformer'"
    assert halves.fraction == pytest.approx([0.5, 0.5]) and max(halves.psnr) < 120
    assert len(halves.seconds) == len(halves.baseline_seconds) == 2
    assert read_answer(fake / "answer.json") == answer
    assert refusals([answer])[0] == "fake cannot run on this model: it is for UNets [refuses]"


def test_a_crash_is_an_answer_with_the_exit_code(fake: Path) -> None:
    answer = ask(job("crashes"), fake / "answer.json")
    assert "ended with code 3" in str(answer.results[0].cannot_run)


def test_a_peer_that_hangs_is_stopped(fake: Path) -> None:
    answer = ask(job("hangs"), fake / "answer.json", timeout=0.5)
    assert answer.results == [Measured("hangs", cannot_run="not done after 0 s")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"peer": 1}',
        '{"peer": "p", "version": "1", "steps": 4, "digest": "", "denoiser_gflops": 1.0, '
        '"results": [{"setting": "a", "psnr": [1.0], "fraction": [], "feature_distance": []}]}',
        '{"peer": "p", "version": "1", "steps": 4, "digest": "", "denoiser_gflops": 1.0, '
        '"results": [{"setting": "a"}]}',
    ],
)
def test_an_answer_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"answer\.json"):
        read_answer(path)


def test_quick_means_fewer_of_everything_and_arguments_are_checked() -> None:
    quick, full = parse(["--quick"]), parse([])
    assert (quick.steps, quick.prompts, full.steps) == ([28], 6, [28, 50])
    assert len(job_of(OURS, "picture", 28, quick).settings) < len(PEERS[OURS].settings)
    assert parse(["--quick", "--steps", "10", "--prompts", "2"]).steps == [10]
    with pytest.raises(SystemExit):
        parse(["--prompts", "-1"])


@pytest.mark.slow
def test_quick_runs_with_our_own_arms_and_can_be_shown_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--quick", "--peers", OURS, STEPS_ALONE, "--prompts", "2", "--steps", "8"]
    main([*asked, "--out", str(tmp_path), "--rounds", "0"])
    first = capsys.readouterr().out
    assert "goal" in first and (tmp_path / "peers.png").stat().st_size > 1000
    data = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    assert [answer["peer"] for answer in data["runs"][0]["answers"]] == [OURS, STEPS_ALONE]
    ours = data["runs"][0]["answers"][0]["results"]
    assert all(result["cannot_run"] is None for result in ours)
    main([*asked, "--out", str(tmp_path), "--rounds", "0", "--reuse"])
    assert "goal" in capsys.readouterr().out
