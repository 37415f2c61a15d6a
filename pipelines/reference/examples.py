"""The denoiser's training examples: every picture on every background, encoded once.

Latents: [pictures, 12 backgrounds, 2 (as drawn, mirrored), 16, 16, 16] fp16. The training loop
never runs the autoencoder or the text encoder; both are frozen, so nothing is lost but the freedom
to crop.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float, Int
from torch import Tensor

from skipstep.pipelines.reference.autoencoder import to_tensor
from skipstep.pipelines.reference.captions import STYLES, can_flip, caption, held_out_style
from skipstep.pipelines.reference.data import Pictures, load_pictures
from skipstep.pipelines.reference.load import load_model
from skipstep.pipelines.reference.palette import COLOURS, WHITE
from skipstep.pipelines.reference.text import encode_tokens, load_text_encoder, load_tokenizer

__all__ = ["Examples", "load_examples", "taught_pairs", "taught_styles"]

BACKGROUNDS: tuple[str | None, ...] = (None, *COLOURS)
# Share of pictures on a named colour, and of captions replaced by "" for guidance.
COLOURED = 0.6
DROPPED = 0.1
# Captions as evaluated; with an article; with an article and no style: people write all three.
FORM_SHARES = (0.65, 0.2, 0.15)


def taught_styles(cache: Path) -> dict[str, Pictures]:
    """Return the pictures of the three styles, only of names that exist in all of them."""
    styles = {style: load_pictures(style, cache) for style in STYLES}
    common = set.intersection(*(set(pictures.names) for pictures in styles.values()))
    for style, pictures in styles.items():
        rows = sorted(
            (row for row, name in enumerate(pictures.names) if name in common),
            key=lambda row: pictures.names[row],
        )
        styles[style] = Pictures([pictures.names[r] for r in rows], pictures.pixels[rows])
    return styles


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

    latents: Float[Tensor, "n 12 2 16 16 16"]
    flippable: Int[Tensor, " n"]
    captions: Int[Tensor, "n 12 3"]
    text: Float[Tensor, "m 16 384"]
    mask: Int[Tensor, "m 16"]

    def draw(
        self, size: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "b 16 16 16"], Float[Tensor, "b 16 384"], Int[Tensor, "b 16"]]:
        """Return latents, token embeddings and masks of a random batch; caption 0 is empty."""
        n = torch.randint(len(self.latents), (size,), generator=generator)
        colour = torch.randint(1, len(BACKGROUNDS), (size,), generator=generator)
        colour = colour * (torch.rand(size, generator=generator) < COLOURED)
        flip = (torch.rand(size, generator=generator) < 0.5).long() * self.flippable[n]
        shares = torch.tensor(FORM_SHARES)
        form = torch.multinomial(shares, size, replacement=True, generator=generator)
        row = self.captions[n, colour, form]
        row = row * (torch.rand(size, generator=generator) >= DROPPED)
        return self.latents[n, colour, flip].float(), self.text[row], self.mask[row]


@torch.no_grad()
def encode_latents(
    model: AutoencoderTiny, styles: dict[str, Pictures], pairs: list[tuple[str, int]]
) -> Float[Tensor, "n 12 2 16 16 16"]:
    """Return the scaled latents of every pair on every background, drawn and mirrored."""
    colours = [WHITE, *COLOURS.values()]
    latents = torch.empty(len(pairs), len(colours), 2, 16, 16, 16, dtype=torch.float16)
    for number, (style, row) in enumerate(pairs):
        x = to_tensor(np.stack([styles[style].composite(row, colour) for colour in colours]))
        with torch.autocast("cpu", torch.bfloat16):
            z = model.encoder(torch.cat([x, x.flip(3)]))
        z = z.float().reshape(2, len(colours), 16, 16, 16) * model.config.scaling_factor
        latents[number] = z.transpose(0, 1)
    return latents


def encode_captions(texts: list[str]) -> tuple[Float[Tensor, "m 16 384"], Int[Tensor, "m 16"]]:
    """Return bf16 token embeddings and masks of `texts`."""
    encoder, tokenizer = load_text_encoder(), load_tokenizer()
    embedded, masks = [], []
    for start in range(0, len(texts), 128):
        hidden, mask = encode_tokens(encoder, tokenizer, texts[start : start + 128])
        embedded.append(hidden.bfloat16())
        masks.append(mask)
    return torch.cat(embedded), torch.cat(masks)


def load_examples(cache: Path) -> Examples:
    """Return the training set, encoded on first use and kept in `cache`."""
    styles = taught_styles(cache)
    pairs = taught_pairs(styles, held_out=False)
    forms = [
        [caption_forms(styles[style].names[row], style, colour) for colour in BACKGROUNDS]
        for style, row in pairs
    ]
    texts = [""] + sorted({text for picture in forms for three in picture for text in three})
    number = {text: index for index, text in enumerate(texts)}
    if not (cache / "captions.pt").exists():
        torch.save(encode_captions(texts), cache / "captions.pt")
    if not (cache / "latents.pt").exists():
        model = load_model(AutoencoderTiny, "autoencoder-v1", torch.float32)
        latents = encode_latents(model.to(memory_format=torch.channels_last), styles, pairs)
        torch.save(latents, cache / "latents.pt")
    text, mask = torch.load(cache / "captions.pt", weights_only=True)
    latents = torch.load(cache / "latents.pt", weights_only=True, mmap=True)
    if (len(latents), len(text)) != (len(pairs), len(texts)):
        raise ValueError(
            f"{cache} holds {len(latents)} encoded pictures and {len(text)} captions, but the "
            f"training set has {len(pairs)} and {len(texts)}: delete latents.pt and captions.pt"
        )
    return Examples(
        latents,
        torch.tensor([int(can_flip(styles[style].names[row])) for style, row in pairs]),
        torch.tensor([[[number[t] for t in three] for three in picture] for picture in forms]),
        text,
        mask,
    )
