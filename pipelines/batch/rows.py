"""One row of a batch: the fields it may have, what each takes, its seed.

A row comes from a file that someone else may have written, so it is read strictly: unknown fields,
wrong types, control characters and values out of range are refused in words. A file name is made
from the id, never from the prompt; an id is letters, digits, `-` and `_`.

    seed of a row without one = first 7 bytes of sha256("{seed of the job}|{id}")

It depends on the id, not on the position, so it survives sorting, sharding and other batch sizes.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from skipstep.pipelines.generate import LARGEST_SIDE, read_size
from skipstep.plugins import options
from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import show
from skipstep.plugins.spelling import did_you_mean

__all__ = [
    "FIELDS",
    "LARGEST_SEED",
    "LONGEST_TEXT",
    "Fields",
    "Row",
    "RowError",
    "fields_of",
    "read_row",
    "recipe_text",
    "subject_of",
]

LONGEST_TEXT = 4000
LARGEST_SEED = 2**63 - 1
MOST_STEPS = 1000
MOST_FRAMES = 1024
LARGEST_GUIDANCE = 1000
# Line breaks and tabs are text; escape sequences, NULs and halves of surrogate pairs are not.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# Names that Windows gives to devices.
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)


class RowError(PluginError):
    """Report a row that cannot be used; the line is said by whoever knows it."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one picture is made from; None leaves the pipeline its own default.

    `photos` is what a reconstruction has instead of a prompt: a folder below that of the rows, and
    `steps` are those of its refinement. `plugins` is a recipe as JSON text, always written the same
    way, so that rows with the same plugins have the same text.
    """

    id: str
    line: int
    prompt: str
    seed: int
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int = 20
    guidance: float | None = None
    plugins: str = "[]"
    frames: int | None = None
    photos: str | None = None

    @property
    def group(self) -> tuple[Any, ...]:
        """Return what has to be equal in one pipeline call."""
        has_negative = self.negative is not None
        size = (self.width, self.height, self.frames)
        return (*size, self.steps, self.guidance, has_negative, self.plugins)


def read_text(field: str, value: object) -> str:
    """Check a prompt."""
    if not isinstance(value, str):
        raise RowError(f"{field} is {show(value)}: it must be text")
    if len(value) > LONGEST_TEXT:
        raise RowError(
            f"{field} has {len(value)} characters: at most {LONGEST_TEXT} are allowed, shorten it"
        )
    found = CONTROL.search(value)
    if found is not None:
        raise RowError(
            f"{field} holds the control character U+{ord(found[0]):04X} at position "
            f"{found.start() + 1}: remove it"
        )
    return value


def read_prompt(field: str, value: object) -> str:
    """Check a prompt that must not be empty."""
    text = read_text(field, value)
    if not text.strip():
        raise RowError(f"{field} is empty: write what the picture should show")
    return text


def whole_number(least: int, most: int) -> Callable[[str, object], int]:
    """Return a check for whole numbers; True and "20" are none."""

    def read(field: str, value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise RowError(f"{field} is {show(value)}: it must be a whole number")
        if not least <= value <= most:
            raise RowError(f"{field}={show(value)} is not allowed: {least} to {most}")
        return value

    return read


def read_guidance(field: str, value: object) -> float:
    """Check a guidance scale."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"{field} is {show(value)}: it must be a number")
    if not 0 <= value <= LARGEST_GUIDANCE:
        raise RowError(f"{field}={show(value)} is not allowed: 0 to {LARGEST_GUIDANCE}")
    return float(value)


def read_row_size(field: str, value: object) -> tuple[int, int]:
    """Check a size such as "512x768"."""
    if not isinstance(value, str):
        raise RowError(f'{field} is {show(value)}: write "256" or "512x768" (width x height)')
    try:
        return read_size(value)
    except PluginError as error:
        raise RowError(str(error)) from None


def read_id(field: str, value: object) -> str:
    """Check an id, which becomes a file name."""
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or ID.fullmatch(text) is None:
        raise RowError(
            f"{field} is {show(value)}: 1 to 64 letters, digits, - and _ are allowed, the first a "
            "letter or a digit"
        )
    if RESERVED.fullmatch(text):
        raise RowError(f"{field}={text} is not allowed: no file can have this name on Windows")
    return text


def read_plugins(field: str, value: object) -> str:
    """Check a recipe: "easycache:threshold=0.08", several joined by " + ", or a list of plugins."""
    parts = value if isinstance(value, list) else [value]
    built = []
    try:
        for part in parts:
            if isinstance(part, str):
                texts = part.split(" + ") if part.strip() else []
                built += [options.build(*options.parse_spec(text.strip())) for text in texts]
            elif isinstance(part, Mapping):
                built.append(options.build(part))
            else:
                raise RowError(f'{show(part)} is no plugin: write "easycache:threshold=0.08"')
    except PluginError as error:
        raise RowError(f"{field}: {error}") from None
    return recipe_text(built)


def read_photos(field: str, value: object) -> str:
    """Check the name of a folder: below the folder of the rows, whatever the system."""
    text = read_prompt(field, value)
    parts = text.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in text:
        raise RowError(
            f"{field} is {show(value)}: it must be a folder beside the file of rows, without '..'"
        )
    return text


Fields = Mapping[str, Callable[[str, object], Any]]
"""The fields a row may have, and what reads each."""

FIELDS: Fields = {
    "id": read_id,
    "prompt": read_prompt,
    "negative": read_text,
    "seed": whole_number(0, LARGEST_SEED),
    "size": read_row_size,
    "width": whole_number(1, LARGEST_SIDE),
    "height": whole_number(1, LARGEST_SIDE),
    "steps": whole_number(1, MOST_STEPS),
    "guidance": read_guidance,
    "frames": whole_number(1, MOST_FRAMES),
    "plugins": read_plugins,
}
SCENE_FIELDS: Fields = {
    "id": read_id,
    "photos": read_photos,
    "seed": FIELDS["seed"],
    "steps": FIELDS["steps"],
}


def fields_of(task: str) -> Fields:
    """Return the fields of a task's rows; the arms of a comparison are the job's."""
    if task == "reconstruct":
        return SCENE_FIELDS
    if task == "compare":
        return {name: check for name, check in FIELDS.items() if name != "plugins"}
    return FIELDS


def subject_of(fields: Fields) -> str:
    """Return the field that no row can do without.

    >>> subject_of(FIELDS), subject_of(SCENE_FIELDS)
    ('prompt', 'photos')
    """
    return "prompt" if "prompt" in fields else "photos"


def recipe_text(plugins: Any) -> str:
    """Write plugins as JSON, the same text for the same plugins."""
    described = [options.to_dict(plugin) for plugin in plugins]
    return json.dumps(described, sort_keys=True, separators=(",", ":"))


def read_row(
    line: int,
    given: Mapping[str, Any],
    defaults: Row,
    known: dict[str, str] | None = None,
    fields: Fields = FIELDS,
) -> Row:
    """Return a checked row; what it does not say is taken from `defaults`.

    Args:
        line: where the row stands in its file; it is the id of a row that has none.
        given: fields by name; None is the same as leaving the field out.
        defaults: a row whose `seed` is the seed of the job.
        known: recipes that were read before, as they were written and as they are noted; a million
            rows rarely have more than a few.
        fields: those that a row may have.

    Raises RowError.
    """
    values: dict[str, Any] = {}
    for field, value in given.items():
        if value is None and field in fields:
            continue
        if field == "plugins" and known is not None and field in fields:
            written = json.dumps(value, sort_keys=True)
            if written not in known:
                known[written] = read_plugins(field, value)
            values[field] = known[written]
            continue
        check = fields.get(field)
        if check is None:
            hint = did_you_mean(str(field)[:60], fields)
            raise RowError(f"unknown field {show(field)}{hint} Fields: {', '.join(fields)}")
        values[field] = check(field, value)
    if (subject := subject_of(fields)) not in values:
        least = "what to draw" if subject == "prompt" else "a folder of pictures"
        raise RowError(f'no {subject}: a row needs at least {{"{subject}": "{least}"}}')
    if "size" in values:
        if "width" in values or "height" in values:
            raise RowError("size and width/height are both given: give one of them")
        values["width"], values["height"] = values.pop("size")
    elif ("width" in values) != ("height" in values):
        raise RowError("width and height go together: give both or neither")
    name = values.setdefault("id", f"{line:07d}")
    values.setdefault("seed", derived_seed(defaults.seed, name))
    return replace(defaults, line=line, **values)


def derived_seed(job_seed: int, name: str) -> int:
    """Return the seed of a row that has none.

    >>> derived_seed(0, "0000001"), derived_seed(1, "0000001")
    (20266843470309799, 61890409149458806)
    """
    return int.from_bytes(hashlib.sha256(f"{job_seed}|{name}".encode()).digest()[:7], "big")
