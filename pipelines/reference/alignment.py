"""Train the text scorer's alignment head on rendered emoji art and measure its ceiling.

Run: python -m skipstep.pipelines.reference.alignment      (about five minutes; features are cached)

Symmetric contrastive loss (van den Oord et al. 2018, arXiv:1807.03748) over batches of different
names:
  L = (CE(20 a b^T) + CE(20 b a^T)) / 2,   a, b unit vectors of pictures and of their captions
Training pictures: three styles, each on white and on two palette colours. The ceiling is the rank
of the right name among all names for pictures of Twemoji, an artist's style never used in training.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from skipstep.pipelines.metrics.efficientnet import load_features
from skipstep.pipelines.metrics.text import SENTENCE, AlignmentHead
from skipstep.pipelines.reference.autoencoder import to_tensor
from skipstep.pipelines.reference.captions import STYLES, caption
from skipstep.pipelines.reference.data import Pictures, load_pictures
from skipstep.pipelines.reference.examples import taught_styles
from skipstep.pipelines.reference.palette import COLOURS, WHITE
from skipstep.pipelines.reference.text import encode_sentences, load_text_encoder, load_tokenizer

__all__ = ["contrastive_loss", "picture_features", "ranks"]

LOGGER = logging.getLogger(__name__)
EPOCHS = 60
BATCH = 200
TEMPERATURE = 20.0
# Backgrounds seen of each picture: white and this many random colours.
COLOURED = 2


@torch.no_grad()
def picture_features(
    pictures: Pictures, rows: list[int], backgrounds: list[tuple[int, int, int]]
) -> Float[Tensor, "n 1280"]:
    """Return pooled features of the pictures in `rows`, each on its own background."""
    model = load_features()
    pooled = []
    for start in range(0, len(rows), 32):
        chunk = zip(rows[start : start + 32], backgrounds[start : start + 32], strict=True)
        x = to_tensor(np.stack([pictures.composite(row, colour) for row, colour in chunk]))
        pooled.append(model(x))
    return torch.cat(pooled)


def encode_all(texts: list[str]) -> Float[Tensor, "n 384"]:
    """Return the sentence vectors of `texts`."""
    encoder, tokenizer = load_text_encoder(), load_tokenizer()
    chunks = [texts[start : start + 256] for start in range(0, len(texts), 256)]
    return torch.cat([encode_sentences(encoder, tokenizer, chunk) for chunk in chunks])


def contrastive_loss(a: Float[Tensor, "b c"], b: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """Return the loss of the module docstring for matching rows of unit vectors."""
    logits = TEMPERATURE * a @ b.T
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def ranks(a: Float[Tensor, "n c"], b: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
    """Return for each row of `a` how many rows of `b` are nearer than its own (0 = found)."""
    similarity = a @ b.T
    return (similarity > similarity.diagonal()[:, None]).sum(1)


def train(
    images: Float[Tensor, "s k n 1280"], sentences: Float[Tensor, "s k t n 384"]
) -> AlignmentHead:
    """Train a head on features and sentences by style, background (and caption form) and name."""
    torch.manual_seed(0)
    styles, backgrounds, count, _ = images.shape
    forms = sentences.shape[2]
    head = AlignmentHead().train()
    head.mean.copy_(images.mean((0, 1, 2)))
    head.deviation.copy_(images.std((0, 1, 2)) + 1e-3)
    torch.nn.init.eye_(head.text.weight)
    torch.nn.init.zeros_(head.text.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.05)
    total = EPOCHS * styles
    for epoch in range(total):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - epoch / total)
        order = torch.randperm(count)
        for start in range(0, count, BATCH):
            names = order[start : start + BATCH]
            style = torch.randint(styles, (len(names),))
            background = torch.randint(backgrounds, (len(names),))
            form = torch.randint(forms, (len(names),))
            x = images[style, background, names]
            x = x + 0.1 * head.deviation * torch.randn_like(x)
            a = head.embed_images(x)
            b = head.embed_sentences(sentences[style, background, form, names])
            loss = contrastive_loss(a, b)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return head.eval().requires_grad_(False)


def build(cache: Path) -> tuple[AlignmentHead, dict[str, float]]:
    """Return the trained head and its retrieval figures on trained styles and on Twemoji."""
    styles = taught_styles(cache)
    names = styles[STYLES[0]].names
    random = np.random.default_rng(0)
    palette = list(COLOURS)
    features, sentences = [], []
    for style in STYLES:
        for background in range(1 + COLOURED):
            drawn = [palette[i] for i in random.integers(len(palette), size=len(names))]
            chosen = [None if background == 0 else colour for colour in drawn]
            colours = [WHITE if colour is None else COLOURS[colour] for colour in chosen]
            features.append(picture_features(styles[style], list(range(len(names))), colours))
            full = [caption(n, style, c) for n, c in zip(names, chosen, strict=True)]
            plain = [caption(name, style) for name in names]
            sentences.append(torch.stack([encode_all(texts) for texts in (full, plain, names)]))
    shape = (len(STYLES), 1 + COLOURED)
    images = torch.stack(features).reshape(*shape, len(names), -1)
    head = train(images, torch.stack(sentences).reshape(*shape, -1, len(names), SENTENCE))
    twemoji = load_pictures("twemoji", cache)
    row_of = {name: row for row, name in enumerate(twemoji.names)}
    shared = [number for number, name in enumerate(names) if name in row_of]
    rows = [row_of[names[number]] for number in shared]
    unseen = picture_features(twemoji, rows, [WHITE] * len(rows))
    spoken = head.embed_sentences(encode_all([names[number] for number in shared]))
    figures = {"names": float(len(shared))}
    for title, sets in (("trained_styles", list(images[:, 0, shared])), ("twemoji", [unseen])):
        rank = torch.cat([ranks(head.embed_images(x), spoken) for x in sets])
        figures[f"{title}_r1"] = (rank < 1).float().mean().item()
        figures[f"{title}_r5"] = (rank < 5).float().mean().item()
    return head, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("weights"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    head, figures = build(arguments.cache)
    state = {key: value.half().contiguous() for key, value in head.state_dict().items()}
    save_file(state, arguments.output / "alignment-v1.safetensors")
    (arguments.output / "alignment-v1.json").write_text(json.dumps(figures) + "\n", "utf-8")
    LOGGER.info("%s", figures)


if __name__ == "__main__":
    main()
