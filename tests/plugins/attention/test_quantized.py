"""Quantised attention in a pipeline: near to exact, with sparse attention, and calibrated."""

from typing import Any

import pytest
import torch

from skipstep.pipelines.tune.calibrate import calibrate_quantized
from skipstep.plugins import options
from skipstep.plugins.attention.layout import Layout
from skipstep.plugins.attention.methods.quantized import Quantized, QuantizedCalibration
from skipstep.plugins.attention.methods.sparge import Sparge
from skipstep.plugins.attention.sparse_call import attend_sparsely
from skipstep.testing import run, tiny_pipeline


@pytest.mark.parametrize("family", ["flux", "hunyuanvideo"])
def test_it_is_near_to_exact_attention_and_leaves_no_trace(family: str) -> None:
    tiny = tiny_pipeline(family)
    expected = run(tiny, steps=2)
    tiny.pipe.enable_plugin("quantized", force=True)
    found, again = run(tiny, steps=2), run(tiny, steps=2)
    report = tiny.pipe.plugin_report()
    tiny.pipe.disable_plugins()
    assert torch.equal(found, again) and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    assert "Attention was quantised in 8 of 8 calls" in report.verdict
    assert torch.equal(run(tiny, steps=2), expected)


def test_on_a_cpu_it_stays_away_and_says_so() -> None:
    tiny = tiny_pipeline("dit")
    expected = run(tiny, steps=2)
    tiny.pipe.enable_plugin("quantized")
    assert torch.equal(run(tiny, steps=2), expected)
    assert "force=True" in tiny.pipe.plugin_report().verdict


def test_inside_kept_blocks_the_error_of_rounding_is_all_that_is_added() -> None:
    layout = Layout((1, 8, 16))
    q, k, v = torch.randn(3, 1, 2, 128, 32, generator=torch.manual_seed(0))
    shared: dict[str, Any] = {"keep": 0.5, "block_q": 32, "block_k": 16, "force": True}
    plain, in8, in4 = (
        attend_sparsely(Sparge(bits=bits, **shared), q, k, v, layout).output
        for bits in (None, 8, 4)
    )
    assert plain is not None and in8 is not None and in4 is not None
    errors = [float((x - plain).norm() / plain.norm()) for x in (in8, in4)]
    assert 0 < errors[0] < 0.02 < errors[1] < 0.3


def test_the_table_names_the_cheapest_precision_above_the_bound() -> None:
    calibration = QuantizedCalibration(settings=Quantized(), parts=2)
    calibration.lowest.update(
        {
            (0, 0, "int4"): 0.95,
            (0, 0, "int8"): 0.9999,
            (0, 1, "int4"): 0.9995,
            (0, 1, "int8"): 0.9999,
            (1, 0, "int4"): 0.5,
            (1, 0, "int8"): 0.6,
        }
    )
    assert calibration.table(0.999) == (("int8", "int4"), ("native", "native"))


def test_calibration_attends_exactly_and_its_table_is_used() -> None:
    tiny = tiny_pipeline("pixart")
    expected = run(tiny, steps=4)
    call = {**tiny.call, "num_inference_steps": 4, "output_type": "np"}
    found = calibrate_quantized(tiny.pipe, tiny.prompts[:2], parts=2, **call)
    assert found.table is not None
    assert len(found.table) == 4 and all(len(parts) == 2 for parts in found.table)
    assert options.build(options.to_dict(found)) == found
    strict = Quantized(table=(("native",),) * 4, force=True)
    tiny.pipe.enable_plugin(strict)
    assert torch.equal(run(tiny, steps=4), expected)
    loose = Quantized(table=(("native", "int8"),) * 4, force=True)
    tiny.pipe.enable_plugin(loose)
    assert not torch.equal(run(tiny, steps=4), expected)
    quantized = [layer.quantized for layer in tiny.pipe.plugin_report().attention]
    assert quantized == [2, 2, 2, 2]
