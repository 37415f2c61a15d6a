"""Contrast guidance: at 0 the base, at 1 the tuned model, and a line through both."""

from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.plugins.errors import Incompatible
from skipstep.testing import Tiny, run, tiny_pipeline


def tuned_pipeline() -> Tiny:
    from peft import LoraConfig

    tiny = tiny_pipeline("sd3")
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny.pipe.transformer.add_adapter(config, adapter_name="mine")
    return tiny


def first_answers(tiny: Tiny) -> list[Tensor]:
    """Return what the scheduler is given in the first step."""
    seen: list[Tensor] = []
    step = tiny.pipe.scheduler.step

    def look(output: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(output.clone())
        return step(output, *args, **kwargs)

    tiny.pipe.scheduler.step = look
    try:
        run(tiny, steps=2)
    finally:
        del tiny.pipe.scheduler.step
    return seen[:1]


def test_answers_lie_on_the_line_through_base_and_tuned_model() -> None:
    tiny = tuned_pipeline()
    (tuned,) = first_answers(tiny)
    tiny.pipe.transformer.disable_adapters()
    (base,) = first_answers(tiny)
    tiny.pipe.transformer.enable_adapters()
    plain = run(tiny)
    for scale in (0.0, 1.0, 1.6):
        tiny.pipe.enable_plugin("contrast", scale=scale)
        (found,) = first_answers(tiny)
        torch.testing.assert_close(found, torch.lerp(base, tuned, scale), rtol=1e-4, atol=1e-5)
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny), plain)


@pytest.mark.parametrize("cache", ["fora", pytest.param("easycache", marks=pytest.mark.slow)])
def test_a_cache_keeps_both_questions_apart(cache: str) -> None:
    tiny = tuned_pipeline()
    tiny.pipe.enable_plugin("contrast")
    alone = run(tiny, steps=4)
    never = {"interval": 1} if cache == "fora" else {"threshold": 0.0}
    tiny.pipe.enable_plugin(cache, **never)
    assert torch.equal(run(tiny, steps=4), alone)
    lively = {"interval": 2} if cache == "fora" else {"threshold": 5.0}
    tiny.pipe.enable_plugin(cache, **lively, warmup_steps=1)
    found = run(tiny, steps=4)
    assert tiny.pipe.plugin_report().fraction < 1
    assert torch.isfinite(found).all()


def test_a_model_without_adapters_is_refused() -> None:
    with pytest.raises(Incompatible, match="no LoRA adapter is loaded"):
        tiny_pipeline("sd3").pipe.enable_plugin("contrast")
