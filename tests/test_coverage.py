"""The table of what works where: complete, as measured, and still true in a sample of its cells."""

import json
from pathlib import Path
from typing import Any

import pytest

from skipstep.benchmarks.coverage import (
    ATTENTION,
    COMMAND,
    attention_cell,
    attention_section,
    cell,
    page,
)
from skipstep.plugins import catalog
from skipstep.testing import FAMILIES, tiny_pipeline

DOCS = Path(__file__).resolve().parents[1] / "docs"
SAMPLE = ["flux", "zimage", "sd15", "mochi", "flux_modular"]


def measured() -> dict[str, Any]:
    """Read the table as data."""
    found: dict[str, Any] = json.loads((DOCS / "coverage.json").read_text(encoding="utf-8"))
    return found


def presets() -> list[str]:
    """List the caches of the catalogue but "cache", the product that the others are rows of."""
    caches = [name for name in catalog.BUILTIN if catalog.load(name).kind == "cache"]
    return sorted(name for name in caches if name != "cache")


def test_the_table_lists_every_family_and_every_preset() -> None:
    table = measured()["families"]
    assert list(table) == list(FAMILIES)
    for row in table.values():
        assert sorted(row["cells"]) == presets()


def test_every_cell_works_or_says_why_not() -> None:
    for family, row in measured()["families"].items():
        for preset, found in row["cells"].items():
            if found["works"]:
                assert 0 < found["fraction"] < 1, (family, preset)
            else:
                assert len(found["reason"].split()) > 4, (family, preset)


def test_the_page_shows_the_data_and_names_its_command() -> None:
    text = (DOCS / "coverage.md").read_text(encoding="utf-8")
    assert text == page(measured())
    assert COMMAND in text.splitlines()[2]


@pytest.mark.parametrize("family", SAMPLE)
def test_the_cells_are_still_true(family: str) -> None:
    tiny = tiny_pipeline(family)
    row = measured()["families"][family]["cells"]
    number = SAMPLE.index(family)
    for preset in presets()[number % 2 :: 2]:
        found = cell(tiny, preset)
        expected = row[preset]
        assert found["works"] == expected["works"], preset
        if found["works"]:
            assert found["fraction"] == expected["fraction"], preset
        else:
            assert found["reason"] == expected["reason"], preset


def test_every_way_to_attend_is_shown() -> None:
    names = {name for name in catalog.BUILTIN if catalog.load(name).kind == "attention"}
    assert set(ATTENTION) == names - {"block_sparse"}


def test_a_way_to_attend_works_or_says_why_not() -> None:
    tiny = tiny_pipeline("dit")
    cells = {name: attention_cell(tiny, name) for name in ("sparge", "radial", "quantized")}
    assert cells["sparge"]["works"] and 0 < cells["sparge"]["saved"] < 1
    assert cells["quantized"]["works"]
    assert "makes images" in cells["radial"]["reason"]
    row = {"denoiser": "DiTTransformer2DModel", "attention": cells}
    text = "\n".join(attention_section({"dit": row}))
    assert "| dit | works (" in text and "[^a1]: transformer (*denoiser*) makes images" in text
    assert attention_section({"dit": {}}) == []
