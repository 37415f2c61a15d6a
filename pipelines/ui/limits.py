"""What the web UI takes from a stranger: text, sizes, steps, recipes, files, all with an end.

gradio checks sliders and lists on the server, but neither the length nor the type of a text, nor
how large a picture is. So every request is read here, by the strict reader of batch rows, before
anything is done with it. A recipe never opens a file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipstep.files.artefact import refusing_files
from skipstep.pipelines.batch.rows import FIELDS, Row, RowError, read_plugins, read_row
from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import build, show

__all__ = [
    "Limits",
    "check_upload",
    "read_arms_text",
    "read_count",
    "read_frames",
    "read_name",
    "read_optional",
    "read_number",
    "read_prompts",
    "read_recipe",
    "read_settings",
]

LONGEST_RECIPE = 20_000
LONGEST_NAME = 200
LARGEST_NUMBER = 10_000


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for; `pixels` are those of one picture."""

    pixels: int = 2048 * 2048
    steps: int = 100
    prompts: int = 16
    arms: int = 8
    calls: int = 200
    """Pipeline calls of one comparison, sweep or tuning."""
    batch_rows: int = 10_000
    upload_bytes: int = 64_000_000
    frames: int = 129
    clip_pixels: int = 129 * 1280 * 720
    """Of all frames of one clip."""
    photo_pixels: int = 50_000_000
    refine_steps: int = 400
    minutes: float = 60.0


def read_settings(given: Mapping[str, Any], limits: Limits) -> Row:
    """Return the settings of a picture, checked.

    Args:
        given: prompt, negative, seed, size, steps, guidance, plugins; None and "" are left out.

    Raises RowError, which says what was given and what is allowed.
    """
    fields = {name: value for name, value in given.items() if value is not None and value != ""}
    fields["plugins"] = read_recipe_list(fields.get("plugins", ""))
    if "prompt" not in fields:
        FIELDS["prompt"]("prompt", given.get("prompt") or "")
    with refusing_files():
        row = read_row(0, {"id": "picture", **fields}, Row("", 0, "", 0))
    if row.steps > limits.steps:
        raise RowError(f"steps={row.steps} is not allowed here: 1 to {limits.steps}")
    if (row.width or 0) * (row.height or 0) > limits.pixels:
        raise RowError(
            f"size {row.width}x{row.height} is not allowed here: at most {limits.pixels:,} pixels"
        )
    return row


def read_frames(value: object, row: Row, limits: Limits) -> int:
    """Return the number of frames of a clip.

    Raises RowError.
    """
    frames = read_count("frames", value, 2, limits.frames)
    pixels = frames * (row.width or 0) * (row.height or 0)
    if pixels > limits.clip_pixels:
        raise RowError(
            f"{frames} frames of {row.width}x{row.height} are not allowed here: at most "
            f"{limits.clip_pixels:,} pixels in all"
        )
    return frames


def read_recipe(text: object) -> list[Any]:
    """Return the plugins of a recipe such as "easycache:threshold=0.08 + textkv".

    Raises PluginError; a path inside the recipe is refused, never opened.
    """
    return [build(entry) for entry in read_recipe_list(text)]


def read_recipe_list(text: object) -> list[dict[str, Any]]:
    """Return a recipe, a text or a list of plugins, as plain data."""
    if not isinstance(text, str | list):
        raise RowError(f"the recipe is {show(text)}: it must be text such as easycache")
    length = len(text if isinstance(text, str) else repr(text))
    if length > LONGEST_RECIPE:
        raise RowError(f"the recipe has {length} characters: at most {LONGEST_RECIPE}")
    with refusing_files():
        listed: list[dict[str, Any]] = json.loads(read_plugins("recipe", text))
    refuse_large_numbers(listed)
    return listed


def refuse_large_numbers(value: Any) -> None:
    """Refuse numbers that no option means; a scheduler would make tables of their length."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            refuse_large_numbers(part)
    elif isinstance(value, int | float) and not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise RowError(
            f"recipe: the number {show(value)} is not allowed here: -{LARGEST_NUMBER} to "
            f"{LARGEST_NUMBER}"
        )


def read_lines(what: str, value: object, most: int) -> list[str]:
    """Return the lines of a text, or the texts of a list, that are not blank."""
    lines = value.splitlines() if isinstance(value, str) else value
    if not isinstance(lines, Sequence) or not all(isinstance(line, str) for line in lines):
        raise RowError(f"{what} are {show(value)}: give one a line")
    kept = [line.strip() for line in lines if line.strip()]
    if not 1 <= len(kept) <= most:
        raise RowError(f"{len(kept)} {what} were given: 1 to {most} are allowed here")
    return kept


def read_prompts(value: object, limits: Limits) -> list[str]:
    """Return prompts, one a line."""
    return [
        FIELDS["prompt"]("prompt", line) for line in read_lines("prompts", value, limits.prompts)
    ]


def read_arms_text(value: object, limits: Limits) -> dict[str, list[Any]]:
    """Return recipes, one a line, by the text that was given."""
    arms = {line: read_recipe(line) for line in read_lines("recipes", value, limits.arms)}
    return arms


def read_count(what: str, value: object, least: int, most: int) -> int:
    """Return a whole number between two others.

    Raises RowError.
    """
    number = read_number(what, value, least, most)
    if not number.is_integer():
        raise RowError(f"{what} is {show(value)}: it must be a whole number")
    return int(number)


def read_number(what: str, value: object, least: float, most: float) -> float:
    """Return a number between two others.

    Raises RowError.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"{what} is {show(value)}: it must be a number")
    if not least <= value <= most:
        raise RowError(f"{what}={show(value)} is not allowed here: {least:g} to {most:g}")
    return float(value)


def read_optional(what: str, text: object) -> float | None:
    """Return the number in a text, None for an empty one.

    Raises RowError.
    """
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    try:
        return float(text)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError, OverflowError):
        raise RowError(f"{what} is {show(text)}: it must be a number, or empty") from None


def read_name(what: str, value: object) -> str:
    """Check a short text that names something: a model, a plugin, an option."""
    text = FIELDS["prompt"](what, value)
    if len(text) > LONGEST_NAME:
        raise RowError(f"{what} has {len(text)} characters: at most {LONGEST_NAME} are allowed")
    return str(text.strip())


def check_upload(path: object, limits: Limits) -> Path:
    """Return the path of an uploaded file after a look at its size."""
    if not isinstance(path, str | Path):
        raise PluginError(f"no file was given, but {show(path)}: upload one")
    file = Path(path)
    if not file.is_file():
        raise PluginError("the uploaded file is gone: upload it again")
    if file.stat().st_size > limits.upload_bytes:
        raise PluginError(
            f"the file has {file.stat().st_size:,} bytes: at most {limits.upload_bytes:,}"
        )
    return file
