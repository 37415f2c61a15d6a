"""Tokenizers that need no download: transformers' own classes, one token per character or byte."""

import string

from transformers import CLIPTokenizer, Qwen2Tokenizer, T5Tokenizer

__all__ = ["clip_tokenizer", "qwen_tokenizer", "t5_tokenizer"]

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_characters() -> list[str]:
    """List the 256 characters that byte-level BPE writes for bytes, printable bytes first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(hidden))]


def numbered(tokens: list[str]) -> dict[str, int]:
    """Number tokens in order of first appearance."""
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def clip_tokenizer() -> CLIPTokenizer:
    """Build a CLIP tokenizer without merges, 77 tokens long."""
    characters = byte_characters()
    specials = ["<|startoftext|>", "!", "<|endoftext|>"]
    vocabulary = numbered(specials + characters + [f"{character}</w>" for character in characters])
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """Build a unigram T5 tokenizer over ASCII characters."""
    characters = string.ascii_letters + string.digits + string.punctuation
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = specials + [(character, -3.0) for character in characters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Build a byte-level Qwen tokenizer with chat markers and a chat template."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vision = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    vocabulary = numbered(byte_characters() + specials + vision)
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=1024)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
