"""Clusters: k-means on tokens, and what a representative tells about the others."""

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skipstep.caching.clusca import ClusCa
from skipstep.caching.product import Cache
from skipstep.caching.spans.clusters import representatives
from skipstep.testing import run, tiny_pipeline
from tests.test_oracles import computed_steps, enabled, exchanged

STEPS = 10
COMPUTES = computed_steps(warmup=2, interval=3, final=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(1, 20), k=st.integers(1, 24))
def test_a_representative_is_the_member_nearest_to_the_mean(seed: int, tokens: int, k: int) -> None:
    x = torch.randn(2, tokens, 3, generator=torch.Generator().manual_seed(seed))
    clusters, found = representatives(x, k, rounds=4)
    for sample, ids, chosen in zip(x, clusters, found, strict=True):
        for cluster in set(ids.tolist()):
            members = (ids == cluster).nonzero()[:, 0]
            assert chosen[cluster] in members
            distances = (sample - sample[members].mean(0)).norm(dim=1)
            torch.testing.assert_close(distances[chosen[cluster]], distances[members].min())


def test_clusca_equals_a_loop_by_hand() -> None:
    tiny = tiny_pipeline("pixart")
    step, deepest = [-1], dict[int, Tensor]()
    blocks = tiny.pipe.transformer.transformer_blocks

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

    def feed_forward(number: int) -> Any:
        kept: list[Tensor] = []

        def reference(original: Any, x: Tensor) -> Tensor:
            y: Tensor = original(x)
            if step[0] in COMPUTES:
                kept[:] = [y]
                if number == len(blocks) - 1:
                    deepest[0] = y
                return y
            clusters, chosen = representatives(deepest[0], 3, rounds=5)
            result = kept[0].clone()
            for sample in range(len(x)):
                for token in range(x.shape[1]):
                    r = chosen[sample, clusters[sample, token]]
                    error = y[sample, r] - kept[0][sample, r]
                    result[sample, token] += (1.0 if token == r else 0.25) * error
            return result

        return reference

    with contextlib.ExitStack() as stack:
        stack.enter_context(exchanged(tiny.pipe.transformer, count))
        for number, block in enumerate(blocks):
            for module in (block.attn1, block.attn2):
                stack.enter_context(exchanged(module, attention()))
            stack.enter_context(exchanged(block.ff, feed_forward(number)))
        expected = run(tiny, steps=STEPS)
    plugin = ClusCa(warmup_steps=2, interval=3, clusters=3, propagation=0.25, order=0)
    with enabled(tiny, plugin) as handle:
        found = run(tiny, steps=STEPS)
        report = handle.report()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    tokens = int(deepest[0].shape[1])
    skipped = (STEPS - len(COMPUTES)) * 3 / tokens / 3  # one feed-forward in three modules
    assert report.fraction == pytest.approx((len(COMPUTES) + skipped) / STEPS)


@pytest.mark.slow
def test_as_many_clusters_as_tokens_compute_every_feed_forward_whatever_the_forecast() -> None:
    tiny = tiny_pipeline("pixart")
    with enabled(tiny, ClusCa(warmup_steps=2, interval=3, clusters=1024, order=0)):
        found = run(tiny, steps=STEPS)
    rhythm: dict[str, Any] = {"gate": {"type": "interval", "interval": 3}, "warmup_steps": 2}
    span = {"type": "modules", "kinds": ("attention", "cross_attention")}
    with enabled(tiny, Cache(**rhythm, final_steps=0, max_skips=None, span=span)):  # type: ignore[arg-type]
        expected = run(tiny, steps=STEPS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_batch_equals_its_single_runs() -> None:
    tiny = tiny_pipeline("pixart")
    with enabled(tiny, ClusCa(warmup_steps=2, interval=3, clusters=3)):
        batch = run(tiny, steps=STEPS, batch=2)
        singles = torch.cat([run(tiny, steps=STEPS, seed=seed) for seed in range(2)])
    torch.testing.assert_close(batch, singles, rtol=0, atol=1e-5)
