"""The window gate, and the kinds of attention that PAB and T-GATE compute inside it."""

from typing import Any

import pytest
import torch

from skipstep.caching.base import Step
from skipstep.caching.gates.window import WindowGate
from skipstep.plugins.errors import Incompatible
from skipstep.testing import run, tiny_pipeline

torch.set_num_threads(1)
TINY = tiny_pipeline("pixart")


def test_steps_inside_the_window_are_skipped() -> None:
    gate = WindowGate(start=0.2, stop=0.8)
    choices = [gate.decide(2, Step(i, 10), None) for i in range(10)]
    assert [i for i, c in enumerate(choices) if not c[0].compute] == [2, 3, 4, 5, 6, 7]
    assert all(len(c) == 2 and c[0] == c[1] for c in choices)


def test_a_run_of_unknown_length_is_computed_and_a_reversed_window_refused() -> None:
    assert WindowGate(start=0, stop=1).decide(1, Step(3, 0), None)[0].compute
    with pytest.raises(ValueError, match=r"start 0.8 is behind stop 0.2"):
        WindowGate(start=0.8, stop=0.2)


def calls(steps: int) -> dict[str, list[int]]:
    """Return the steps at which each kind of attention of the first block really ran."""
    denoiser = TINY.pipe.transformer
    block, step = denoiser.transformer_blocks[0], [-1]
    seen: dict[str, list[int]] = {"attn1": [], "attn2": []}

    def count(*_: Any) -> None:
        step[0] += 1

    hooks = [denoiser.register_forward_pre_hook(count)]
    for name, found in seen.items():
        layer = getattr(block, name).to_q
        hooks.append(layer.register_forward_hook(lambda *_, found=found: found.append(step[0])))
    run(TINY, steps=steps)
    for hook in hooks:
        hook.remove()
    return seen


def test_pab_computes_each_kind_at_its_own_rhythm() -> None:
    plugin: dict[str, Any] = {
        "start": 0.0,
        "stop": 1.0,
        "spatial": 2,
        "cross": 3,
        "warmup_steps": 2,
    }
    TINY.pipe.enable_plugin("pab", **plugin)
    found = calls(10)
    report = TINY.pipe.plugin_report()
    TINY.pipe.disable_plugins()
    # Warm-up 0 and 1, final 9; in between every 2nd or 3rd step after the last computed one.
    assert found == {"attn1": [0, 1, 3, 5, 7, 9], "attn2": [0, 1, 4, 7, 9]}
    assert report.fraction == pytest.approx((6 + 5) / 20)
    assert report.flops_done is not None and report.flops_done < report.flops_full


def test_tgate_freezes_cross_attention_and_nothing_else() -> None:
    TINY.pipe.enable_plugin("tgate", gate_step=0.4, warmup_steps=1)
    found = calls(10)
    TINY.pipe.disable_plugins()
    assert found == {"attn1": list(range(10)), "attn2": [0, 1, 2, 3]}


def test_intervals_under_another_gate_are_refused() -> None:
    span = {"type": "modules", "intervals": {"attention": 2}}
    with pytest.raises(Incompatible, match="use gate 'window' or leave intervals out"):
        TINY.pipe.enable_plugin("cache", gate="interval", span=span)
