"""Attention is reached on every family, eager and compiled, and left as it was found."""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from skipstep.plugins.attention.methods.recycled import Recycled
from skipstep.plugins.attention.methods.sparge import Sparge
from skipstep.plugins.attention.reach import points_in
from skipstep.plugins.errors import Incompatible
from skipstep.testing import FAMILIES, Tiny, run, tiny_pipeline
from skipstep.testing.conformance import CHECKED_ON, check_on
from skipstep.testing.presets import splitting_threshold
from skipstep.testing.state import attributes, changes

ALL: dict[str, Any] = {
    "block_q": 8,
    "block_k": 4,
    "force": True,
    "dense_steps": 0,
    "dense_layers": 0,
}
SPARSE: dict[str, Any] = {**ALL, "keep": 0.25}
# Chroma's mask adds one to the logits of what it keeps, which is no padding.
NEVER_SPARSE = {"chroma"}
# A few tokens beside a text of as many: with the text kept, nothing is left to leave out.
TOO_SMALL = {"wan", "mochi", "cogvideox", "hunyuanvideo"}
# What a family needs to be told, and blocks for its many tokens.
ASKED: dict[str, dict[str, Any]] = {
    "zimage": {"text": "after"},
    "sd3": {"block_q": 128, "block_k": 64},
}
DEFAULT = ("flux", "sd3", "cogvideox", "sd15", "ltx", "qwenimage")


def families() -> list[Any]:
    """List the families; those that repeat a way of reaching attention are slow."""
    return [
        pytest.param(family, marks=[] if family in DEFAULT else [pytest.mark.slow])
        for family in FAMILIES
    ]


@functools.cache
def tiny_of(family: str) -> Tiny:
    return tiny_pipeline(family)


@functools.cache
def plain(family: str) -> Tensor:
    return run(tiny_of(family), steps=2)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Demand that no test leaves a plugin or a switch of the process behind."""
    before = _AttentionBackendRegistry._active_backend
    yield
    assert _AttentionBackendRegistry._active_backend is before


@pytest.mark.parametrize("family", families())
def test_keeping_everything_gives_the_dense_picture(family: str) -> None:
    tiny = tiny_of(family)
    with_plugin(tiny, Sparge(**{**ALL, "keep": 1.0, **ASKED.get(family, {})}))
    found, report = run(tiny, steps=2), tiny.pipe.plugin_report()
    tiny.pipe.disable_plugins()
    torch.testing.assert_close(found, plain(family), atol=2e-3, rtol=0)
    sparse = sum(layer.sparse for layer in report.attention)
    assert sparse == (0 if family in NEVER_SPARSE else sum(x.calls for x in report.attention))
    assert report.attention


@pytest.mark.parametrize("family", families())
def test_sparse_runs_are_equal_and_disabling_is_exact(family: str) -> None:
    tiny = tiny_of(family)
    expected = plain(family)
    before = attributes(tiny.pipe)
    run(tiny, steps=2)
    of_a_run = changes(before, attributes(tiny.pipe))
    with_plugin(tiny, sparse(family))
    first, second = run(tiny, steps=2), run(tiny, steps=2)
    report = tiny.pipe.plugin_report()
    tiny.pipe.disable_plugins()
    assert torch.equal(first, second)
    if family not in NEVER_SPARSE | TOO_SMALL:
        assert not torch.equal(first, expected)
        assert "Attention was sparse in" in report.verdict
    left = [name for name in changes(before, attributes(tiny.pipe)) if name not in of_a_run]
    assert not left
    assert torch.equal(run(tiny, steps=2), expected)


def sparse(family: str, **options: Any) -> Sparge:
    """Build a plugin that is sparse on a tiny model of this family."""
    return Sparge(**{**SPARSE, **ASKED.get(family, {}), **options})


def with_plugin(tiny: Tiny, plugin: Any) -> None:
    tiny.pipe.enable_plugin(plugin)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_processors_are_ours_only_inside_a_denoiser_call(family: str) -> None:
    tiny = tiny_of(family)
    denoiser = getattr(tiny.pipe, tiny.denoiser)
    points, unknown = points_in(denoiser)
    assert points and not unknown

    def states() -> list[Any]:
        return [(type(p.processor), dict(vars(p.processor))) for p in points]

    before, inside = states(), []
    hook = denoiser.register_forward_pre_hook(lambda *_: inside.append(states()))
    with_plugin(tiny, sparse(family))
    run(tiny, steps=2)
    hook.remove()
    tiny.pipe.disable_plugins()
    assert len(inside) >= 2 and all(found != before for found in inside)
    assert states() == before


def test_the_backend_a_user_chose_stays_in_use_and_comes_back() -> None:
    tiny = tiny_pipeline("flux")
    tiny.pipe.transformer.set_attention_backend("_native_math")
    try:
        expected = run(tiny, steps=2)
        with_plugin(tiny, Sparge())  # dense: it is too small
        assert torch.equal(run(tiny, steps=2), expected)
        tiny.pipe.disable_plugins()
        chosen = {p.processor._attention_backend for p in points_in(tiny.pipe.transformer)[0]}
        assert chosen == {AttentionBackendName._NATIVE_MATH}
    finally:
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def test_another_model_attends_as_before_while_one_is_sparse() -> None:
    tiny, other = tiny_pipeline("flux"), tiny_pipeline("flux")
    expected = run(other, steps=2)
    seen: list[Tensor] = []

    def nested(*_: Any) -> None:
        if not seen:
            seen.append(run(other, steps=2))

    with_plugin(tiny, Sparge(**SPARSE))
    hook = tiny.pipe.transformer.transformer_blocks[1].register_forward_pre_hook(nested)
    run(tiny, steps=2)
    hook.remove()
    assert torch.equal(seen[0], expected)


def test_a_copy_made_while_it_runs_is_plain() -> None:
    """A processor that is ours at that moment does in the copy what it always did."""
    tiny = tiny_pipeline("sd3")
    copies: list[Any] = []
    with_plugin(tiny, sparse("sd3"))
    block = tiny.pipe.transformer.transformer_blocks[0]
    hook = block.register_forward_pre_hook(
        lambda *_: copies.append(copy.deepcopy(tiny.pipe.transformer)) if not copies else None
    )
    run(tiny, steps=2)
    hook.remove()
    tiny.pipe.disable_plugins()
    expected = run(tiny, steps=2)
    tiny.pipe.transformer = copies[0]
    assert torch.equal(run(tiny, steps=2), expected)


@pytest.mark.parametrize(
    "family",
    ["flux", "sd3", *(pytest.param(f, marks=pytest.mark.slow) for f in ("pixart", "wan", "sd15"))],
)
def test_compiled_blocks_stay_one_graph_and_give_the_eager_picture(family: str) -> None:
    tiny = tiny_pipeline(family)
    with_plugin(tiny, sparse(family))
    expected = run(tiny, steps=2)
    layers = len(tiny.pipe.plugin_report().attention)
    tiny.pipe.disable_plugins()
    denoiser = getattr(tiny.pipe, tiny.denoiser)
    if denoiser._repeated_blocks:
        denoiser.compile_repeated_blocks(fullgraph=True, backend="eager")
    else:
        for block in denoiser.transformer_blocks[:2]:
            block.compile(fullgraph=True, backend="aot_eager")
    plain_compiled = run(tiny, steps=2)
    with_plugin(tiny, sparse(family))
    found, report = run(tiny, steps=2), tiny.pipe.plugin_report()
    tiny.pipe.disable_plugins()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    calls = 2 if family != "wan" else 4
    assert [layer.sparse for layer in report.attention] == [calls] * layers
    assert torch.equal(run(tiny, steps=2), plain_compiled)


def test_a_model_compiled_as_a_whole_is_refused_in_words() -> None:
    tiny = tiny_pipeline("dit")
    tiny.pipe.transformer.compile(backend="eager")
    with pytest.raises(Incompatible, match="compiled as a whole.*compile_repeated_blocks"):
        tiny.pipe.enable_plugin("sparge")


def test_processors_that_attend_in_their_own_way_are_refused_in_words() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    tiny = tiny_pipeline("sd15")
    tiny.pipe.unet.set_attn_processor(AttnProcessor())
    with pytest.raises(Incompatible, match=r"\(AttnProcessor\).*set_default_attn_processor"):
        tiny.pipe.enable_plugin("sparge")


@pytest.mark.parametrize("name", ["radial", "svg1"])
def test_methods_about_time_refuse_models_of_pictures(name: str) -> None:
    with pytest.raises(Incompatible, match=rf"{name}: .*makes images.*use it for video"):
        tiny_of("flux").pipe.enable_plugin(name)


def test_small_pictures_stay_dense_and_the_verdict_says_so() -> None:
    tiny = tiny_of("flux")
    with_plugin(tiny, Sparge(dense_steps=0, dense_layers=0))
    assert torch.equal(run(tiny, steps=2), plain("flux"))
    verdict = tiny.pipe.plugin_report().verdict
    tiny.pipe.disable_plugins()
    assert "Attention was dense in all of its 8 calls" in verdict
    assert "272 tokens stayed dense, which is faster for so few; force=True" in verdict


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dense_steps": 5}, "the first 5 of 2 steps stay dense; lower dense_steps"),
        ({"dense_layers": 9}, "the first 9 of 4 layers stay dense; lower dense_layers"),
        ({"grid": (1, 40, 40)}, "fewer than the 1 x 40 x 40 of the picture; give grid="),
    ],
)
def test_what_keeps_it_dense_is_named_with_its_knob(options: dict[str, Any], words: str) -> None:
    tiny = tiny_of("flux")
    with_plugin(tiny, Sparge(**{**SPARSE, **options}))
    run(tiny, steps=2)
    verdict = tiny.pipe.plugin_report().verdict
    tiny.pipe.disable_plugins()
    assert words in verdict


def test_where_text_cannot_be_found_the_user_is_told_what_to_pass() -> None:
    tiny = tiny_of("zimage")
    with_plugin(tiny, Sparge(**SPARSE))
    run(tiny, steps=2)
    verdict = tiny.pipe.plugin_report().verdict
    tiny.pipe.disable_plugins()
    assert 'give text="before" or text="after"' in verdict


@pytest.mark.parametrize(("family", "is_first"), [("flux", True), ("sd3", False), ("pixart", None)])
def test_a_block_is_asked_where_its_text_stands(family: str, is_first: bool | None) -> None:
    """What is kept tells: it is what is kept where the user says so, and not what is otherwise."""
    tiny = tiny_of(family)
    told = {True: "before", False: "after", None: None}[is_first]
    other = {True: "after", False: "before", None: None}[is_first]
    found = []
    for text in (None, told, other):
        with_plugin(tiny, sparse(family, text=text))
        run(tiny, steps=1 + (family == "pixart"))
        found.append(tiny.pipe.plugin_report().attention)
    tiny.pipe.disable_plugins()
    assert found[0] == found[1]
    assert (found[0] == found[2]) == (is_first is None)


def test_a_cache_skips_around_it_and_both_report() -> None:
    tiny = tiny_of("pixart")
    tiny.pipe.enable_plugin("fora", interval=2, warmup_steps=1)
    with_plugin(tiny, Sparge(**SPARSE))
    first, second = run(tiny, steps=6), run(tiny, steps=6)
    report = tiny.pipe.plugin_report()
    tiny.pipe.disable_plugins()
    assert torch.equal(first, second)
    assert report.computed < report.total
    assert "Skipped" in report.verdict and "Attention was sparse in" in report.verdict
    assert [layer.layer for layer in report.attention] == [0, 1, 2, 3]
    assert all(layer.calls == report.computed // 2 for layer in report.attention)


def test_a_cache_that_splits_a_batch_mixes_no_samples_masks() -> None:
    """A mask recycled in a pass of some samples could be another sample's; there it is dense."""
    tiny = tiny_pipeline("dit")
    threshold = splitting_threshold("fbcache", tiny, steps=6, batch=2)
    tiny.pipe.enable_plugin("fbcache", threshold=threshold, warmup_steps=2, final_steps=1)
    with_plugin(tiny, Recycled(**{**ALL, "block_q": 2, "block_k": 2}, keep=0.5, interval=100))
    run(tiny, steps=6, batch=2)
    report = tiny.pipe.plugin_report()
    marks = "".join(report.timeline().values())
    assert "+" in marks, "no batch was split, so the test proves nothing"
    for layer in report.attention[1:]:  # the first block sees every sample
        assert layer.sparse == marks.count("#") - 1
        assert layer.calls - layer.sparse == 1 + marks.count("+")


CONFORMING = {("flux", "sparge")}


def preset_cells() -> list[Any]:
    """List every preset on every family of the kit; one is in the default run."""
    from skipstep.plugins.attention.block_sparse import METHODS

    return [
        pytest.param(f, n, marks=[] if (f, n) in CONFORMING else [pytest.mark.slow])
        for n in [*METHODS, "block_sparse"]
        for f in CHECKED_ON
    ]


@pytest.mark.parametrize(("family", "name"), preset_cells())
def test_every_preset_conforms(family: str, name: str) -> None:
    from skipstep.plugins import catalog

    small = {"sta": {"tile": (1, 2, 4)}, "nabla": {"tile": (1, 2, 4)}, "draft": {"tile": (1, 2, 4)}}
    block = 4 if family == "wan" else 32
    options = {**SPARSE, "block_q": block, "block_k": block, **small.get(name, {})}
    why = check_on(family, catalog.load(name), **options)
    needs_frames = name in ("radial", "svg1") and family != "wan"
    assert (why is None) != needs_frames
    assert why is None or "makes images" in why
