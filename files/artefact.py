"""Small JSON files that carry what was measured or searched: read strictly, written plainly.

Such a file may come from a stranger, so reading trusts nothing: a size limit, a regular file,
UTF-8, no NaN or infinity, no key twice, bounded nesting, a known kind and version, no unknown key.
Messages say where and what, and never quote the content.

A fingerprint is a plain dict that says what the numbers were made for (model, scheduler, steps,
size, versions). It is built and compared by the caller; here it is only carried.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

__all__ = ["LIMIT_BYTES", "differences", "load_artefact", "refusing_files", "save_artefact"]

LIMIT_BYTES = 1_000_000

Artefact = TypeVar("Artefact")

_IS_REFUSING: ContextVar[bool] = ContextVar("skipstep_refusing_files", default=False)


@contextlib.contextmanager
def refusing_files() -> Iterator[None]:
    """Refuse paths inside a `with` block, in this thread: options then come from a stranger."""
    token = _IS_REFUSING.set(True)
    try:
        yield
    finally:
        _IS_REFUSING.reset(token)


def load_artefact(
    path: str | Path,
    cls: type[Artefact],
    *,
    kind: str,
    limit: int = LIMIT_BYTES,
    made_by: str = "",
) -> Artefact:
    """Read the file at `path` as a `cls`, a pydantic dataclass of version 1 and the given `kind`.

    Args:
        limit: the most bytes such a file may have.
        made_by: the command that makes one, told where the file is missing.

    Raises ValueError that names the file and what is wrong with it.
    """
    if _IS_REFUSING.get():
        raise ValueError("a path is not taken here: give what the file holds")
    path = Path(path).expanduser()
    data = _read(path, limit, made_by)
    if data.get("kind") != kind:
        raise ValueError(f"{path}: 'kind' must be {kind!r}: is it a file of another sort?")
    if type(data.get("version")) is not int or data["version"] != 1:
        raise ValueError(f"{path}: 'version' must be 1: make the file anew with this skipstep")
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        found = error.errors(include_input=False, include_context=False, include_url=False)
        told = "; ".join(
            f"{'.'.join(str(part)[:40] for part in e['loc']) or 'file'}: {e['msg']}"
            for e in found[:3]
        )
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise ValueError(f"{path}: {told}{more}") from None


def save_artefact(path: str | Path, artefact: Any) -> None:
    """Write a pydantic dataclass as indented JSON; raises ValueError on NaN or infinity."""
    data = TypeAdapter(type(artefact)).dump_python(artefact, mode="json")
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    Path(path).expanduser().write_text(text, encoding="utf-8")


def differences(made_for: Mapping[str, Any], running: Mapping[str, Any]) -> list[str]:
    """Return one line per key of `made_for` whose value `running` does not share.

    >>> differences({"steps": 20, "model": "a"}, {"steps": 30, "model": "a", "size": 64})
    ['steps: made for 20, running 30']
    """
    return [
        f"{key}: made for {value!r}, running {running.get(key)!r}"
        for key, value in made_for.items()
        if running.get(key) != value
    ]


def _read(path: Path, limit: int, made_by: str) -> dict[str, Any]:
    """Return the JSON object in the file, or say why there is none."""
    # is_file keeps us from waiting on a pipe or reading a device without end.
    if not path.is_file():
        advice = f": make one with {made_by}" if made_by else ""
        raise ValueError(f"{path}: there is no such file{advice}")
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"{path}: larger than {limit} bytes: this is no such file")
    try:
        data = json.loads(
            raw.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: must hold one JSON object")
    return data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)
