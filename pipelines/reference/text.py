"""Load the shipped text encoder (pruned MiniLM-L6, Wang et al. 2020, arXiv:2002.10957)."""

import json
from importlib import resources

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizerFast, PreTrainedTokenizerFast

__all__ = [
    "MAX_TOKENS",
    "encode_captions",
    "encode_sentences",
    "encode_tokens",
    "load_text_encoder",
    "load_tokenizer",
]

# Longer prompts are cut: a few of the longest captions lose the word "background".
MAX_TOKENS = 16


def load_tokenizer() -> PreTrainedTokenizerFast:
    """Load the fast tokenizer from package data."""
    weights = resources.files("skipstep.pipelines").joinpath("reference/weights")
    with resources.as_file(weights.joinpath("tokenizer-v1.json")) as path:
        tokenizer: PreTrainedTokenizerFast = BertTokenizerFast(
            tokenizer_file=str(path), model_max_length=MAX_TOKENS
        )
    return tokenizer


def load_text_encoder(dtype: torch.dtype = torch.float32) -> BertModel:
    """Load the frozen text encoder from package data, in evaluation mode."""
    weights = resources.files("skipstep.pipelines").joinpath("reference/weights")
    config = json.loads(weights.joinpath("text-v1.json").read_text(encoding="utf-8"))
    with resources.as_file(weights.joinpath("text-v1.safetensors")) as path:
        state = load_file(path)
    model = BertModel(BertConfig(**config))
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.to(dtype).eval().requires_grad_(False)


@torch.no_grad()
def encode_tokens(
    encoder: BertModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> tuple[Float[Tensor, "b s c"], Int[Tensor, "b s"]]:
    """Return token embeddings padded to 16 tokens, and the mask, as the pipeline does."""
    batch = tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    hidden = encoder(batch.input_ids, attention_mask=batch.attention_mask)[0]
    return hidden, batch.attention_mask


def encode_sentences(
    encoder: BertModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> Float[Tensor, "b c"]:
    """Return one unit vector per text: the mean of its token embeddings, as MiniLM is used."""
    hidden, mask = encode_tokens(encoder, tokenizer, texts)
    weights = mask[..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


@torch.no_grad()
def encode_captions(
    encoder: BertModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], form: str
) -> tuple[Float[Tensor, "m s d"], Int[Tensor, "m s"], Float[Tensor, "m d"]]:
    """Return bf16 token states, masks and bf16 pooled states, as a pipeline's encoder makes them.

    Args:
        form: "masked", the padding is hidden from the words (PixArt, Stable Diffusion);
            "unmasked", it is not (Flux); "zeroed", hidden and then set to zero (Wan).
    """
    states, masks, pooled = [], [], []
    for start in range(0, len(texts), 128):
        batch = tokenizer(
            texts[start : start + 128],
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(encoder.device)
        mask = None if form == "unmasked" else batch.attention_mask
        encoded = encoder(batch.input_ids, attention_mask=mask)
        hidden = encoded.last_hidden_state
        if form == "zeroed":
            hidden = hidden * batch.attention_mask[..., None]
        states.append(hidden.bfloat16().cpu())
        masks.append(batch.attention_mask.cpu())
        pooled.append(encoded.pooler_output.bfloat16().cpu())
    return torch.cat(states), torch.cat(masks), torch.cat(pooled)
