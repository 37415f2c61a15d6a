"""Tables of docs/kernels.md from lines of results; without lines they say "not measured"."""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from skipstep.benchmarks.gpu.records import DRY_RUN, Record, measured
from skipstep.benchmarks.gpu.slices import SLICES

NOTHING = "Not measured: no GPU was at hand."


def rows_of(records: Iterable[Record], columns: list[str]) -> list[str]:
    """Write one Markdown row per record; dictionaries within values become columns' text."""
    lines = ["| case | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for record in records:
        cells = [text_of(record.values.get(column)) for column in columns]
        lines.append(f"| {record.name} | {' | '.join(cells)} |")
    return lines


def text_of(value: object) -> str:
    """Write a value with three significant digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text_of(inner)}" for key, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, int | float):
        return f"{value:.3g}"
    return "" if value is None else str(value)


def table(found: Mapping[str, Record]) -> str:
    """Write the records of one slice, and where and with what they were measured."""
    if not found:
        return NOTHING
    columns = list(dict.fromkeys(key for record in found.values() for key in record.values))
    places = dict.fromkeys(
        "{device}, torch {torch}, triton {triton}, commit {git}".format(**record.facts)
        for record in found.values()
    )
    return "\n".join([f"Measured on {'; '.join(places)}.", "", *rows_of(found.values(), columns)])


def regenerate(page: Path, folder: Path) -> None:
    """Replace what stands between the markers of each slice.

    Raises ValueError where the page lacks a slice's markers.
    """
    text = page.read_text(encoding="utf-8")
    for slice_ in SLICES:
        start, end = f"<!-- gpu {slice_} -->", f"<!-- end gpu {slice_} -->"
        pattern = re.escape(start) + ".*?" + re.escape(end)
        found = measured(folder, slice_)
        real = {name: r for name, r in found.items() if r.facts["device"] != DRY_RUN}
        block = f"{start}\n{table(real)}\n{end}"
        # A function as replacement, because a string would be read for backslashes.
        text, count = re.subn(pattern, partial(as_it_is, block), text, flags=re.DOTALL)
        if not count:
            raise ValueError(f"{page} has no lines {start} and {end}: add them where it belongs")
    page.write_text(text, encoding="utf-8")


def as_it_is(block: str, _: re.Match[str]) -> str:
    """Replace a match by the block."""
    return block
