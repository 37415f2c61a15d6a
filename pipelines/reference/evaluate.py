"""Measure the reference model on its 256 fixed prompts and write `docs/reference/evaluation.json`.

Run: python -m skipstep.pipelines.reference.evaluate

- background: share of prompts with a colour whose border is nearest to that colour (chance 1 / 12);
- text score of the right captions and of the same captions shuffled (same measure, no agreement);
- Frechet distance to the real pictures of the same prompts, for the shipped weights and for those
  in the cache's `denoiser-early.safetensors`: the running average at 10 % of training, or a version
  released before that was put there. Perfect copies would score 0; for scale, as many other real
  pictures on the same backgrounds are measured too;
- nearest real picture, for prompts on white: how often it shows the prompted name, and how often it
  is so near that the sample is a copy: at most twice as far as that picture is from itself after
  being reduced to 96 pixels.
- the autoencoder's PSNR on pictures it never saw, and the text scorer's ceiling.
Real pictures are rendered from the pinned packages in the cache folder; nothing else is downloaded.
"""

import argparse
import json
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
from skipstep.pipelines.metrics.frechet import Projection, fit_projection, frechet_distance
from skipstep.pipelines.metrics.text import text_score
from skipstep.pipelines.reference.alignment import picture_features
from skipstep.pipelines.reference.autoencoder import measure, split, to_tensor
from skipstep.pipelines.reference.captions import STYLES, held_out_style
from skipstep.pipelines.reference.data import Pictures
from skipstep.pipelines.reference.examples import taught_styles
from skipstep.pipelines.reference.load import ReferencePipeline, load_reference
from skipstep.pipelines.reference.palette import COLOURS, WHITE
from skipstep.pipelines.reference.prompts import EvaluationPrompt, load_prompts

__all__ = ["evaluate", "generate"]

LOGGER = logging.getLogger(__name__)
BATCH = 16


def generate(
    pipeline: ReferencePipeline, prompts: list[str], cached: Path
) -> Float[Tensor, "b 3 128 128"]:
    """Return one picture in [-1, 1] per prompt, seeds 0, 1, ...; kept in the file `cached`."""
    if not cached.exists():
        pictures = []
        pipeline.set_progress_bar_config(disable=True)
        for start in range(0, len(prompts), BATCH):
            chunk = prompts[start : start + BATCH]
            seeds = [torch.Generator().manual_seed(start + i) for i in range(len(chunk))]
            result = pipeline(chunk, generator=seeds, output_type="np")
            pictures.append((result.images * 255).round().astype(np.uint8))
            LOGGER.info("%d of %d pictures", start + len(chunk), len(prompts))
        np.save(cached, np.concatenate(pictures))
    return to_tensor(np.load(cached).astype(np.float32))


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


def text_agreement(images: Tensor, texts: list[str]) -> dict[str, float]:
    """Return the mean text score of matching captions and of shuffled ones."""
    order = np.random.default_rng(0).permutation(len(texts))
    return {
        "matching": text_score(images, texts).mean().item(),
        "shuffled": text_score(images, [texts[i] for i in order]).mean().item(),
    }


def nearest_real(
    features: Float[Tensor, "b c"], prompts: list[EvaluationPrompt], styles: dict[str, Pictures]
) -> dict[str, float]:
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
        "library": len(library),
        "right_name_trained_pairs": float(named[~held].mean()),
        "right_name_held_out_pairs": float(named[held].mean()),
        "right_style": float(styled.mean()),
        "copies_of_training_pictures": copies.float().mean().item(),
    }


def evaluate(cache: Path) -> dict[str, Any]:
    """Return all measurements of the module docstring."""
    prompts = load_prompts()
    texts = [prompt["prompt"] for prompt in prompts]
    styles = taught_styles(cache)
    pipeline = load_reference()
    final = generate(pipeline, texts, cache / "evaluation-final.npy")
    pipeline.transformer.load_state_dict(
        {k: v.float() for k, v in load_file(cache / "denoiser-early.safetensors").items()}
    )
    early = generate(pipeline, texts, cache / "evaluation-early.npy")
    real, other = real_pictures(styles, prompts), other_pictures(styles, prompts)
    vectors = {
        name: features_of(x)
        for name, x in (("final", final), ("early", early), ("real", real), ("other", other))
    }
    projection: Projection = fit_projection(torch.cat([vectors["real"], vectors["other"]]))
    coordinates = {name: projection.apply(x) for name, x in vectors.items()}
    held = [row for row, prompt in enumerate(prompts) if prompt["is_held_out"]]
    trained = [row for row, prompt in enumerate(prompts) if not prompt["is_held_out"]]
    scores = {"final": final, "early": early, "real": real}
    return {
        "prompts": len(prompts),
        "sampler": "20 steps, guidance 3.0, float32, seed = prompt number",
        "background_accuracy": {k: background_accuracy(x, prompts) for k, x in scores.items()},
        "text_score": {
            "all": {k: text_agreement(x, texts) for k, x in scores.items()},
            "trained_pairs": text_agreement(final[trained], [texts[r] for r in trained]),
            "held_out_pairs": text_agreement(final[held], [texts[r] for r in held]),
        },
        "frechet_distance_to_real": {
            name: frechet_distance(coordinates[name], coordinates["real"])
            for name in ("final", "early", "other")
        },
        "nearest_real_picture": nearest_real(vectors["final"], prompts, styles),
        "autoencoder_on_held_out_pictures": measure(pipeline.vae, split(STYLES, cache)[1]),
        "alignment_head": json.loads(
            (Path(__file__).with_name("weights") / "alignment-v1.json").read_text(encoding="utf-8")
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--output", type=Path, default=Path("docs/reference/evaluation.json"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(0)
    report = evaluate(arguments.cache)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    LOGGER.info("%s", json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
