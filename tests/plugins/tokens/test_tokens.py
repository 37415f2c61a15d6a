"""Token reduction on pipelines: exact when off, gone when disabled, honest in its report."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from skipstep.plugins import catalog
from skipstep.plugins.errors import Incompatible
from skipstep.plugins.flops import CPU_ATTENTION
from skipstep.testing import FAMILIES, run, tiny_pipeline
from skipstep.testing.conformance import CHECKED_ON, check_on

METHODS: dict[str, dict[str, Any]] = {
    "tome": {"ratio": 0.5},
    "evit": {"keep": 0.5},
    "zipvl": {"mass": 0.6},
    "spatten": {"keep": 0.4},
}
OFF: dict[str, dict[str, Any]] = {
    "tome": {"ratio": 0.0},
    "evit": {"keep": 1.0},
    "zipvl": {"mass": 1.0},
    "spatten": {"keep": 1.0},
}
# Two picture tokens at this size: nothing can be merged.
TOO_SMALL = {"cogvideox", "mochi"}


QUICK = {("tome", "sdxl"), ("zipvl", "flux")}


@pytest.mark.parametrize(
    ("method", "family"),
    [
        pytest.param(m, f, marks=[] if (m, f) in QUICK else [pytest.mark.slow])
        for m in METHODS
        for f in CHECKED_ON
    ],
)
def test_every_method_conforms(method: str, family: str) -> None:
    assert check_on(family, catalog.load(method), min_tokens=4, **METHODS[method]) is None


@pytest.mark.parametrize("method", METHODS)
def test_keeping_all_is_bit_identical(method: str) -> None:
    tiny = tiny_pipeline("pixart")
    plain = run(tiny, batch=2)
    tiny.pipe.enable_plugin(method, min_tokens=2, **OFF[method])
    assert torch.equal(run(tiny, batch=2), plain)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, marks=[] if f in ("chroma", "ltx", "sd15") else [pytest.mark.slow])
        for f in FAMILIES
        if f != "zimage"
    ],
)
def test_every_family_is_reduced_per_sample_and_restored(family: str) -> None:
    tiny = tiny_pipeline(family)
    plain = run(tiny)
    tiny.pipe.enable_plugin("zipvl", mass=0.6, min_tokens=2)
    alone = run(tiny)
    report = tiny.pipe.plugin_report()
    if family in TOO_SMALL:
        assert "zipvl reduced nothing" in report.verdict
    else:
        assert not torch.equal(alone, plain) and "of the picture tokens in" in report.verdict
        assert 0 < report.flops_done < report.flops_full or "costs more" in report.verdict
    together = run(tiny, batch=2)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-4)
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny), plain)


def test_flops_are_those_that_torch_counts_on_the_plain_pipeline() -> None:
    tiny = tiny_pipeline("pixart")
    transformer = tiny.pipe.transformer
    given: list[Any] = []
    hook = transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    run(tiny, steps=2)
    hook.remove()
    args, kwargs = given[0]
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with torch.no_grad(), counter:
        transformer(*args, **kwargs)
    tiny.pipe.enable_plugin("tome", ratio=0.5)
    run(tiny, steps=4)
    report = tiny.pipe.plugin_report()
    full = counter.get_total_flops()
    assert report.flops_full == 3 * full, "the first call proves and is not counted"
    assert report.flops_done < 0.6 * report.flops_full


def test_dense_steps_are_left_alone() -> None:
    tiny = tiny_pipeline("pixart")
    plain = run(tiny, steps=4)
    tiny.pipe.enable_plugin("tome", ratio=0.5, dense_steps=4)
    assert torch.equal(run(tiny, steps=4), plain)
    assert "tome reduced nothing on transformer: no step was left" in str(
        tiny.pipe.plugin_report().verdict
    )


def test_short_sequences_are_left_alone_and_the_report_says_which_knob() -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.enable_plugin("tome", ratio=0.5, min_tokens=1000)
    run(tiny)
    assert "at most 256 picture tokens and min_tokens is 1000: lower min_tokens" in (
        tiny.pipe.plugin_report().verdict
    )


def test_it_works_inside_a_cache_and_is_exclusive_among_its_kind() -> None:
    tiny = tiny_pipeline("flux")
    tiny.pipe.enable_plugin("tome", ratio=0.5)
    tiny.pipe.enable_plugin("fora", interval=2)
    together = run(tiny, steps=6)
    assert torch.equal(run(tiny, steps=6), together)
    report = tiny.pipe.plugin_report()
    assert report.computed < report.total and any("tome kept 50%" in n for n in report.notes)
    with pytest.raises(Incompatible, match="the tokens plugin 'tome' is already active"):
        tiny.pipe.enable_plugin("evit")


def test_text_is_never_merged() -> None:
    """What comes in at a single-stream block has the text in front, and it goes through whole."""
    tiny = tiny_pipeline("flux")
    block = tiny.pipe.transformer.single_transformer_blocks[0].attn
    seen: list[tuple[int, ...]] = []
    texts: list[torch.Tensor] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(tuple(kwargs["hidden_states"].shape))
        texts.append(kwargs["hidden_states"][:, :16].clone())

    hook = block.register_forward_pre_hook(look, with_kwargs=True)
    tiny.pipe.enable_plugin("tome", ratio=0.5)
    run(tiny, steps=2)
    hook.remove()
    # Proved on the first call, in full and twice; then 16 text and 128 of 256 picture tokens.
    assert seen == [(1, 272, 32), (1, 272, 32), (1, 144, 32), (1, 144, 32)]
    assert torch.equal(texts[0], texts[2])


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("zimage", "takes a list of pictures and mixes picture and text in one sequence"),
    ],
)
def test_it_refuses_in_words(family: str, words: str) -> None:
    with pytest.raises(Incompatible, match=words):
        tiny_pipeline(family).pipe.enable_plugin("tome")


def test_compiled_blocks_are_refused() -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.transformer.transformer_blocks[0].compile(backend="eager")
    with pytest.raises(Incompatible, match="is compiled, which inlines the attention modules"):
        tiny.pipe.enable_plugin("tome")
