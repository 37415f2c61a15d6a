"""Text key/value reuse: the same picture to the bit, each projection once, refusals in words."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skipstep.caching.textkv import TextKV, identity
from skipstep.plugins.errors import Incompatible
from skipstep.testing import run, tiny_pipeline
from tests.test_oracles import enabled, exchanged


def projections(model: nn.Module) -> list[nn.Linear]:
    """List the linear layers that make keys and values of the text, by their names."""
    return [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.endswith(("attn2.to_k", "attn2.to_v"))
    ]


@pytest.mark.parametrize(("family", "branches"), [("pixart", 1), ("wan", 2), ("sdxl", 1)])
def test_every_projection_runs_once_per_run_and_branch(family: str, branches: int) -> None:
    tiny = tiny_pipeline(family)
    layers = projections(getattr(tiny.pipe, tiny.denoiser))
    expected = run(tiny)
    with enabled(tiny, TextKV()) as handle:
        for _ in range(2):
            calls = [0]

            def count(*_: object, calls: list[int] = calls) -> None:
                calls[0] += 1

            hooks = [layer.register_forward_hook(count) for layer in layers]
            assert torch.equal(run(tiny), expected)
            for hook in hooks:
                hook.remove()
            assert calls == [branches * len(layers)]
        assert "textkv reused" in handle.report().notes[0]
        assert handle.report().bytes_held > 0
    assert layers


@pytest.mark.parametrize(("family", "cache"), [("pixart", "fora"), ("wan", "fbcache")])
def test_beside_a_cache_the_picture_is_that_of_the_cache(family: str, cache: str) -> None:
    tiny = tiny_pipeline(family)
    with enabled(tiny, TextKV()):
        tiny.pipe.enable_plugin(cache, warmup_steps=2)
        found = run(tiny, steps=6, batch=2)
        assert any("textkv reused" in note for note in tiny.pipe.plugin_report().notes)
    expected = run(tiny, steps=6, batch=2)
    assert torch.equal(found, expected)


def test_a_prompt_that_is_changed_in_place_is_projected_again() -> None:
    tiny = tiny_pipeline("pixart")

    def fading(original: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["encoder_hidden_states"].mul_(0.9)
        return original(*args, **kwargs)

    with exchanged(tiny.pipe.transformer, fading):
        expected = run(tiny)
        with enabled(tiny, TextKV()):
            assert torch.equal(run(tiny), expected)
    assert not torch.equal(expected, run(tiny))


def test_identity_is_the_memory_and_its_version() -> None:
    x = torch.zeros(2, 3)
    assert identity(x) == identity(x.view(2, 3)) == identity(x.detach())
    assert identity(x) != identity(x[:1])
    assert identity(x) != identity(x.clone())
    before = identity(x)
    x[0] += 1
    assert identity(x) != before
    with torch.inference_mode():
        assert identity(torch.zeros(2)) is None


def test_no_more_entries_are_held_than_allowed() -> None:
    """One entry for two branches: each drives the other out, and the picture is the same."""
    tiny = tiny_pipeline("wan")
    expected = run(tiny)
    held = []
    for entries in (1, 4):
        with enabled(tiny, TextKV(entries=entries)) as handle:
            assert torch.equal(run(tiny), expected)
            held.append(handle.report().bytes_held)
    assert held[0] == held[1] / 2


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_models_without_cross_attention_are_refused(family: str) -> None:
    tiny = tiny_pipeline(family)
    with pytest.raises(Incompatible, match="has no cross-attention: its text takes part in every"):
        tiny.pipe.enable_plugin("textkv")


def test_compiled_models_are_refused() -> None:
    tiny = tiny_pipeline("pixart")
    for block in tiny.pipe.transformer.transformer_blocks:
        block.compile(backend="eager")
    with pytest.raises(Incompatible, match="is compiled, which inlines the layers"):
        tiny.pipe.enable_plugin("textkv")


def test_random_layers_are_left_alone() -> None:
    """In training mode a projection may have dropout behind it, so nothing is reused."""
    tiny = tiny_pipeline("pixart")
    tiny.pipe.transformer.train()
    seen: list[Tensor] = []
    layer = projections(tiny.pipe.transformer)[0]
    hook = layer.register_forward_hook(lambda *args: seen.append(args[2]))
    with enabled(tiny, TextKV()):
        run(tiny)
    hook.remove()
    assert len(seen) == 4
