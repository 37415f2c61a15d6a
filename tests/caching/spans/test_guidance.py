"""The unconditional half of guidance: the formula, which half it is, and what is refused."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skipstep.caching.base import Step
from skipstep.caching.cfgcache import CFGCache
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.product import Cache
from skipstep.caching.spans.guidance import Guidance, low_frequencies, mixture
from skipstep.plugins.run import Run
from skipstep.testing import run, tiny_pipeline
from tests.test_oracles import computed_steps, enabled, exchanged

STEPS = 10
COMPUTES = computed_steps(warmup=2, interval=3, final=1)
PLAIN: dict[str, Any] = {"low_weight": 1.0, "high_weight": 1.0}
RHYTHM: dict[str, Any] = {"interval": 3, "warmup_steps": 2, "final_steps": 1}


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 5)])
@pytest.mark.parametrize(("index", "low", "high"), [(0, 1.0, 1.0), (10, 1.3, 1.0), (16, 1.3, 0.8)])
def test_rebuilding_is_the_papers_formula(
    size: tuple[int, int], index: int, low: float, high: float
) -> None:
    """LF(u) = LF(c) + alpha_1 (LF(u) - LF(c)) and the same for HF, with a full complex FFT."""
    c, u = torch.randn(2, 2, 3, *size, dtype=torch.float64)
    frequencies = [torch.fft.fftfreq(n, 1 / n) for n in size]
    radius = torch.hypot(*torch.meshgrid(*frequencies, indexing="ij"))
    is_low = (radius <= 0.25 * min(size)).double()
    parts = [torch.fft.fft2(x) for x in (c, u)]
    spectrum = sum(
        mask * (parts[0] + weight * (parts[1] - parts[0]))
        for mask, weight in ((is_low, low), (1 - is_low, high))
    )
    span = Guidance(low_weight=1.3, high_weight=0.8, radius=0.25)
    found = span.rebuild(c, u - c, Step(index, 20))
    torch.testing.assert_close(found, torch.fft.ifft2(spectrum).real)


def test_low_frequencies_are_a_projection_that_keeps_the_mean() -> None:
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    low = low_frequencies(x, radius=0.3)
    torch.testing.assert_close(low_frequencies(low, radius=0.3), low)
    torch.testing.assert_close(low.mean((-1, -2)), x.mean((-1, -2)))
    torch.testing.assert_close(low_frequencies(x, radius=1.0), x)
    assert low.var() < x.var()


def test_tokens_are_not_split() -> None:
    c, delta = torch.randn(2, 1, 16, 4)
    assert torch.equal(Guidance().rebuild(c, delta, Step(10, 20)), c + delta)


@pytest.mark.parametrize("scale", [1.5, 3.0, 7.5])
def test_a_mixture_shows_the_weights_of_guidance(scale: float) -> None:
    u, c = torch.randn(2, 4, 8, 8)
    rounded = (u + scale * (c - u)).bfloat16().float()
    assert mixture(rounded, u, c) == pytest.approx((1 - scale, scale), rel=0.02)
    assert mixture(-0.7 * rounded, u, c) == pytest.approx(
        (-0.7 + 0.7 * scale, -0.7 * scale), rel=0.02
    )
    assert mixture(torch.randn(4, 8, 8), u, c) is None
    assert mixture(torch.full_like(u, float("nan")), u, c) is None


def test_batched_guidance_equals_rebuilding_by_hand() -> None:
    tiny = tiny_pipeline("pixart")
    step, kept = [-1], dict[str, Tensor]()

    def reference(original: Any, *args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        output = original(*args, **kwargs)[0]
        u, c = output.chunk(2)
        if step[0] in COMPUTES:
            kept["delta"] = u - c
        else:
            u = c + kept["delta"]
        return (torch.cat([u, c]),)

    with exchanged(tiny.pipe.transformer, reference):
        expected = run(tiny, steps=STEPS, batch=2)
    with enabled(tiny, CFGCache(**RHYTHM, **PLAIN)) as handle:
        found = run(tiny, steps=STEPS, batch=2)
        report = handle.report()
    assert report.fraction == pytest.approx((len(COMPUTES) + 10) / 20)
    assert report.flops_done == pytest.approx(report.fraction * report.flops_full, rel=0.01)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["wan", "qwenimage"])
def test_separate_guidance_equals_rebuilding_by_hand(family: str) -> None:
    tiny = tiny_pipeline(family)
    call, kept = [-1], dict[str, Tensor]()

    def reference(original: Any, *args: Any, **kwargs: Any) -> Any:
        call[0] += 1
        step, is_second = divmod(call[0], 2)
        output = original(*args, **kwargs)[0]
        if not is_second:
            kept["c"] = output
        elif step in COMPUTES:
            kept["delta"] = output - kept["c"]
        else:
            output = kept["c"] + kept["delta"]
        return (output,)

    with exchanged(tiny.pipe.transformer, reference):
        expected = run(tiny, steps=STEPS)
    with enabled(tiny, CFGCache(**RHYTHM, **PLAIN)) as handle:
        found = run(tiny, steps=STEPS)
        marks = handle.report().timeline()
    assert marks == {
        "transformer[0]": "#" * STEPS,
        "transformer[1]": "".join(".#"[i in COMPUTES] for i in range(STEPS)),
    }
    assert torch.equal(found, expected)


@contextlib.contextmanager
def seen_by(module: nn.Module, argument: str) -> Iterator[list[Tensor]]:
    """Record an argument of every call of the real forward."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs[argument]), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


def test_the_half_with_the_larger_weight_is_computed_whichever_comes_first() -> None:
    """PixArt gives the negative prompt first, DiT the class first (1000 is its null class)."""
    tiny = tiny_pipeline("dit")
    null = tiny.pipe.transformer.config.num_embeds_ada_norm
    with enabled(tiny, CFGCache(**RHYTHM)), seen_by(tiny.pipe.transformer, "class_labels") as seen:
        run(tiny, steps=STEPS)
    labels = [call.tolist() for call in seen]
    assert sum(len(call) == 1 for call in labels) == STEPS - len(COMPUTES)
    assert all(call != [null] for call in labels if len(call) == 1)
    tiny = tiny_pipeline("pixart")
    name = "encoder_hidden_states"
    with enabled(tiny, CFGCache(**RHYTHM)), seen_by(tiny.pipe.transformer, name) as seen:
        run(tiny, steps=STEPS)
    whole, half = next(x for x in seen if len(x) == 2), next(x for x in seen if len(x) == 1)
    assert torch.equal(half[0], whole[1]) and not torch.equal(half[0], whole[0])


@pytest.mark.parametrize("family", ["pixart", "wan", "zimage"])
def test_a_batch_equals_its_single_runs(family: str) -> None:
    tiny = tiny_pipeline(family)
    plain = [run(tiny, steps=STEPS, batch=3), *(run(tiny, steps=STEPS, seed=i) for i in range(3))]
    noise = float((plain[0] - torch.cat(plain[1:])).abs().max())
    with enabled(tiny, CFGCache(**RHYTHM)):
        batch = run(tiny, steps=STEPS, batch=3)
        singles = torch.cat([run(tiny, steps=STEPS, seed=seed) for seed in range(3)])
    assert not torch.equal(batch, plain[0])
    assert float((batch - singles).abs().max()) <= max(20 * noise, 1e-6)


def test_any_forecaster_and_a_gate_on_the_input_may_stand_in_front() -> None:
    tiny = tiny_pipeline("pixart")
    gate = IntervalGate(interval=3)
    pictures = []
    for forecaster in ("reuse", Lagrange(order=2)):
        options: dict[str, Any] = {"gate": gate, "forecaster": forecaster, "span": "guidance"}
        with enabled(tiny, Cache(**options)):
            pictures.append(run(tiny, steps=STEPS))
    assert not torch.equal(*pictures)
    options = {"gate": {"type": "easycache", "threshold": 5.0}, "span": "guidance"}
    with enabled(tiny, Cache(**options)) as handle:
        run(tiny, steps=STEPS, batch=2)
        assert handle.report().fraction < 1


@pytest.mark.parametrize(
    ("family", "over", "why"),
    [
        ("flux", {}, "no row has a partner"),
        ("pixart", {"guidance_scale": 1.0}, "no row has a partner"),
        ("pixart", {"guidance_scale": 1.0, "batch": 2}, "no row has a partner"),
        ("wan", {"guidance_scale": 1.0}, "no row has a partner"),
    ],
)
def test_without_a_pair_everything_is_computed_and_the_report_says_why(
    family: str, over: dict[str, Any], why: str
) -> None:
    tiny = tiny_pipeline(family)
    expected = run(tiny, steps=6, **over)
    with enabled(tiny, CFGCache(interval=2, warmup_steps=1)) as handle:
        assert torch.equal(run(tiny, steps=6, **over), expected)
        assert why in handle.report().verdict


def test_a_prediction_that_is_no_mixture_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = tiny_pipeline("pixart")
    advance = Run.advance
    monkeypatch.setattr(Run, "advance", lambda run, x: advance(run, x.tanh() + 1))
    with enabled(tiny, CFGCache(interval=2, warmup_steps=1)) as handle:
        run(tiny, steps=6)
        assert "cannot be known which one is unconditional" in handle.report().verdict


def test_the_report_counts_what_is_held() -> None:
    tiny = tiny_pipeline("pixart")
    with enabled(tiny, CFGCache(**RHYTHM)) as handle:
        picture = run(tiny, steps=STEPS, output_type="latent")
        held = handle.report().bytes_held
    assert held == 2 * picture.numel() * picture.element_size()  # noise and learned variance
