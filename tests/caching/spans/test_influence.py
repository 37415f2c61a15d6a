"""Influential tokens: the score's terms, and which tokens a skip computes."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.caching.product import Cache
from skipstep.caching.spans.influence import best_of_patches, entropy, received, unit
from skipstep.caching.spans.tokens import Tokens
from skipstep.caching.toca import ToCa
from skipstep.testing import run, tiny_pipeline
from tests.test_oracles import computed_steps, enabled, exchanged

STEPS = 10
COMPUTES = computed_steps(warmup=2, interval=3, final=0)


def test_received_attention_sums_to_the_queries_and_finds_the_token_all_look_at() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)
    weights = torch.softmax(torch.einsum("nhqd,nhkd->nhqk", q, k) / 2, dim=-1)
    torch.testing.assert_close(received(q, k), weights.mean((1, 2)))
    torch.testing.assert_close(received(q, k).sum(1), torch.ones(2))
    k[:, :, 4] = 50 * q.mean(2)
    q = q.mean(2, keepdim=True)
    assert received(q, k).argmax(1).tolist() == [4, 4]


def test_entropy_is_that_of_the_text_weights() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 3, 4)
    p = torch.softmax(q @ k.mT / 2, dim=-1)
    expected = -(p * p.log()).sum(-1).mean(1)
    torch.testing.assert_close(entropy(q, k), expected)


@pytest.mark.parametrize(("tokens", "patches"), [(16, 4), (25, 9), (15, 0), (1, 0)])
def test_one_token_of_every_patch_is_the_best(tokens: int, patches: int) -> None:
    score = torch.randperm(tokens, generator=torch.Generator().manual_seed(0)).float()[None]
    best = best_of_patches(score)
    assert best.sum() == patches and set(best.flatten().tolist()) <= {0.0, 1.0}


def test_toca_equals_a_loop_over_tokens_by_hand() -> None:
    tiny = tiny_pipeline("pixart")
    step = [-1]
    scores = dict[int, Tensor]()

    def count(original: Any, *args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        return original(*args, **kwargs)

    def attention(number: int, module: Any, *, is_self: bool) -> Any:
        kept: list[Any] = []

        def reference(original: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if step[0] in COMPUTES:
                kept[:] = [original(x, *args, **kwargs)]
            elif is_self and step[0] - 1 in COMPUTES:
                asked = x[:, :: x.shape[1] // 64]  # 64 of 256 queries
                q, k = (
                    each.unflatten(-1, (module.heads, -1)).transpose(1, 2)
                    for each in (module.to_q(asked), module.to_k(x))
                )
                scores[number] = unit(received(q, k))
            return kept[0]

        return reference

    def feed_forward(number: int, depth: float) -> Any:
        kept = dict[str, Tensor]()

        def reference(original: Any, x: Tensor) -> Tensor:
            y: Tensor = original(x)
            if step[0] in COMPUTES:
                kept.update(y=y.clone(), when=torch.full(x.shape[:2], float(step[0])))
                return y
            score = 0.25 * (step[0] - kept["when"]) / 3 + scores[number]
            score = score * (1 + 0.6 * best_of_patches(score))
            share = 0.3 * (1 + 0.2 * (1 - 2 * depth))
            for sample in range(len(x)):
                order = score[sample].argsort(descending=True)
                for token in order[: max(1, round(share * x.shape[1]))]:
                    kept["y"][sample, token] = y[sample, token]
                    kept["when"][sample, token] = step[0]
            return kept["y"].clone()

        return reference

    blocks = tiny.pipe.transformer.transformer_blocks
    with contextlib.ExitStack() as stack:
        stack.enter_context(exchanged(tiny.pipe.transformer, count))
        for number, block in enumerate(blocks):
            one, two = block.attn1, block.attn2
            stack.enter_context(exchanged(one, attention(number, one, is_self=True)))
            stack.enter_context(exchanged(two, attention(number, two, is_self=False)))
            depth = number / (len(blocks) - 1)
            stack.enter_context(exchanged(block.ff, feed_forward(number, depth)))
        expected = run(tiny, steps=STEPS)
    with enabled(tiny, ToCa(warmup_steps=2, interval=3, share=0.3)) as handle:
        found = run(tiny, steps=STEPS)
        report = handle.report()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(COMPUTES) / STEPS < report.fraction < 1
    assert report.flops_done < report.flops_full


@pytest.mark.parametrize(
    "weights",
    [pytest.param({"influence": 0.0}, marks=pytest.mark.slow), {"entropy": 1.0}],
    ids=lambda w: next(iter(w)),
)
def test_a_batch_equals_its_single_runs(weights: dict[str, float]) -> None:
    tiny = tiny_pipeline("pixart")
    with enabled(tiny, ToCa(warmup_steps=2, share=0.3, **weights)):  # type: ignore[arg-type]
        batch = run(tiny, steps=STEPS, batch=2)
        singles = torch.cat([run(tiny, steps=STEPS, seed=seed) for seed in range(2)])
    torch.testing.assert_close(batch, singles, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_share_of_nothing_repeats_every_module() -> None:
    tiny = tiny_pipeline("pixart")
    rhythm: dict[str, Any] = {"gate": {"type": "interval", "interval": 3}, "warmup_steps": 2}
    cache = Cache(**rhythm, final_steps=0, max_skips=None, span=Tokens(share=0.0))
    with enabled(tiny, cache):
        expected = run(tiny, steps=STEPS)
    with enabled(tiny, ToCa(warmup_steps=2, interval=3, share=0.0)):
        assert torch.equal(run(tiny, steps=STEPS), expected)
