"""Measure a reference model on its fixed prompts; `python -m benchmarks.reference` prints it.

- background: share of prompts with a colour whose border is nearest to that colour (chance 1 / 12);
- text score of the right captions and of the same captions shuffled (same measure, no agreement);
  `way` is how far from the shuffled ones to the real pictures;
- Frechet distance to the real pictures of the same prompts. Perfect copies would score 0; for
  scale, as many other real pictures on the same backgrounds are measured too;
- nearest real picture, for prompts on white: how often it shows the prompted name, and how often it
  is so near that the sample is a copy: at most twice as far as that picture is from itself after
  being reduced to 96 pixels;
- for clips: these of their middle frames (real ones in place of pictures, and for scale clips of
  other names), and frame consistency and motion beside those of the real clips; all of it for the
  real clips after their way through the autoencoder as well, which is the best to be had.
Pictures of another size are brought to 128 pixels first: the text scorer has seen no other. Real
pictures are rendered from the pinned packages in the cache folder; nothing else is downloaded.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from skipstep.pipelines.metrics.background import background_colours
from skipstep.pipelines.metrics.efficientnet import load_features
from skipstep.pipelines.metrics.frechet import fit_projection, frechet_distance
from skipstep.pipelines.metrics.motion import frame_consistency, motion
from skipstep.pipelines.metrics.text import text_score
from skipstep.pipelines.reference.alignment import picture_features
from skipstep.pipelines.reference.autoencoder import to_tensor
from skipstep.pipelines.reference.captions import STYLES, held_out_style
from skipstep.pipelines.reference.clips import load_clips
from skipstep.pipelines.reference.data import SIZE, Pictures
from skipstep.pipelines.reference.examples import taught_styles
from skipstep.pipelines.reference.load import find_file, load_model, new_reference
from skipstep.pipelines.reference.palette import COLOURS, WHITE
from skipstep.pipelines.reference.precision import half_precision
from skipstep.pipelines.reference.prompts import EvaluationPrompt, prompts_of
from skipstep.pipelines.reference.recipe import Recipe, digest

__all__ = ["evaluate", "generate"]

LOGGER = logging.getLogger(__name__)
BATCH = 16


def generate(
    recipe: Recipe, weights: Path, texts: list[str], cache: Path
) -> Float[Tensor, "b *f 3 height width"]:
    """Return a picture or clip in [-1, 1] per text, seeds 0, 1, ...; kept for each `weights`."""
    files = (weights, find_file(f"{recipe.data.autoencoder}.safetensors"))
    content = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file]
    path = cache / f"evaluated-{recipe.title}-{digest([content, texts])}.npy"
    if not path.exists():
        pipeline = new_reference(recipe, load_file(weights))
        pipeline.set_progress_bar_config(disable=True)
        made = []
        for start in range(0, len(texts), BATCH):
            chunk = texts[start : start + BATCH]
            seeds = [torch.Generator().manual_seed(start + i) for i in range(len(chunk))]
            result = pipeline(chunk, generator=seeds, output_type="np")
            pixels = result.images if recipe.data.frames == 1 else result.frames
            made.append((pixels * 255).round().astype(np.uint8))
            LOGGER.info("%d of %d", start + len(chunk), len(texts))
        np.save(path, np.concatenate(made))
    return as_tensor(np.load(path).astype(np.float32))


def as_tensor(pixels: np.typing.NDArray[np.float32]) -> Float[Tensor, "*b 3 height width"]:
    """Return pictures or clips [..., height, width, 3] in [0, 255] as tensors in [-1, 1]."""
    return torch.from_numpy(pixels / np.float32(127.5) - 1).movedim(-1, -3).contiguous()


def standard_size(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 128 128"]:
    """Return pictures at the size that the features and the text scorer were fitted to."""
    if images.shape[-1] == SIZE:
        return images
    if images.shape[-1] > SIZE:
        return F.interpolate(images, (SIZE, SIZE), mode="area")
    return F.interpolate(images, (SIZE, SIZE), mode="bilinear")


def real_pictures(
    styles: dict[str, Pictures], prompts: list[EvaluationPrompt]
) -> Float[Tensor, "b 3 128 128"]:
    """Return the rendered picture that each prompt describes."""
    rows = []
    for prompt in prompts:
        pictures = styles[prompt["style"]]
        colour = WHITE if prompt["background"] is None else COLOURS[prompt["background"]]
        rows.append(pictures.composite(pictures.names.index(prompt["name"]), colour))
    return to_tensor(np.stack(rows))


def other_pictures(
    styles: dict[str, Pictures], prompts: list[EvaluationPrompt]
) -> Float[Tensor, "b 3 128 128"]:
    """Return as many real pictures, none of them prompted, on the same backgrounds."""
    asked = {(prompt["name"], prompt["style"]) for prompt in prompts}
    pairs = [(name, style) for style in STYLES for name in styles[style].names]
    free = [pair for pair in pairs if pair not in asked]
    order = np.random.default_rng(0).permutation(len(free))[: len(prompts)]
    others: list[EvaluationPrompt] = []
    for prompt, row in zip(prompts, order, strict=True):
        name, style = free[row]
        others.append({**prompt, "name": name, "style": style})
    return real_pictures(styles, others)


@torch.no_grad()
def features_of(images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 1280"]:
    """Return pooled EfficientNet-Lite0 features."""
    model = load_features()
    return torch.cat([model(images[start : start + 32]) for start in range(0, len(images), 32)])


def background_accuracy(images: Tensor, prompts: list[EvaluationPrompt]) -> dict[str, float]:
    """Return the share of right border colours, over coloured prompts and over white ones."""
    found = background_colours(images, {"white": WHITE, **COLOURS})
    asked = [prompt["background"] or "white" for prompt in prompts]
    right = np.array([a == b for a, b in zip(found, asked, strict=True)])
    is_white = np.array([colour == "white" for colour in asked])
    return {"coloured": float(right[~is_white].mean()), "white": float(right[is_white].mean())}


def text_agreement(made: Tensor, real: Tensor, texts: list[str]) -> dict[str, float]:
    """Return the mean text score of matching captions, of shuffled ones, and of real pictures."""
    order = np.random.default_rng(0).permutation(len(texts))
    matching = text_score(made, texts).mean().item()
    shuffled = text_score(made, [texts[i] for i in order]).mean().item()
    ceiling = text_score(real, texts).mean().item()
    way = (matching - shuffled) / (ceiling - shuffled)
    return {"matching": matching, "shuffled": shuffled, "real": ceiling, "way": way}


def frechet(made: Tensor, real: Tensor, other: Tensor) -> dict[str, float]:
    """Return the Frechet distance of samples, and of other real pictures, to the real ones."""
    vectors, real_vectors, other_vectors = (features_of(x) for x in (made, real, other))
    projection = fit_projection(torch.cat([real_vectors, other_vectors]))
    target = projection.apply(real_vectors)
    return {
        "to_real": frechet_distance(projection.apply(vectors), target),
        "other_real": frechet_distance(projection.apply(other_vectors), target),
    }


def nearest_real(
    features: Float[Tensor, "b c"], prompts: list[EvaluationPrompt], styles: dict[str, Pictures]
) -> dict[str, float | None]:
    """Return how near samples on white are to real pictures on white, see the module docstring."""
    rows = [row for row, prompt in enumerate(prompts) if prompt["background"] is None]
    real, coarse, labels = [], [], []
    for style in STYLES:
        pictures = styles[style]
        every = list(range(len(pictures.names)))
        real.append(picture_features(pictures, every, [WHITE] * len(every)))
        x = to_tensor(np.stack([pictures.composite(row, WHITE) for row in every]))
        x = F.interpolate(F.interpolate(x, (96, 96), mode="area"), x.shape[-2:], mode="bilinear")
        coarse.append(features_of(x))
        labels += [(name, style) for name in pictures.names]
    library = F.normalize(torch.cat(real), dim=-1)
    coarse_distance = 1 - (library * F.normalize(torch.cat(coarse), dim=-1)).sum(-1)
    distance = 1 - F.normalize(features[rows], dim=-1) @ library.T
    nearest, index = distance.min(1)
    found = [labels[i] for i in index.tolist()]
    asked = [prompts[row] for row in rows]
    named = np.array([f[0] == p["name"] for f, p in zip(found, asked, strict=True)])
    styled = np.array([f[1] == p["style"] for f, p in zip(found, asked, strict=True)])
    is_trained = torch.tensor([held_out_style(name) != style for name, style in found])
    copies = (nearest < 2 * coarse_distance[index]) & is_trained
    held = np.array([p["is_held_out"] for p in asked])
    return {
        "pictures": len(rows),
        "pictures_held_out": int(held.sum()),
        "library": len(library),
        "right_name_trained_pairs": float(named[~held].mean()),
        "right_name_held_out_pairs": float(named[held].mean()) if held.any() else None,
        "right_style": float(styled.mean()),
        "copies_of_training_pictures": copies.float().mean().item(),
    }


def evaluate(recipe: Recipe, weights: Path, cache: Path, *, every: int = 1) -> dict[str, Any]:
    """Return all measurements of the module docstring, on every n-th of the recipe's prompts."""
    prompts = prompts_of(recipe.data)[::every]
    if recipe.data.frames > 1:
        return evaluate_clips(recipe, weights, cache, prompts)
    texts = [prompt["prompt"] for prompt in prompts]
    # At 128 pixels and with every name: what is nearest must be found among all.
    styles = taught_styles(cache)
    made = standard_size(generate(recipe, weights, texts, cache))
    real, other = real_pictures(styles, prompts), other_pictures(styles, prompts)
    held = [row for row, prompt in enumerate(prompts) if prompt["is_held_out"]]
    return {
        "model": recipe.title,
        "prompts": len(prompts),
        "prompts_held_out": len(held),
        "sampler": "the pipeline's defaults, float32, seed = prompt number",
        "background": background_accuracy(made, prompts),
        "text_score": {
            **text_agreement(made, real, texts),
            "held_out": text_score(made[held], [texts[row] for row in held]).mean().item()
            if held
            else None,
        },
        "frechet": frechet(made, real, other),
        "nearest_real": nearest_real(features_of(made), prompts, styles),
    }


def real_clips(
    clips: Pictures, names: list[str], prompts: list[EvaluationPrompt]
) -> Float[Tensor, "b f 3 height width"]:
    """Return the clip of each of `names` on the background of its prompt."""
    rows = []
    for name, prompt in zip(names, prompts, strict=True):
        colour = WHITE if prompt["background"] is None else COLOURS[prompt["background"]]
        rows.append(clips.composite(clips.names.index(name), colour))
    return as_tensor(np.stack(rows))


def evaluate_clips(
    recipe: Recipe, weights: Path, cache: Path, prompts: list[EvaluationPrompt]
) -> dict[str, Any]:
    """Return the measurements of clips, see the module docstring."""
    clips = load_clips(cache, size=recipe.data.size, frames=recipe.data.frames)
    prompts = [prompt for prompt in prompts if prompt["name"] in clips.names]
    texts, names = ([prompt[key] for prompt in prompts] for key in ("prompt", "name"))
    free = sorted(set(clips.names) - recipe.data.taught)
    others = np.random.default_rng(0).permutation(len(free))[: len(names)]
    made = generate(recipe, weights, texts, cache)
    real = real_clips(clips, names, prompts)
    other = real_clips(clips, [free[i] for i in others], prompts)
    coded = through_autoencoder(recipe.data.autoencoder, real)
    return {
        "model": recipe.title,
        "prompts": len(prompts),
        "sampler": "the pipeline's defaults, float32, seed = prompt number",
        **judge_clips(made, real, other, prompts),
        "autoencoder": judge_clips(coded, real, other, prompts),
    }


@torch.no_grad()
def through_autoencoder(
    name: str, clips: Float[Tensor, "b f 3 height width"]
) -> Float[Tensor, "b f 3 height width"]:
    """Return clips encoded and decoded: the best that a denoiser of these latents can do."""
    model = load_model(name, torch.float32)
    with half_precision(clips.device):
        coded = [
            model.decode(model.encode(part).latent_dist.mean).sample.float()
            for part in torch.split(clips.movedim(1, 2), 4)
        ]
    return torch.cat(coded).clamp(-1, 1).movedim(2, 1)


def judge_clips(
    made: Tensor, real: Tensor, other: Tensor, prompts: list[EvaluationPrompt]
) -> dict[str, Any]:
    """Return all measurements of clips that real and other clips are given for."""
    middle = made.shape[1] // 2
    pictures, real_frames, other_frames = (
        standard_size(each[:, middle]) for each in (made, real, other)
    )
    texts = [prompt["prompt"] for prompt in prompts]
    return {
        "background": background_accuracy(made[:, middle], prompts),
        "text_score": text_agreement(pictures, real_frames, texts),
        "frechet": frechet(pictures, real_frames, other_frames),
        "frame_consistency": {
            "made": frame_consistency(made).mean().item(),
            "real": frame_consistency(real).mean().item(),
        },
        "motion": {"made": motion(made).mean().item(), "real": motion(real).mean().item()},
    }
