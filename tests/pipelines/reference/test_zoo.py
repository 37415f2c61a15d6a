"""The reference zoo: recipes are checked, losses are what they say, pipelines are stock classes."""

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, DiffusionPipeline, FluxPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from skipstep.pipelines.compare.run import own_text_score
from skipstep.pipelines.metrics.efficientnet import load_features
from skipstep.pipelines.metrics.text import text_score
from skipstep.pipelines.reference import load, load_reference, video_autoencoder
from skipstep.pipelines.reference import train as training
from skipstep.pipelines.reference.batch import Batch
from skipstep.pipelines.reference.clips import clip_file, sample_frames
from skipstep.pipelines.reference.data import Pictures, store_pictures
from skipstep.pipelines.reference.examples import Examples, examples_file, load_examples
from skipstep.pipelines.reference.families import FAMILIES
from skipstep.pipelines.reference.finer import finer_patches
from skipstep.pipelines.reference.joint import pack, positions
from skipstep.pipelines.reference.load import find_weights, new_reference, trained_names
from skipstep.pipelines.reference.plain_attention import plain_attention
from skipstep.pipelines.reference.recipe import (
    RECIPES,
    Recipe,
    digest,
    find_recipe,
    load_recipe,
    recipe_names,
)
from skipstep.pipelines.reference.sheets import draw_sheet
from skipstep.pipelines.reference.train import Trainer, train
from skipstep.pipelines.reference.unet import SCHEDULE, velocity_loss
from skipstep.plugins.errors import PluginError
from skipstep.testing.families import tiny_pipeline

# What makes a recipe's denoiser tiny, by family.
TINY: dict[str, dict[str, Any]] = {
    "pixart": {"num_layers": 1, "num_attention_heads": 1, "cross_attention_dim": 64},
    "unet": {"block_out_channels": [16, 16, 16], "attention_head_dim": 1, "norm_num_groups": 8},
    "flux": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1},
    "wan": {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 64, "ffn_dim": 64},
}


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> None:
    """Let each test choose its precision: accelerate keeps the first choice of a process."""
    AcceleratorState._reset_state()


PICTURES = ("picture", "picture256", "hightoken", "unet", "joint")


def tiny(name: str, latents: int = 8, minutes: float = 10.0) -> Recipe:
    """Return a recipe of `recipes/` with a tiny denoiser, small pictures and two to a batch."""
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    sizes = {"sample_size": latents} if "sample_size" in recipe.denoiser else {}
    return dataclasses.replace(
        recipe,
        denoiser={**recipe.denoiser, **TINY[recipe.family], **sizes},
        data=dataclasses.replace(recipe.data, size=8 * latents, names="pizza"),
        training=dataclasses.replace(
            recipe.training, batch=2, minutes=minutes, compile_blocks=False, begin_with=""
        ),
    )


def some_examples(latents: int = 8) -> Examples:
    torch.manual_seed(0)
    return Examples(
        latents=torch.randn(3, 12, 2, 16, latents, latents).half(),
        flippable=torch.tensor([1, 1, 0]),
        captions=torch.ones(3, 12, 3, dtype=torch.long),
        text=torch.randn(2, 16, 384).bfloat16(),
        mask=torch.ones(2, 16, dtype=torch.long),
        pooled=torch.randn(2, 384).bfloat16(),
    )


@pytest.mark.parametrize("name", PICTURES)
def test_untrained_denoisers_predict_zero_so_the_loss_is_the_variance_of_the_target(
    name: str,
) -> None:
    torch.set_num_threads(1)
    recipe = tiny(name)
    family = FAMILIES[recipe.family]
    generator = torch.Generator().manual_seed(1)
    batch = Batch(
        torch.randn(64, 16, 8, 8, generator=generator),
        torch.randn(64, 16, 384, generator=generator),
        torch.ones(64, 16, dtype=torch.long),
        torch.randn(64, 384, generator=generator),
    )
    loss = family.loss(family.new(recipe.denoiser), batch, generator)
    # eps - x_0 has variance 2; v is a rotation of (x_0, eps) and has variance 1.
    expected = 1.0 if recipe.family == "unet" else 2.0
    assert loss.item() == pytest.approx(expected, abs=0.05 * expected)


@pytest.mark.parametrize("name", PICTURES)
def test_two_steps_move_the_weights_and_the_average_draws(name: str) -> None:
    torch.set_num_threads(1)
    recipe = tiny(name)
    trainer = Trainer(recipe, Accelerator(cpu=True, mixed_precision="no"))
    before = trainer.averaged()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        assert math.isfinite(trainer.step(some_examples(), generator, 1.0))
    after = trainer.averaged()
    assert any((after[key] != before[key]).any() for key in before)
    pipeline = new_reference(recipe, after)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a pizza, 3d style", num_inference_steps=2).images[0]
    assert image.size == (64, 64)


def test_clips_go_from_the_autoencoder_through_training_to_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    small = {**video_autoencoder.CONFIG, "base_dim": 8, "latents_mean": [0.5] * 8}
    autoencoder = video_autoencoder.new_video_autoencoder(small).eval()
    save_file(autoencoder.state_dict(), tmp_path / "video-autoencoder-v1.safetensors")
    config = {**small, "_class_name": "AutoencoderKLWan"}
    (tmp_path / "video-autoencoder-v1.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr(load, "ZOO", tmp_path)
    recipe = load_recipe(RECIPES / "video.yaml")
    recipe = dataclasses.replace(
        recipe,
        denoiser={**recipe.denoiser, **TINY["wan"]},
        data=dataclasses.replace(recipe.data, size=32, frames=5, names="pizza"),
        training=dataclasses.replace(recipe.training, batch=2, compile_blocks=False),
    )
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (1, 5, 32, 32, 4), dtype=np.uint8)
    store_pictures(tmp_path / clip_file(32, 5), Pictures(["pizza"], pixels))
    examples = load_examples(recipe.data, tmp_path)
    assert examples.latents.shape == (1, 12, 2, 8, 3, 8, 8)
    x = video_autoencoder.clips_to_tensor(
        Pictures(["pizza"], pixels).composite(np.array([0]), (255, 255, 255))
    )
    with torch.no_grad():
        mean = autoencoder.encode(x).latent_dist.mean
    # Encoded in bfloat16 where the hardware has it.
    torch.testing.assert_close(
        examples.latents[0, 0, 0].float(), mean[0] - 0.5, atol=2e-2, rtol=1e-2
    )
    trainer = Trainer(recipe, Accelerator(cpu=True, mixed_precision="no"))
    first = trainer.step(examples, torch.Generator().manual_seed(0), 1.0)
    assert first == pytest.approx(1 + examples.latents.float().pow(2).mean().item(), rel=0.3)
    pipeline = new_reference(recipe, trainer.averaged())
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline("a pizza, animated style", num_inference_steps=2, output_type="pil").frames
    assert len(frames[0]) == 5 and frames[0][0].size == (32, 32)
    assert draw_sheet(pipeline, recipe).size == (9 * 32, 32)


def test_the_video_autoencoder_learns_a_clip() -> None:
    torch.manual_seed(0)
    clips = Pictures(["dot"], np.full((1, 5, 32, 32, 4), 255, np.uint8))
    model = video_autoencoder.new_video_autoencoder({**video_autoencoder.CONFIG, "base_dim": 8})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    features, random = load_features(), np.random.default_rng(0)
    losses = []
    for step in range(5):
        x = video_autoencoder.draw_clips(clips, random, 1)
        loss = video_autoencoder.clip_loss(model, x, features, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_training_the_decoder_alone_keeps_every_latent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 5, 16, 16, 4), dtype=np.uint8)
    store_pictures(tmp_path / clip_file(16, 5), Pictures(["fox", "pencil"], pixels))
    for name, value in {"SIZE": 16, "FRAMES": 5, "BATCH": 1, "CHECKPOINT_SECONDS": 0.0}.items():
        monkeypatch.setattr(video_autoencoder, name, value)
    monkeypatch.setitem(video_autoencoder.CONFIG, "base_dim", 8)
    weights, released = tmp_path / "video-autoencoder-v1.safetensors", []
    for decoder in (False, True):
        video_autoencoder.train(tmp_path, 0.5 / 60, tmp_path, decoder=decoder)
        config = weights.with_suffix(".json").read_text(encoding="utf-8")
        released.append((load_file(weights), config))
    (before, moments), (after, kept) = released
    assert moments == kept and json.loads(kept)["latents_std"] != [1.0] * 8
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"decoder", "post_quant_conv"}


def test_only_animations_that_move_are_clips() -> None:
    def animation(frames: int, moves: bool) -> Image.Image:
        pictures = [
            Image.new("RGBA", (8, 8), (15 * row * moves, 0, 0, 255)) for row in range(frames)
        ]
        buffer = io.BytesIO()
        pictures[0].save(
            buffer, "webp", save_all=True, append_images=pictures[1:], lossless=True,
            minimize_size=False, allow_mixed=False,
        )  # fmt: skip
        return Image.open(io.BytesIO(buffer.getvalue()))

    clip = sample_frames(animation(17, True), 4, 9)
    assert clip is not None and clip.shape == (9, 4, 4, 4)
    np.testing.assert_array_equal(clip[:, 0, 0, 0], 30 * np.arange(9))
    assert sample_frames(animation(5, True), 4, 9) is None


def test_v_and_the_noising_are_those_of_the_schedule() -> None:
    x_0 = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    batch = Batch(x_0, torch.zeros(4, 16, 384), torch.ones(4, 16).long(), torch.zeros(4, 384))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Remember(torch.nn.Module):
        def forward(self, x: torch.Tensor, steps: torch.Tensor, **_: object) -> Any:
            seen.append((x, steps))
            return (torch.zeros_like(x),)

    loss = velocity_loss(Remember(), batch, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    steps = torch.randint(1000, (4,), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    theirs = DDPMScheduler(**SCHEDULE)
    torch.testing.assert_close(seen[0][1], steps)
    torch.testing.assert_close(seen[0][0], theirs.add_noise(x_0, eps, steps))
    torch.testing.assert_close(loss, theirs.get_velocity(x_0, eps, steps).pow(2).mean())


def test_tokens_and_positions_are_fluxs() -> None:
    latents = torch.randn(2, 16, 8, 6)
    theirs = FluxPipeline._pack_latents(latents, 2, 16, 8, 6)
    torch.testing.assert_close(pack(latents), theirs, rtol=0, atol=0)
    ids = FluxPipeline._prepare_latent_image_ids(2, 4, 3, "cpu", torch.float32)
    torch.testing.assert_close(positions(4, 3), ids, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "stock", "keywords"),
    [
        ("unet", StableDiffusionPipeline, {"guidance_scale": 3.0}),
        # What FluxPipeline's files cannot say: size, prompt length and guidance.
        (
            "joint",
            FluxPipeline,
            {
                "height": 64,
                "width": 64,
                "max_sequence_length": 16,
                "negative_prompt": "",
                "true_cfg_scale": 3.0,
            },
        ),
    ],
)
def test_a_saved_sibling_opens_as_the_stock_class_with_the_same_picture(
    name: str, stock: type[Any], keywords: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tiny(name)
    trainer = Trainer(recipe, Accelerator(cpu=True, mixed_precision="no"))
    trainer.step(some_examples(), torch.Generator().manual_seed(0), 1.0)
    ours = new_reference(recipe, trainer.averaged())
    ours.save_pretrained(str(tmp_path))
    theirs = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert type(theirs) is stock
    pictures = []
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
        pictures.append(
            pipeline(
                "a fox, on a blue background",
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
                **keywords,
            ).images
        )
    np.testing.assert_allclose(pictures[0], pictures[1], atol=1e-5)


def test_one_negative_prompt_serves_a_list_of_joint_prompts() -> None:
    recipe = tiny("joint")
    trainer = Trainer(recipe, Accelerator(cpu=True, mixed_precision="no"))
    trainer.step(some_examples(), torch.Generator().manual_seed(0), 1.0)
    pipeline = new_reference(recipe, trainer.averaged())
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a fox", "an owl, on a red background"]

    def draw(prompt: str | list[str], *seeds: int) -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(
            prompt, num_inference_steps=1, generator=generators, output_type="np"
        ).images

    alone = [draw(prompt, seed)[0] for seed, prompt in enumerate(prompts)]
    np.testing.assert_allclose(draw(prompts, 0, 1), np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "boolean", "added"])
def test_plain_attention_is_the_fused_one_with_its_gradients(kind: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, s, 8, dtype=torch.float64) for s in (5, 7, 7))
    kept = torch.rand(2, 1, 5, 7) < 0.7
    kept[..., 0] = True
    masks = {"none": None, "boolean": kept, "added": torch.randn(2, 1, 5, 7, dtype=torch.float64)}
    gradients = []
    for enabled in (False, True):
        a, b, c = (x.clone().requires_grad_() for x in (q, k, v))
        with plain_attention(enabled):
            out = F.scaled_dot_product_attention(a, b, c, attn_mask=masks[kind], scale=0.3)
        gradients.append([out, *torch.autograd.grad(out.square().sum(), [a, b, c])])
    for fused, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, fused)


def test_plain_attention_ends_with_its_context_and_refuses_what_it_does_not_know() -> None:
    fused = F.scaled_dot_product_attention
    x = torch.randn(1, 1, 4, 8)
    with pytest.raises(ValueError, match="no dropout, causal mask"), plain_attention():
        assert F.scaled_dot_product_attention is not fused
        F.scaled_dot_product_attention(x, x, x, is_causal=True)
    assert F.scaled_dot_product_attention is fused


def test_compiled_blocks_are_the_familys_and_keep_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    recipe = tiny("joint")
    settings = dataclasses.replace(recipe.training, compile_blocks=True)
    trainer = Trainer(
        dataclasses.replace(recipe, training=settings),
        Accelerator(cpu=True, mixed_precision="no"),
    )
    parts = [trainer.model.get_submodule(part) for part in FAMILIES["flux"].matrices]
    assert compiled == [block for part in parts for block in part.children()]
    assert set(trainer.averaged()) == set(FAMILIES["flux"].new(recipe.denoiser).state_dict())


def test_weights_to_begin_with_are_taken_where_their_shapes_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, accelerator = tiny("picture"), Accelerator(cpu=True, mixed_precision="no")
    released = Trainer(recipe, accelerator).averaged()
    save_file(released, tmp_path / "some.safetensors")
    other = dataclasses.replace(recipe, denoiser={**recipe.denoiser, "caption_channels": 192})
    trainer = Trainer(other, accelerator)
    with caplog.at_level("INFO"):
        trainer.start_from(tmp_path / "some.safetensors")
    mine = trainer.averaged()
    differ = {name for name, value in released.items() if value.shape != mine[name].shape}
    assert differ == {"caption_projection.linear_1.weight"}
    assert all(f"{name} begins at random" in caplog.text for name in differ)
    for name in released.keys() - differ:
        torch.testing.assert_close(mine[name], released[name], rtol=0, atol=0)


@pytest.mark.parametrize("patch", [1, 2])
def test_finer_patches_begin_as_the_released_ones_on_the_enlarged_picture(patch: int) -> None:
    recipe = tiny("picture")
    coarse = {**recipe.denoiser, "patch_size": 4, "sample_size": 16}
    fine = {**coarse, "patch_size": patch, "sample_size": 4 * patch}
    torch.manual_seed(0)
    released, model = FAMILIES["pixart"].new(coarse), FAMILIES["pixart"].new(fine)
    torch.nn.init.normal_(released.get_parameter("proj_out.weight"))
    model.load_state_dict(finer_patches(released.state_dict(), patch))
    x = torch.randn(2, 16, 4 * patch, 4 * patch)
    call: dict[str, Any] = {
        "timestep": torch.tensor([300.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 16, 384),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }
    times = 4 // patch
    with torch.no_grad():
        small = model(x, **call)[0]
        large = released(x.repeat_interleave(times, 2).repeat_interleave(times, 3), **call)[0]
    torch.testing.assert_close(small, F.avg_pool2d(large, times), rtol=1e-4, atol=1e-4)


def test_patches_that_do_not_divide_the_released_ones_are_refused() -> None:
    released = FAMILIES["pixart"].new(tiny("picture").denoiser).state_dict()
    with pytest.raises(ValueError, match="patches of 2 latents, which patches of 4 do not divide"):
        finer_patches(released, 4)


def test_a_recipe_that_begins_with_absent_weights_says_so(tmp_path: Path) -> None:
    recipe = tiny("picture")
    torch.save(vars(some_examples()), examples_file(recipe.data, tmp_path))
    settings = dataclasses.replace(recipe.training, begin_with="other")
    with pytest.raises(ValueError, match="picture-v2 begins with 'other', whose weights are not"):
        train(dataclasses.replace(recipe, training=settings), tmp_path)


def test_the_text_scorer_judges_the_models_it_was_made_for() -> None:
    recipe = tiny("unet")
    state = FAMILIES["unet"].new(recipe.denoiser).state_dict()
    assert own_text_score(new_reference(recipe, state)) is text_score
    assert own_text_score(tiny_pipeline("sd15").pipe) is None


def test_training_ends_in_a_folder_with_weights_that_load(tmp_path: Path) -> None:
    recipe = tiny("unet", minutes=0.01)
    examples = some_examples()
    torch.save(vars(examples), examples_file(recipe.data, tmp_path))
    folder = train(recipe, tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert {"checkpoint.pt", "weights.safetensors", "early.safetensors", "curve.json"} <= names
    assert any(name.startswith("sheet-") for name in names)
    new_reference(recipe, load_file(folder / "weights.safetensors"))
    checkpoint = (folder / "checkpoint.pt").stat().st_mtime_ns
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["spent"] >= 0.6
    assert train(recipe, tmp_path) == folder
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == checkpoint, "nothing was left to do"


def test_every_recipe_is_valid_and_makes_a_model_of_the_promised_size() -> None:
    limits = {"picture": 7, "picture256": 20, "hightoken": 20, "unet": 8, "joint": 20, "video": 8}
    for name, limit in limits.items():
        recipe = load_recipe(find_recipe(name))
        assert recipe.name == name
        with torch.device("meta"):
            model = FAMILIES[recipe.family].new(recipe.denoiser)
        assert sum(p.numel() for p in model.parameters()) < limit * 1e6


def test_high_token_recipes_have_at_least_1024_tokens() -> None:
    denoiser = load_recipe(find_recipe("hightoken")).denoiser
    assert (denoiser["sample_size"] // denoiser["patch_size"]) ** 2 >= 1024


def test_recipes_name_what_is_wrong(tmp_path: Path) -> None:
    text = (RECIPES / "unet.yaml").read_text(encoding="utf-8")
    (tmp_path / "a.yaml").write_text(text + "  speed: 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a.yaml: training.speed: Unexpected keyword argument"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text(text.replace("alien;", "aliens;"), encoding="utf-8")
    with pytest.raises(ValueError, match="names has .'aliens'., which are not among the 180"):
        load_recipe(tmp_path / "b.yaml")
    with pytest.raises(ValueError, match="no recipe 'portrait': give a YAML file or one of .*unet"):
        find_recipe("portrait")


def test_another_size_is_another_prepared_file(tmp_path: Path) -> None:
    data = load_recipe(find_recipe("unet")).data
    other = dataclasses.replace(data, size=64)
    assert digest(data) == digest(dataclasses.replace(data))
    assert examples_file(data, tmp_path) != examples_file(other, tmp_path)


def test_packed_pictures_are_all_that_a_machine_without_a_network_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("packed data must not be fetched")

    monkeypatch.setattr("skipstep.pipelines.reference.data.subprocess.run", refuse)
    data = dataclasses.replace(load_recipe(find_recipe("unet")).data, size=64, names="pizza")
    recipe = dataclasses.replace(load_recipe(find_recipe("unet")), data=data)
    random = np.random.default_rng(0)
    for style in data.styles:
        pixels = random.integers(0, 256, (2, 64, 64, 4), dtype=np.uint8)
        pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
        store_pictures(tmp_path / f"pictures-{style}-64.npz", Pictures(["fox", "pizza"], pixels))
    folder = training.pack(recipe, tmp_path)
    here, there = load_examples(data, tmp_path), load_examples(data, folder)
    assert here.latents.shape == (3, 12, 2, 16, 8, 8)
    for ours, theirs in zip(vars(here).values(), vars(there).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_stored_pictures_come_back_whole(tmp_path: Path) -> None:
    pixels = np.arange(2 * 8 * 8 * 4, dtype=np.uint8).reshape(2, 8, 8, 4)
    store_pictures(tmp_path / "some.npz", Pictures(["fox", "owl"], pixels))
    with np.load(tmp_path / "some.npz") as stored:
        np.testing.assert_array_equal(stored["pixels"], pixels)
    assert Pictures(["fox", "owl"], pixels).only(frozenset({"owl"})).names == ["owl"]


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(
        PluginError, match="no reference model 'portrait': choose one of joint, picture,"
    ):
        load_reference("portrait")


def test_recipes_without_weights_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    untrained = [name for name in recipe_names() if name not in trained_names()]
    assert "picture" not in untrained
    for name in untrained:
        with pytest.raises(PluginError, match="(?s)no trained weights yet: here are .* train it"):
            load_reference(name)
    monkeypatch.setattr(load, "ZOO", Path("nowhere"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PluginError, match="not part of skipstep's own wheel: here are picture"):
        load_reference("unet")


def test_weights_are_found_in_an_installed_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "skipstep_zoo"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "video-v1.safetensors").touch()
    monkeypatch.setattr(load, "ZOO", Path("nowhere"))
    assert find_weights(load_recipe(find_recipe("video"))) is None
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find_weights(load_recipe(find_recipe("video")))
    assert found == folder / "video-v1.safetensors"


def test_shipped_siblings_fit_the_zoo_and_load() -> None:
    for name in trained_names():
        recipe = load_recipe(find_recipe(name))
        path = find_weights(recipe)
        assert path is not None and path.stat().st_size <= 25_000_000
        pipeline = load_reference(name)
        assert type(pipeline).__name__.startswith("Reference")


def test_the_video_sibling_takes_caches_and_attention_methods_about_time() -> None:
    torch.set_num_threads(1)
    pipe = load_reference("video")
    pipe.set_progress_bar_config(disable=True)

    def clip() -> Tensor:
        noise = torch.Generator().manual_seed(0)
        made: Tensor = pipe(
            "a star, animated style",
            num_inference_steps=6,
            generator=noise,
            output_type="pt",
        ).frames
        return made

    plain = clip()
    assert plain.shape == (1, 9, 3, 64, 64)
    with pipe.plugins("abcache"):
        cached = clip()
        assert pipe.plugin_report().fraction < 1
    sparse = {"block_q": 16, "block_k": 16, "keep": 0.5, "force": True, "dense_steps": 2}
    with pipe.plugins({"name": "svg1", "options": sparse}):
        thinned = clip()
    torch.testing.assert_close(clip(), plain, rtol=0, atol=0)
    for other in (cached, thinned):
        assert not torch.equal(other, plain)
        assert F.mse_loss(other, plain) < 0.25 * plain.var()
