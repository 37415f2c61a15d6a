"""A recipe's training examples: every picture on every background, encoded once.

Latents: [pictures, 12 backgrounds, 2 (as drawn, mirrored), ...] fp16. The training loop never runs
the autoencoder or the text encoder; both are frozen, so nothing is lost but the freedom to crop.
They are kept in one file whose name is a digest of everything they follow from.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLWan, AutoencoderTiny
from jaxtyping import Float, Int
from torch import Tensor

from skipstep.pipelines.reference.autoencoder import to_tensor
from skipstep.pipelines.reference.batch import Batch
from skipstep.pipelines.reference.captions import (
    ANIMATED,
    STYLES,
    TAUGHT,
    can_flip,
    caption,
    held_out_style,
)
from skipstep.pipelines.reference.clips import load_clips
from skipstep.pipelines.reference.data import SIZE, Pictures, load_pictures
from skipstep.pipelines.reference.load import find_file, load_model
from skipstep.pipelines.reference.palette import COLOURS, WHITE
from skipstep.pipelines.reference.precision import half_precision
from skipstep.pipelines.reference.recipe import Data, digest
from skipstep.pipelines.reference.text import encode_captions, load_text_encoder, load_tokenizer
from skipstep.pipelines.reference.video_autoencoder import clips_to_tensor

__all__ = ["Examples", "load_examples", "taught_pairs", "taught_styles"]

LOGGER = logging.getLogger(__name__)

BACKGROUNDS: tuple[str | None, ...] = (None, *COLOURS)
# Share of pictures on a named colour, and of captions replaced by "" for guidance.
COLOURED = 0.6
DROPPED = 0.1
# Captions as evaluated; with an article; with an article and no style: people write all three.
FORM_SHARES = (0.65, 0.2, 0.15)


def taught_styles(
    cache: Path,
    size: int = SIZE,
    names: frozenset[str] = TAUGHT,
    chosen: tuple[str, ...] = STYLES,
) -> dict[str, Pictures]:
    """Return the pictures of the styles, in order, only of names that exist in all of them."""
    styles = {style: load_pictures(style, cache, size=size).only(names) for style in chosen}
    common = set.intersection(*(set(pictures.names) for pictures in styles.values()))
    for style, pictures in styles.items():
        rows = sorted(
            (row for row, name in enumerate(pictures.names) if name in common),
            key=lambda row: pictures.names[row],
        )
        styles[style] = Pictures([pictures.names[r] for r in rows], pictures.pixels[rows])
    return styles


def chosen_styles(data: Data, cache: Path) -> dict[str, Pictures]:
    """Return the pictures or clips of a recipe, by style."""
    if data.frames == 1:
        return taught_styles(cache, data.size, data.taught, data.styles)
    clips = load_clips(cache, size=data.size, frames=data.frames)
    return {ANIMATED: clips.only(data.taught) if data.names else clips}


def taught_pairs(styles: dict[str, Pictures], *, held_out: bool) -> list[tuple[str, int]]:
    """Return (style, row) of every pair that is trained, or of every pair that is not."""
    return [
        (style, row)
        for style, pictures in styles.items()
        for row, name in enumerate(pictures.names)
        if (held_out_style(name) == style) == held_out
    ]


def caption_forms(name: str, style: str, background: str | None) -> tuple[str, str, str]:
    """Return the three ways a picture is described, see `FORM_SHARES`."""
    named = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    full = caption(name, style, background)
    return (
        full,
        caption(named, style, background),
        caption(named, style, background).replace(f", {style} style", ""),
    )


@dataclass
class Examples:
    """Encoded pictures and captions; `draw` makes training batches of them."""

    latents: Float[Tensor, "n 12 2 *size"]
    flippable: Int[Tensor, " n"]
    captions: Int[Tensor, "n 12 3"]
    text: Float[Tensor, "m s d"]
    mask: Int[Tensor, "m s"]
    pooled: Float[Tensor, "m d"]

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return a random batch, on the device of the latents; caption 0 is empty."""
        device = self.latents.device
        n = torch.randint(len(self.latents), (size,), generator=generator)
        colour = torch.randint(1, len(BACKGROUNDS), (size,), generator=generator)
        colour = colour * (torch.rand(size, generator=generator) < COLOURED)
        flip = (torch.rand(size, generator=generator) < 0.5).long() * self.flippable[n]
        shares = torch.tensor(FORM_SHARES)
        form = torch.multinomial(shares, size, replacement=True, generator=generator)
        row = self.captions[n, colour, form]
        row = (row * (torch.rand(size, generator=generator) >= DROPPED)).to(device)
        latents = self.latents[n.to(device), colour.to(device), flip.to(device)]
        return Batch(
            latents.float(), self.text[row].float(), self.mask[row], self.pooled[row].float()
        )

    def to(self, device: torch.device) -> "Examples":
        """Return the examples with what batches are made of on `device`."""
        moved = (self.latents, self.text, self.mask, self.pooled)
        latents, text, mask, pooled = (tensor.to(device) for tensor in moved)
        return Examples(latents, self.flippable, self.captions, text, mask, pooled)


def encode_pictures(
    model: AutoencoderTiny, pixels: npt.NDArray[np.float32], device: torch.device
) -> Float[Tensor, "2 n c h w"]:
    """Return the scaled latents of pictures, as drawn and mirrored."""
    x = to_tensor(pixels)
    # A few at a time stay in a CPU's cache: five times as fast as all at once.
    both = torch.cat([x, x.flip(3)]).to(device)
    parts = torch.split(both, 4 if device.type == "cpu" else len(both))
    with half_precision(device):
        z = torch.cat([model.encoder(part) for part in parts]).float()
    return torch.stack((z * model.config.scaling_factor).half().cpu().chunk(2))


def encode_clips(
    model: AutoencoderKLWan, pixels: npt.NDArray[np.float32], device: torch.device
) -> Float[Tensor, "2 n c f h w"]:
    """Return the latents of clips in the pipeline's units, as drawn and mirrored."""
    x = clips_to_tensor(pixels)
    with half_precision(device):
        z = model.encode(torch.cat([x, x.flip(4)]).to(device)).latent_dist.mean.float()
    mean, deviation = (
        torch.tensor(values, device=device)[:, None, None, None]
        for values in (model.config.latents_mean, model.config.latents_std)
    )
    return torch.stack(((z - mean) / deviation).half().cpu().chunk(2))


@torch.no_grad()
def encode_latents(
    data: Data, styles: dict[str, Pictures], pairs: list[tuple[str, int]], device: torch.device
) -> Float[Tensor, "n 12 2 *size"]:
    """Return the latents of every pair on every background, drawn and mirrored."""
    colours = [WHITE, *COLOURS.values()]
    model = load_model(data.autoencoder, torch.float32).to(device)
    encode = encode_pictures if data.frames == 1 else encode_clips
    latents = []
    for style, row in pairs:
        pixels = np.stack([styles[style].composite(row, colour) for colour in colours])
        latents.append(encode(model, pixels, device).transpose(0, 1).contiguous())
    return torch.stack(latents)


def examples_file(data: Data, cache: Path) -> Path:
    """Return where the examples of `data` are kept: the name changes with all they follow from."""
    weights = [find_file(f"{name}.safetensors") for name in (data.autoencoder, "text-v1")]
    made_by = [hashlib.sha256(file.read_bytes()).hexdigest() if file else "" for file in weights]
    return cache / f"examples-{digest([digest(data), *made_by])}.pt"


def load_examples(data: Data, cache: Path, device: torch.device | str = "cpu") -> Examples:
    """Return the training set of `data`, encoded on first use on `device` and kept in `cache`."""
    path = examples_file(data, cache)
    if not path.exists():
        examples = encode_examples(data, cache, torch.device(device))
        partial = path.with_suffix(".partial")
        torch.save(vars(examples), partial)
        partial.replace(path)
    return Examples(**torch.load(path, weights_only=True, mmap=True))


def encode_examples(data: Data, cache: Path, device: torch.device) -> Examples:
    """Render, encode and number the training set of `data`."""
    styles = chosen_styles(data, cache)
    pairs = taught_pairs(styles, held_out=False)
    LOGGER.info("encoding %d pictures on %d backgrounds", len(pairs), len(BACKGROUNDS))
    forms = [
        [caption_forms(styles[style].names[row], style, colour) for colour in BACKGROUNDS]
        for style, row in pairs
    ]
    texts = [""] + sorted({text for picture in forms for three in picture for text in three})
    number = {text: index for index, text in enumerate(texts)}
    text, mask, pooled = encode_captions(
        load_text_encoder().to(device), load_tokenizer(), texts, data.text
    )
    return Examples(
        encode_latents(data, styles, pairs, device),
        torch.tensor([int(can_flip(styles[style].names[row])) for style, row in pairs]),
        torch.tensor([[[number[t] for t in three] for three in picture] for picture in forms]),
        text,
        mask,
        pooled,
    )
