"""Tokens: which are refreshed, equal to a loop written here, and what is refused."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.caching.duca import DuCa
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.product import Cache
from skipstep.caching.spans.modules import Modules
from skipstep.caching.spans.tokens import Tokens
from skipstep.plugins.errors import Incompatible
from skipstep.testing import run, tiny_pipeline
from tests.test_oracles import computed_steps, enabled, exchanged

STEPS = 10
COMPUTES = computed_steps(warmup=2, interval=3, final=1)


def cache(span: Any) -> Cache:
    """Build the rhythm of COMPUTES over a span."""
    gate = IntervalGate(interval=3)
    return Cache(
        gate=gate, warmup_steps=2, final_steps=1, max_skips=None, forecaster=Reuse(), span=span
    )


@pytest.mark.parametrize("family", ["pixart", "wan", "sd15"])
def test_refreshing_every_token_is_repeating_attention_alone(family: str) -> None:
    tiny = tiny_pipeline(family)
    with enabled(tiny, cache(Modules(kinds=("attention", "cross_attention")))):
        expected = run(tiny, steps=STEPS)
    with enabled(tiny, cache(Tokens(share=1.0))):
        found = run(tiny, steps=STEPS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["pixart", "wan", "sd15"])
def test_refreshing_no_token_is_repeating_every_module(family: str) -> None:
    tiny = tiny_pipeline(family)
    with enabled(tiny, cache(Modules())):
        expected = run(tiny, steps=STEPS)
    with enabled(tiny, cache(Tokens(share=0.0))):
        assert torch.equal(run(tiny, steps=STEPS), expected)


def test_duca_equals_a_loop_over_tokens_by_hand() -> None:
    tiny = tiny_pipeline("pixart")
    step = [-1]
    in_turn: dict[int, bool] = {}
    skips = 0
    for i in range(STEPS):
        in_turn[i] = skips % 2 == 0
        skips = 0 if i in COMPUTES else skips + 1

    def count(original: Any, *args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        return original(*args, **kwargs)

    def attention() -> Any:
        kept: list[Any] = []

        def reference(original: Any, *args: Any, **kwargs: Any) -> Any:
            if step[0] in COMPUTES:
                kept[:] = [original(*args, **kwargs)]
            return kept[0]

        return reference

    def feed_forward() -> Any:
        kept = dict[str, Tensor]()

        def reference(original: Any, x: Tensor) -> Tensor:
            y: Tensor = original(x)
            if step[0] in COMPUTES:
                kept.update(x=x.clone(), y=y.clone())
            elif in_turn[step[0]]:
                for sample in range(len(x)):
                    change = (x[sample] - kept["x"][sample]).norm(dim=1) / kept["x"][sample].norm(
                        dim=1
                    )
                    for token in change.argsort(descending=True)[: round(0.25 * x.shape[1])]:
                        kept["x"][sample, token] = x[sample, token]
                        kept["y"][sample, token] = y[sample, token]
            return kept["y"].clone()

        return reference

    with contextlib.ExitStack() as stack:
        stack.enter_context(exchanged(tiny.pipe.transformer, count))
        for block in tiny.pipe.transformer.transformer_blocks:
            for module in (block.attn1, block.attn2):
                stack.enter_context(exchanged(module, attention()))
            stack.enter_context(exchanged(block.ff, feed_forward()))
        expected = run(tiny, steps=STEPS)
    with enabled(tiny, DuCa(interval=3, share=0.25, every=2)) as handle:
        found = run(tiny, steps=STEPS)
        assert torch.equal(run(tiny, steps=STEPS), found)
        assert 0 < handle.report().flops_done < handle.report().flops_full
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_work_of_the_chosen_tokens_is_counted() -> None:
    tiny = tiny_pipeline("pixart")
    with enabled(tiny, DuCa(interval=3, share=0.25, every=1)) as handle:
        run(tiny, steps=STEPS)
        report = handle.report()
    skipped = STEPS - len(COMPUTES)
    # Two attentions and one feed-forward a block.
    assert report.fraction == pytest.approx((len(COMPUTES) + skipped * 0.25 / 3) / STEPS)


def test_a_batch_equals_its_single_runs() -> None:
    tiny = tiny_pipeline("pixart")
    with enabled(tiny, DuCa()):
        batch = run(tiny, steps=STEPS, batch=3)
        singles = torch.cat([run(tiny, steps=STEPS, seed=seed) for seed in range(3)])
    torch.testing.assert_close(batch, singles, rtol=0, atol=1e-5)


def test_a_feed_forward_that_mixes_tokens_is_computed_in_full() -> None:
    tiny = tiny_pipeline("pixart")
    ff = tiny.pipe.transformer.transformer_blocks[1].ff
    calls: list[int] = []

    def mixes(original: Any, x: Tensor) -> Any:
        calls.append(x.shape[1])
        return original(x) + x.mean(1, keepdim=True)

    with exchanged(ff, mixes), enabled(tiny, DuCa(share=0.25, every=1)):
        run(tiny, steps=STEPS)
    tokens = max(calls)
    assert calls.count(tokens) == STEPS


def test_gates_that_look_at_the_first_block_are_refused() -> None:
    tiny = tiny_pipeline("pixart")
    options: dict[str, Any] = {"gate": "first_block", "span": "tokens"}
    with pytest.raises(Incompatible, match="which span 'tokens' does not watch"):
        tiny.pipe.enable_plugin(Cache(**options))
