"""Plugins beside everything else people do to a pipeline: offload, LoRA, compile, copy, save,
ControlNet, IP-Adapter, other schedulers, diffusers' own caches.
"""

import copy
import functools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxPipeline,
)
from diffusers.models.embeddings import ImageProjection
from torch import Tensor, nn

from skipstep.plugins.errors import Incompatible
from skipstep.plugins.lifecycle import manager_of
from skipstep.testing import Tiny, run, tiny_pipeline
from skipstep.testing.tiny import random_model, seeded

CACHES: dict[str, dict[str, Any]] = {
    "easycache": {"threshold": 5.0, "warmup_steps": 2},
    "fbcache": {"threshold": 5.0, "warmup_steps": 2},
    "fora": {"interval": 3, "warmup_steps": 2},
}
CPU = torch.device("cpu")


@functools.cache
def cached_picture(family: str, name: str) -> Tensor:
    """Return the picture of a pipeline to which nothing but a cache was added."""
    tiny = tiny_pipeline(family)
    tiny.pipe.enable_plugin(name, **CACHES[name])
    picture = run(tiny, steps=6)
    assert "." in tiny.pipe.plugin_report().timeline()[tiny.denoiser]
    return picture


def offload(pipe: Any, how: str) -> None:
    """Switch one of the offload methods on, with the CPU as the accelerator."""
    if how == "model":
        pipe.enable_model_cpu_offload(device="cpu")
        return
    groups = {"num_blocks_per_group": 1} if how == "block_level" else {}
    pipe.transformer.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type=how, **groups
    )


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("how", ["model", "block_level", "leaf_level"])
@pytest.mark.parametrize("first", ["plugin", "offload"])
def test_offload_and_caches_in_both_orders(how: str, first: str, name: str) -> None:
    expected, plain = cached_picture("flux", name), run(tiny_pipeline("flux"), steps=6)
    tiny = tiny_pipeline("flux")
    if first == "offload":
        offload(tiny.pipe, how)
    tiny.pipe.enable_plugin(name, **CACHES[name])
    if first == "plugin":
        offload(tiny.pipe, how)
    for _ in range(2):
        assert torch.equal(run(tiny, steps=6), expected)
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny, steps=6), plain)
    if how == "model":
        run(tiny, steps=1)
        assert hasattr(tiny.pipe.transformer, "_hf_hook")
    else:
        registries = [getattr(m, "_diffusers_hook", None) for m in tiny.pipe.transformer.modules()]
        assert any(registry.hooks for registry in registries if registry is not None)


def lora(pipe: Any) -> dict[str, Tensor]:
    """Make a LoRA in memory: on an attention input and on a single block's joint output."""
    found = {}
    with seeded():
        for path in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_out"):
            layer = pipe.transformer.get_submodule(path)
            found[f"transformer.{path}.lora_A.weight"] = torch.randn(2, layer.in_features)
            found[f"transformer.{path}.lora_B.weight"] = torch.randn(layer.out_features, 2)
    return found


@pytest.mark.parametrize("name", CACHES)
def test_a_lora_may_come_and_go_under_a_plugin(name: str) -> None:
    tiny = tiny_pipeline("flux")
    plain = run(tiny, steps=6)
    without = cached_picture("flux", name)
    tiny.pipe.load_lora_weights(lora(tiny.pipe))
    styled = run(tiny, steps=6)
    tiny.pipe.enable_plugin(name, **CACHES[name])
    expected = run(tiny, steps=6)
    assert not torch.equal(styled, plain) and not torch.equal(expected, without)

    tiny = tiny_pipeline("flux")
    tiny.pipe.enable_plugin(name, **CACHES[name])
    assert torch.equal(run(tiny, steps=6), without)
    tiny.pipe.load_lora_weights(lora(tiny.pipe))
    assert torch.equal(run(tiny, steps=6), expected)
    tiny.pipe.unload_lora_weights()
    assert torch.equal(run(tiny, steps=6), without)
    tiny.pipe.load_lora_weights(lora(tiny.pipe))
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny, steps=6), styled)
    tiny.pipe.unload_lora_weights()
    assert torch.equal(run(tiny, steps=6), plain)


def test_a_lora_scale_survives_samples_that_part_ways() -> None:
    """A pass that is left in the middle must not leave the scale multiplied in."""
    tiny = tiny_pipeline("flux")
    tiny.pipe.load_lora_weights(lora(tiny.pipe))
    over: dict[str, Any] = {"joint_attention_kwargs": {"scale": 0.5}}
    singles = []
    for threshold in torch.linspace(0.02, 0.4, 20).tolist():
        tiny.pipe.enable_plugin("fbcache", threshold=threshold, warmup_steps=1)
        batch = run(tiny, steps=8, batch=3, **over)
        if "+" in tiny.pipe.plugin_report().timeline()["transformer"]:
            singles = [run(tiny, steps=8, seed=seed, **over) for seed in range(3)]
            break
    assert singles, "no threshold made the samples disagree"
    torch.testing.assert_close(batch, torch.cat(singles), rtol=0, atol=3e-5)


def graph_breaks() -> int:
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())


@pytest.fixture
def fresh_compiler() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("first", ["plugin", "compile"])
def test_compiled_blocks_stay_whole_graphs_in_both_orders(first: str) -> None:
    expected, plain = cached_picture("flux", "fbcache"), run(tiny_pipeline("flux"), steps=6)
    tiny = tiny_pipeline("flux")
    if first == "plugin":
        tiny.pipe.enable_plugin("fbcache", **CACHES["fbcache"])
    tiny.pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    if first == "compile":
        tiny.pipe.enable_plugin("fbcache", **CACHES["fbcache"])
    blocks = [*tiny.pipe.transformer.transformer_blocks]
    assert torch.equal(run(tiny, steps=6), expected)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    assert tiny.pipe.plugin_report().flops_done is None
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny, steps=6), plain)
    assert all(block._compiled_call_impl is not None for block in blocks)


@pytest.mark.parametrize("first", ["plugin", "compile"])
def test_modules_inside_compiled_blocks_are_refused(first: str) -> None:
    tiny = tiny_pipeline("flux")
    if first == "plugin":
        tiny.pipe.enable_plugin("fora")
    tiny.pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    with pytest.raises(Incompatible) as caught:
        run(tiny) if first == "plugin" else tiny.pipe.enable_plugin("fora")
    assert str(caught.value) == (
        "fora: transformer (FluxTransformer2DModel) has compiled blocks, which inline the modules "
        "this cache would skip: use a cache of whole blocks (enable_plugin('cache', "
        "gate='interval', span='residual')) or do not compile"
    )


@pytest.mark.usefixtures("fresh_compiler")
def test_a_model_compiled_as_a_whole_is_refused_for_blocks_and_served_for_outputs() -> None:
    tiny = tiny_pipeline("flux")
    tiny.pipe.enable_plugin("easycache", **CACHES["easycache"])
    expected = run(tiny, steps=6)
    tiny.pipe.disable_plugins()
    tiny.pipe.transformer.compile(backend="eager")
    compiled = tiny.pipe.transformer._compiled_call_impl
    with pytest.raises(Incompatible) as caught:
        tiny.pipe.enable_plugin("fbcache")
    assert str(caught.value) == (
        "fbcache: transformer (FluxTransformer2DModel) is compiled as a whole, which inlines the "
        "blocks this cache would skip: compile with "
        "pipe.transformer.compile_repeated_blocks(fullgraph=True) instead, or cache the output "
        "(enable_plugin('cache', span='output'))"
    )
    tiny.pipe.enable_plugin("easycache", **CACHES["easycache"])
    assert torch.equal(run(tiny, steps=6), expected)
    assert "." in tiny.pipe.plugin_report().timeline()["transformer"]
    tiny.pipe.disable_plugins()
    assert tiny.pipe.transformer._compiled_call_impl is compiled


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("how", ["method", "function"])
def test_compiling_as_a_whole_under_a_plugin_is_noticed_at_the_next_call(how: str) -> None:
    tiny = tiny_pipeline("flux")
    tiny.pipe.enable_plugin("easycache", **CACHES["easycache"])
    expected = run(tiny, steps=6)
    if how == "method":
        tiny.pipe.transformer.compile(backend="eager")
    else:
        tiny.pipe.transformer = torch.compile(tiny.pipe.transformer, backend="eager")
    assert torch.equal(run(tiny, steps=6), expected)
    assert len(tiny.pipe.plugin_report().calls) == 6
    tiny.pipe.disable_plugins()

    tiny = tiny_pipeline("flux")
    tiny.pipe.enable_plugin("fbcache")
    tiny.pipe.transformer.compile(backend="eager")
    with pytest.raises(Incompatible, match="is compiled as a whole"):
        run(tiny, steps=6)
    tiny.pipe.disable_plugins()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
@pytest.mark.parametrize("name", CACHES)
def test_copies_and_pickles_of_a_pipeline_are_plain(name: str, copied: Any) -> None:
    tiny = tiny_pipeline("flux")
    plain = run(tiny, steps=6)
    tiny.pipe.enable_plugin(name, **CACHES[name])
    picture = run(tiny, steps=6)
    twin = Tiny(copied(tiny.pipe), tiny.call, tiny.denoiser, tiny.guidance)
    assert manager_of(twin.pipe) is None
    assert torch.equal(run(twin, steps=6), plain)
    twin.pipe.transformer.proj_out.weight.data.zero_()
    assert not torch.equal(run(twin, steps=6), plain)
    assert torch.equal(run(tiny, steps=6), picture)


def test_saved_pipelines_carry_no_trace(tmp_path: Path) -> None:
    tiny = tiny_pipeline("flux")
    plain = run(tiny, steps=6)
    tiny.pipe.save_pretrained(tmp_path / "before")
    tiny.pipe.enable_plugin("fbcache")
    tiny.pipe.enable_plugin("scheduler", scheduler="FlowMatchHeunDiscreteScheduler")
    tiny.pipe.save_pretrained(tmp_path / "after")
    names = {p.relative_to(tmp_path / "before") for p in (tmp_path / "before").rglob("*")}
    assert {p.relative_to(tmp_path / "after") for p in (tmp_path / "after").rglob("*")} == names
    for name in sorted(name for name in names if (tmp_path / "before" / name).is_file()):
        before = (tmp_path / "before" / name).read_bytes()
        assert (tmp_path / "after" / name).read_bytes() == before, name
    pipe = FluxPipeline.from_pretrained(tmp_path / "after")
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(run(Tiny(pipe, tiny.call, "transformer", "distilled"), steps=6), plain)


def test_a_pipeline_may_change_its_type_under_a_plugin() -> None:
    tiny = tiny_pipeline("flux")
    tiny.pipe.enable_plugin("fbcache", **CACHES["fbcache"])
    run(tiny, steps=6)
    tiny.pipe.to(torch.bfloat16)
    first = run(tiny, steps=6)
    assert torch.equal(first, run(tiny, steps=6))
    other = tiny_pipeline("flux")
    other.pipe.to(torch.bfloat16)
    other.pipe.enable_plugin("fbcache", **CACHES["fbcache"])
    assert torch.equal(run(other, steps=6), first)


def flux_controlnet() -> Tiny:
    """Build a Flux pipeline with a ControlNet that has something to say."""
    tiny = tiny_pipeline("flux")
    controlnet = random_model(
        FluxControlNetModel,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    with seeded():
        for name, weight in controlnet.named_parameters():
            if name.startswith("controlnet_"):
                nn.init.normal_(weight, std=0.2)
        picture = torch.rand(1, 3, 32, 32)
    parts = {k: v for k, v in tiny.pipe.components.items() if v is not None}
    pipe = FluxControlNetPipeline(controlnet=controlnet, **parts)
    pipe.set_progress_bar_config(disable=True)
    call = dict(tiny.call, control_image=picture, controlnet_conditioning_scale=0.7)
    return Tiny(pipe, call, "transformer", "distilled")


@pytest.mark.parametrize("name", ["fbcache", "easycache"])
def test_a_flux_controlnet_is_exact_when_nothing_is_skipped(name: str) -> None:
    tiny = flux_controlnet()
    plain = run(tiny, steps=6)
    off = dict(tiny.call, controlnet_conditioning_scale=0.0)
    assert not torch.equal(run(Tiny(tiny.pipe, off, "transformer", "distilled"), steps=6), plain)
    tiny.pipe.enable_plugin(name, threshold=0)
    assert torch.equal(run(tiny, steps=6), plain)
    tiny.pipe.enable_plugin(name, threshold=5, warmup_steps=1)
    assert torch.equal(run(tiny, steps=6), run(tiny, steps=6))
    assert "." in tiny.pipe.plugin_report().timeline()["transformer"]
    assert [call.denoiser for call in tiny.pipe.plugin_report().calls] == ["transformer"] * 6


@pytest.mark.parametrize("name", ["deepcache", "easycache", "fora"])
def test_a_unet_controlnet_is_exact_when_nothing_is_skipped(name: str) -> None:
    tiny = tiny_pipeline("sd15_controlnet")
    plain = run(tiny, steps=6)
    never = {"threshold": 0} if name == "easycache" else {"interval": 1}
    tiny.pipe.enable_plugin(name, **never)
    assert torch.equal(run(tiny, steps=6), plain)
    assert tiny.pipe.plugin_report().computed == 12


class Shift(nn.Module):
    """A block that adds a constant."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = nn.Linear(1, 1)
        nn.init.constant_(self.amount.bias, amount)
        nn.init.zeros_(self.amount.weight)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.amount.bias


class Controlled(nn.Module):
    """Four constant blocks, with something new added between them at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Shift(2.0**j) for j in range(4))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        for j, block in enumerate(self.blocks):
            hidden_states = block(hidden_states)
            if j < 3:
                hidden_states = hidden_states + torch.sin(timestep) * (j + 1)
        return hidden_states


class ControlledPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A pipeline around it."""

    def __init__(self, transformer: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, steps: int = 8) -> Tensor:
        self.scheduler.set_timesteps(steps)
        x = torch.ones(2, 3)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.transformer(x, t), t, x).prev_sample
        return x


@pytest.mark.parametrize("gate", ["interval", "first_block"])
def test_what_is_added_between_blocks_is_not_cached_but_added_fresh(gate: str) -> None:
    """The blocks add constants, so a cache that repeats only them is exact, whatever the control
    adds between them.
    """
    pipe = ControlledPipeline(Controlled(), FlowMatchEulerDiscreteScheduler())
    plain = pipe()
    pipe.enable_plugin("cache", gate=gate, span="residual", warmup_steps=1, max_skips=3)
    torch.testing.assert_close(pipe(), plain)
    assert pipe.plugin_report().timeline()["transformer"].count(".") >= 4


@pytest.mark.parametrize("name", ["deepcache", "easycache", "fora"])
def test_an_ip_adapter_may_come_under_a_plugin(name: str) -> None:
    tiny = tiny_pipeline("sd15")
    options = {"interval": 1} if name != "easycache" else {"threshold": 0}
    tiny.pipe.enable_plugin(name, **options)
    run(tiny, steps=4)
    tiny.pipe.unet._load_ip_adapter_weights([ip_adapter(tiny.pipe.unet)])
    with seeded():
        pictures = [torch.randn(2, 1, 32)]
    exact = run(tiny, steps=4, ip_adapter_image_embeds=pictures)
    assert len(tiny.pipe.plugin_report().calls) == 4
    with tiny.pipe.plugins_off():
        assert torch.equal(run(tiny, steps=4, ip_adapter_image_embeds=pictures), exact)
        other = run(tiny, steps=4, ip_adapter_image_embeds=[-pictures[0]])
    assert not torch.equal(other, exact)
    eager = {"interval": 2} if name != "easycache" else {"threshold": 5.0}
    tiny.pipe.enable_plugin(name, warmup_steps=1, **eager)
    first = run(tiny, steps=6, ip_adapter_image_embeds=pictures)
    assert "." in tiny.pipe.plugin_report().timeline()["unet"]
    assert torch.equal(first, run(tiny, steps=6, ip_adapter_image_embeds=pictures))


def ip_adapter(unet: Any) -> dict[str, dict[str, Tensor]]:
    """Make the weights of an IP-Adapter in memory."""
    width, widths = unet.config.cross_attention_dim, unet.config.block_out_channels
    layers: dict[str, Tensor] = {}
    with seeded():
        projection = ImageProjection(32, cross_attention_dim=width, num_image_text_embeds=4)
        crossed = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
        for number, name in enumerate(crossed):
            where, _, rest = name.partition(".")
            level = int(rest.split(".")[0]) if where != "mid_block" else -1
            channels = (widths[::-1] if where == "up_blocks" else widths)[level]
            for part in ("k", "v"):
                layers[f"{2 * number + 1}.to_{part}_ip.weight"] = torch.randn(channels, width)
    names = {"proj": "image_embeds", "norm": "norm"}
    state = projection.state_dict()
    picture = {f"{a}.{k}": state[f"{b}.{k}"] for a, b in names.items() for k in ("weight", "bias")}
    return {"image_proj": picture, "ip_adapter": layers}


def test_context_parallel_allows_gates_that_look_at_the_step_only() -> None:
    tiny = tiny_pipeline("flux")
    tiny.pipe.transformer._parallel_config = object()
    refused = {
        "easycache": "gate 'easycache'",
        "fbcache": "gate 'first_block'",
        "speca": "gate 'speca'",
        "adacache": "gate 'adacache'",
        "foresight": "span 'layers'",
    }
    for name, part in refused.items():
        with pytest.raises(Incompatible) as caught:
            tiny.pipe.enable_plugin(name)
        assert str(caught.value) == (
            f"{name}: transformer (FluxTransformer2DModel) runs in context parallel and {part} "
            "would decide on each rank alone, which deadlocks when ranks disagree: use a gate that "
            "looks at the step ('interval', 'schedule') and a span that does not decide "
            "('residual', 'modules')"
        )
    assert tiny.pipe.enable_plugin("fora").is_attached


def test_meta_tensors_are_refused() -> None:
    tiny = tiny_pipeline("flux")
    tiny.pipe.transformer.to("meta")
    with pytest.raises(Incompatible) as caught:
        tiny.pipe.enable_plugin("easycache")
    assert str(caught.value) == (
        "easycache: transformer (FluxTransformer2DModel) still has meta tensors, so it cannot run: "
        "load its weights first (from_pretrained, or to_empty and load_state_dict)"
    )


def test_diffusers_own_cache_is_refused_before_and_after() -> None:
    tiny = tiny_pipeline("flux")
    text = (
        "easycache: diffusers' own cache is enabled on transformer (FluxTransformer2DModel): "
        "call pipe.transformer.disable_cache() first"
    )
    tiny.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(Incompatible) as caught:
        tiny.pipe.enable_plugin("easycache")
    assert str(caught.value) == text
    tiny.pipe.transformer.disable_cache()
    tiny.pipe.enable_plugin("easycache")
    run(tiny)
    tiny.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(Incompatible) as caught:
        run(tiny)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("family", "scheduler", "cache"),
    [
        ("flux", "FlowMatchLCMScheduler", "fbcache"),
        ("sdxl", "HeunDiscreteScheduler", "deepcache"),
        ("sd15", "UniPCMultistepScheduler", "easycache"),
    ],
)
def test_a_scheduler_plugin_lasts_for_the_run_only(family: str, scheduler: str, cache: str) -> None:
    tiny = tiny_pipeline(family)
    own, config = tiny.pipe.scheduler, json.dumps(tiny.pipe.config, default=str)
    plain = run(tiny, steps=5)
    names = []

    def look(pipe: Any, *_: Any) -> dict[str, Any]:
        names.append(type(pipe.scheduler).__name__)
        return {}

    tiny.pipe.enable_plugin("scheduler", scheduler=scheduler)
    tiny.pipe.enable_plugin(cache, warmup_steps=1)
    # The LCM scheduler draws its noise from torch's own generator.
    torch.manual_seed(0)
    swapped = run(tiny, steps=5, callback_on_step_end=look)
    assert set(names) == {scheduler}
    assert not torch.equal(swapped, plain)
    assert tiny.pipe.scheduler is own
    torch.manual_seed(0)
    assert torch.equal(run(tiny, steps=5), swapped)
    assert json.dumps(tiny.pipe.config, default=str) == config

    def fail(*_: Any) -> dict[str, Any]:
        raise OSError("in the middle")

    with pytest.raises(OSError, match="in the middle"):
        run(tiny, steps=5, callback_on_step_end=fail)
    assert tiny.pipe.scheduler is own and "step" not in vars(own)
    torch.manual_seed(0)
    assert torch.equal(run(tiny, steps=5), swapped)
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny, steps=5), plain)
    assert tiny.pipe.scheduler is own


def test_a_scheduler_given_after_the_plugin_is_the_one_that_comes_back() -> None:
    tiny = tiny_pipeline("sdxl")
    tiny.pipe.enable_plugin("scheduler", scheduler="DDIMScheduler")
    run(tiny, steps=2)
    mine = EulerDiscreteScheduler.from_config(tiny.pipe.scheduler.config)
    tiny.pipe.scheduler = mine
    run(tiny, steps=2)
    assert tiny.pipe.scheduler is mine
