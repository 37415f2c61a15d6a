"""Text score: how well a picture agrees with its prompt, judged by a small head on frozen features.

A CLIP-like scorer (Radford et al. 2021, arXiv:2103.00020) for the reference model's world.
EfficientNet- Lite0 features f(x) and MiniLM sentence vectors s(p) are frozen; two small maps were
trained on emoji art with the symmetric contrastive loss:

  score(x, p) = cos( W_2 gelu(W_1 (f(x) - m) / d + b_1) + b_2,  T s(p) + b_T )       in [-1, 1]  (1)

Valid for names the reference model was taught; measured on an artist's style it never saw, see
`docs/reference/evaluation.json`. For anything else it is a guess, and it is not comparable to CLIP
score.
"""

import functools
from importlib import resources

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertModel, PreTrainedTokenizerFast

from skipstep.pipelines.metrics.efficientnet import EfficientNetLite0, load_features
from skipstep.pipelines.reference.text import encode_sentences, load_text_encoder, load_tokenizer

__all__ = ["AlignmentHead", "load_alignment_head", "text_score"]

FEATURES, HIDDEN, SENTENCE = 1280, 512, 384


class AlignmentHead(nn.Module):
    """Map image features and sentence vectors to one space, Eq. (1)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("deviation", torch.ones(FEATURES))
        self.image = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN), nn.GELU(), nn.Dropout(0.3), nn.Linear(HIDDEN, SENTENCE)
        )
        self.text = nn.Linear(SENTENCE, SENTENCE)

    def embed_images(self, features: Float[Tensor, "b 1280"]) -> Float[Tensor, "b 384"]:
        """Return unit vectors of pooled EfficientNet-Lite0 features."""
        return F.normalize(self.image((features - self.mean) / self.deviation), dim=-1)

    def embed_sentences(self, sentences: Float[Tensor, "b 384"]) -> Float[Tensor, "b 384"]:
        """Return unit vectors of MiniLM sentence vectors."""
        return F.normalize(self.text(sentences), dim=-1)


def load_alignment_head() -> AlignmentHead:
    """Load the shipped head from package data, frozen."""
    source = resources.files("skipstep.pipelines").joinpath(
        "reference/weights/alignment-v1.safetensors"
    )
    with resources.as_file(source) as path:
        state = load_file(path)
    head = AlignmentHead()
    head.load_state_dict({key: value.float() for key, value in state.items()})
    return head.eval().requires_grad_(False)


@functools.cache
def shipped_scorer() -> tuple[EfficientNetLite0, AlignmentHead, BertModel, PreTrainedTokenizerFast]:
    """Load the four frozen parts once per process."""
    return load_features(), load_alignment_head(), load_text_encoder(), load_tokenizer()


@torch.no_grad()
def text_score(
    images: Float[Tensor, "b 3 height width"], prompts: list[str]
) -> Float[Tensor, " b"]:
    """Return the agreement of each RGB picture in [-1, 1] with its prompt, Eq. (1).

    Runs on the CPU. Pictures are judged at 128 pixels, larger ones are reduced. Read differences
    between two sets of pictures of the same prompts, not single values.
    """
    if len(images) != len(prompts):
        raise ValueError(
            f"{len(images)} images but {len(prompts)} prompts: pass one prompt for each image"
        )
    features, head, encoder, tokenizer = shipped_scorer()
    small = images.float().cpu()
    if small.shape[-2:] != (128, 128):
        small = F.interpolate(small, (128, 128), mode="bilinear", antialias=True)
    pooled = [features(small[start : start + 32]) for start in range(0, len(small), 32)]
    embedded = head.embed_images(torch.cat(pooled))
    sentences = encode_sentences(encoder, tokenizer, prompts)
    return (embedded * head.embed_sentences(sentences)).sum(-1)
