"""Files of prompts: JSONL, CSV, plain lines and Parquet, read one row at a time.

A bad row is handed on as an error with its line, and reading goes on. A bad header, which makes
every row bad, is refused at once. JSON and CSV are read by the standard library and not by pyarrow,
which gives up a whole file for one torn line.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from skipstep.pipelines.batch.rows import FIELDS, Fields, RowError, subject_of
from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import show
from skipstep.plugins.spelling import did_you_mean

__all__ = ["Found", "check_file", "read_file"]

Found = tuple[int, dict[str, Any] | RowError]
"""A line number, counted from 1, and the row's fields or what is wrong with it."""

LONGEST_LINE = 100_000
WHOLE_NUMBERS = ("seed", "width", "height", "steps", "frames")


def read_file(path: Path, fields: Fields = FIELDS) -> Iterator[Found]:
    """Read the rows of a file, which may have these fields; its ending says how.

    Raises PluginError for a bad header, or Parquet without pyarrow, and what `check_file` raises.
    """
    check_file(path)
    return READERS[path.suffix.lower()](path, fields)


def check_file(path: Path) -> None:
    """Raise PluginError for an ending we do not know, FileNotFoundError if there is no file."""
    if path.suffix.lower() not in READERS:
        raise PluginError(
            f"{path}: the ending {path.suffix!r} is not known: give a file of {', '.join(READERS)} "
            "(.jsonl has one JSON object a line, .txt one prompt a line)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")


def raw_lines(file: BinaryIO) -> Iterator[tuple[int, str | RowError]]:
    """Yield lines that are not blank, decoded; a line that is too long is never held in memory."""
    number = 0
    while raw := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(raw) > LONGEST_LINE:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(LONGEST_LINE + 1)
            yield number, RowError(f"the line is longer than {LONGEST_LINE} bytes: shorten it")
            continue
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield number, RowError(f"not UTF-8 at byte {error.start + 1}: save the file as UTF-8")
            continue
        if text.strip():
            yield number, text.rstrip("\r\n")


def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that comes twice; JSON would silently take the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{show(next(key for key in keys if keys.count(key) > 1))} is there twice")
    return found


def refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is no number")


def read_jsonl(path: Path, fields: Fields) -> Iterator[Found]:
    """Read one JSON object a line."""
    decoder = json.JSONDecoder(object_pairs_hook=refuse_twice, parse_constant=refuse_constant)
    with path.open("rb") as file:
        for number, text in raw_lines(file):
            if isinstance(text, RowError):
                yield number, text
                continue
            try:
                row = decoder.decode(text)
            except json.JSONDecodeError as error:
                yield number, RowError(f"not JSON: {error.msg} at column {error.colno}")
            except (ValueError, RecursionError) as error:
                yield number, RowError(f"not JSON that we read: {error}")
            else:
                if isinstance(row, dict):
                    yield number, row
                else:
                    least = f'{{"{subject_of(fields)}": "..."}}'
                    yield number, RowError(f"{show(row)} is no row: write {least}")


def read_lines(path: Path, fields: Fields) -> Iterator[Found]:
    """Read one prompt a line, or what else a row is about."""
    subject = subject_of(fields)
    with path.open("rb") as file:
        for number, text in raw_lines(file):
            yield number, text if isinstance(text, RowError) else {subject: text}


def read_csv(path: Path, fields: Fields) -> Iterator[Found]:
    """Read a CSV whose first line names the fields; an empty cell is a field left out."""
    # What is not UTF-8 becomes surrogates, which the check of the row refuses with their place.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise PluginError(f"{path}: line 1 is no CSV header: {error}") from None
        check_header(path, header, fields)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield line, RowError(f"not CSV: {error}")
                continue
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(header):
                yield line, RowError(f"{len(cells)} cells under a header of {len(header)}")
                continue
            named = zip(header, cells, strict=True)
            yield line, {field: from_cell(field, text) for field, text in named if text.strip()}


def from_cell(field: str, text: str) -> Any:
    """Read a number where the field is one; what is none is left for the check to refuse."""
    kind = int if field in WHOLE_NUMBERS else float if field == "guidance" else str
    try:
        return kind(text)
    except ValueError:
        return text


def read_parquet(path: Path, fields: Fields) -> Iterator[Found]:
    """Read a Parquet file with the fields as columns; the line is the number of the row."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise PluginError(
            f'{path}: Parquet needs pyarrow: pip install "skipstep[parquet]", or save as .jsonl'
        ) from None
    try:
        table = parquet.ParquetFile(path)
        check_header(path, table.schema_arrow.names, fields)
        number = 0
        for part in table.iter_batches(batch_size=4096):
            for row in part.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowException as error:
        raise PluginError(f"{path}: not readable as Parquet: {error}") from None


def check_header(path: Path, header: Iterable[str], fields: Fields) -> None:
    """Refuse columns that no row can have."""
    names = list(header)
    for name in names:
        if name not in fields:
            hint = did_you_mean(name[:60], fields)
            raise PluginError(
                f"{path}: unknown column {show(name)}{hint} Columns: {', '.join(fields)}"
            )
        if names.count(name) > 1:
            raise PluginError(f"{path}: column {name!r} is there twice")
    if (subject := subject_of(fields)) not in names:
        raise PluginError(f"{path}: no column named {subject}. Columns: {', '.join(fields)}")


READERS = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".txt": read_lines,
    ".parquet": read_parquet,
}
