"""TeaCache's gate: accumulated changes by hand, the curve's rules, calibration and its file."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipstep.caching.base import Seen, Step
from skipstep.caching.gates.tea_calibration import TeaCalibration, TeaRecord
from skipstep.caching.gates.teacache import PUBLISHED, TeaCacheGate, TeaCurve, read_curve
from skipstep.caching.product import Cache
from skipstep.pipelines.tune.calibrate import calibrate_teacache
from skipstep.plugins.errors import Incompatible
from skipstep.testing import run, tiny_pipeline

torch.set_num_threads(1)


def play(gate: TeaCacheGate, values: list[float]) -> tuple[list[int], list[float | None]]:
    """Return the computed steps and A at each step of one row whose input is constant in space."""
    state, computed, totals = gate.init(1), [], []
    for index, value in enumerate(values):
        step, p = Step(index, len(values)), torch.full((1, 4), float(value))
        (choice,) = gate.decide(state, step, p)
        totals.append(choice.value)
        if choice.compute:
            computed.append(index)
            gate.observe(state, Seen(step, [0], p, p))
    return computed, totals


def test_changes_add_up_from_step_to_step_and_a_computed_step_starts_anew() -> None:
    computed, totals = play(TeaCacheGate(threshold=0.25), [1.0, 1.1, 1.21, 1.331, 1.21, 1.331])
    # 10 % a step: .1, .2, .3 -> computed; back by 1/11, forth by .1.
    assert computed == [0, 3]
    expected = torch.tensor([0.1, 0.2, 0.3, 1 / 11, 1 / 11 + 0.1])
    torch.testing.assert_close(torch.tensor(totals[1:]), expected, rtol=1e-5, atol=0)


def test_the_polynomial_maps_each_change_before_it_is_added() -> None:
    curve = TeaCurve(coefficients=(0, 0, 10, 0, 0.05))  # P(.1) = .15
    computed, totals = play(TeaCacheGate(threshold=0.31, coefficients=curve), [1, 1.1, 1.21, 1.331])
    assert totals[1:] == pytest.approx([0.15, 0.30, 0.45], rel=1e-4)
    assert computed == [0, 3]


coefficients = st.tuples(*[st.floats(-1000, 1000)] * 5)


@given(
    coefficients,
    st.floats(0, 1),
    st.floats(0.001, 1),
    st.lists(st.floats(0, 3), min_size=2, max_size=9),
)
def test_a_curve_with_a_range_never_falls_is_never_negative_and_ends_constant(
    c: tuple[float, float, float, float, float], low: float, width: float, xs: list[float]
) -> None:
    curve = TeaCurve(coefficients=c, low=low, high=low + width)
    xs.sort()
    values = [curve(x) for x in xs]
    slack = 1e-9 * (1 + max(abs(v) for v in c))
    assert all(b >= a - slack for a, b in zip(values, values[1:], strict=False))
    assert all(value >= 0 for value in values)
    assert curve(low + width) == curve(low + width + 1) and curve(low) == curve(low / 2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_curves_never_lower_the_sum(name: str) -> None:
    curve = read_curve(name)
    assert all(curve(x / 200) >= 0 for x in range(200))


def test_flux_coefficients_are_highest_power_first() -> None:
    x = 0.2
    expected = 498.651651 * x**4 - 283.781631 * x**3 + 55.8554382 * x**2 - 3.82021401 * x
    assert read_curve("flux")(x) == pytest.approx(expected + 0.264230861)


def test_what_is_not_finite_stays_so_and_computes() -> None:
    for curve in (TeaCurve(), TeaCurve(low=0.1, high=0.2)):
        gate = TeaCacheGate(threshold=10, coefficients=curve)
        computed, _ = play(gate, [1.0, 1.1, float("nan"), 1.0, 1.0, 1.0])
        assert computed == [0, 2, 3]


def test_calibration_finds_the_polynomial_the_pairs_were_made_with() -> None:
    truth = (300.0, -80.0, 9.0, 0.5, 0.01)
    record = TeaRecord()
    xs = [0.01 * i for i in range(1, 30)]
    ys = [sum(c * x**p for c, p in zip(truth, range(4, -1, -1), strict=True)) for x in xs]
    record.add([*xs, float("nan")], [*ys, 1.0])
    curve = record.curve({"model": "toy"})
    assert curve.coefficients == pytest.approx(truth, rel=1e-6)
    assert (curve.low, curve.high, curve.samples) == (0.01, 0.29, 29)
    assert curve.fingerprint == {"model": "toy"}
    assert record.determination() == pytest.approx(1)


def test_the_calibrating_gate_computes_and_records_both_changes() -> None:
    gate = TeaCalibration()
    state = gate.init(2)
    for index, (p, v) in enumerate([(1.0, 1.0), (1.5, 3.0)]):
        step = Step(index, 2)
        x, y = torch.full((2, 3), p), torch.full((2, 5), v)
        assert [c.why for c in gate.decide(state, step, x)] == ["calibration"] * 2
        gate.observe(state, Seen(step, [0, 1], x, y))
    assert gate.record.pairs == [(0.5, 2.0)] * 2
    with pytest.raises(ValueError, match=r"shown rows \[0\] of 2"):
        gate.observe(state, Seen(Step(1, 2), [0], x[:1], y[:1]))


def test_too_few_changes_are_refused() -> None:
    with pytest.raises(ValueError, match="holds 0 different changes"):
        TeaRecord().curve()
    with pytest.raises(ValueError, match="needs 5: run more steps"):
        TeaRecord(pairs=[(0.1, 0.2)] * 9).curve()


def test_a_curve_survives_its_file_and_faults_are_named(tmp_path: Path) -> None:
    curve = TeaCurve(coefficients=PUBLISHED["ltx"], low=0.1, high=0.4, samples=7)
    curve.save(tmp_path / "tea.json")
    assert read_curve(str(tmp_path / "tea.json")) == curve
    assert TeaCacheGate(coefficients=str(tmp_path / "tea.json")).coefficients == curve  # type: ignore[arg-type]
    data = json.loads((tmp_path / "tea.json").read_text())
    (tmp_path / "tea.json").write_text(json.dumps({**data, "coefficients": [1, 2]}))
    with pytest.raises(ValueError, match="coefficients"):
        TeaCurve.load(tmp_path / "tea.json")
    with pytest.raises(ValueError, match=r"'fluks' is no family .* flux"):
        read_curve("fluks")
    with pytest.raises(ValueError, match="together or not at all"):
        TeaCurve(low=0.1)
    with pytest.raises(ValueError, match=r"low 0.3 is above high 0.1"):
        TeaCurve(low=0.3, high=0.1)


def test_calibrating_a_pipeline_gives_a_cache_made_for_it(tmp_path: Path) -> None:
    tiny = tiny_pipeline("pixart")
    call = {k: v for k, v in tiny.call.items() if k != "prompt"}
    call["num_inference_steps"] = 8
    cache = calibrate_teacache(tiny.pipe, ["a", "b"], path=tmp_path / "tea.json", **call)
    curve = cache.coefficients
    assert curve.samples == 2 * 7 * 2  # prompts x steps x guidance branches
    assert curve.low is not None and curve.high is not None and 0 < curve.low < curve.high
    assert TeaCurve.load(tmp_path / "tea.json") == curve
    assert "denoisers" in (cache.made_for() or {}) and "steps" not in (cache.made_for() or {})
    with pytest.raises(ValueError, match="calibrate_teacache was given no prompts"):
        calibrate_teacache(tiny.pipe, [])


def test_the_probe_is_what_the_first_attention_receives() -> None:
    tiny = tiny_pipeline("flux")
    block = tiny.pipe.transformer.transformer_blocks[0]
    seen: list[torch.Tensor] = []
    hook = block.attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    run(tiny, steps=4)
    hook.remove()
    handle = tiny.pipe.enable_plugin("teacache", threshold=0, warmup_steps=1, final_steps=0)
    run(tiny, steps=4)
    values = [c.value for call in handle.report().calls for c in call.choices]
    tiny.pipe.disable_plugins()
    expected = [
        float((b - a).abs().mean() / a.abs().mean()) for a, b in zip(seen, seen[1:], strict=False)
    ]
    assert values[1:] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("span", ["output", "modules"])
def test_spans_that_run_past_the_probe_are_refused(span: str) -> None:
    tiny = tiny_pipeline("flux")
    with pytest.raises((ValueError, Incompatible), match="use span 'residual'"):
        tiny.pipe.enable_plugin("cache", gate="teacache", span=span)
    with pytest.raises(ValueError, match="use span 'residual'"):
        Cache(gate="teacache", span="output")  # type: ignore[arg-type]
