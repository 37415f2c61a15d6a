"""The page on writing plugins: its code is the example's, runs, conforms, and is found by name."""

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from skipstep.plugins import catalog
from skipstep.testing import run, tiny_pipeline
from skipstep.testing.conformance import check_on, check_options, check_plugin

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "third_party_plugin.py"
MODULE = "third_party_plugin"


def blocks(language: str) -> list[str]:
    """Return the code blocks of the page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def plugin_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Install the page's first block as a module, with the entry point of the page."""
    (tmp_path / f"{MODULE}.py").write_text(blocks("python")[0], encoding="utf-8")
    points = tomllib.loads(blocks("toml")[0])["project"]["entry-points"]
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in points[group].items())
        for group in points
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


def test_the_first_block_is_the_example() -> None:
    assert blocks("python")[0] == EXAMPLE.read_text(encoding="utf-8")
    code = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(code) <= 35


def test_it_conforms(plugin_module: Any) -> None:
    check_options(plugin_module.LateHalf, share=0.3)
    for family in ("pixart", "wan"):
        assert check_on(family, plugin_module.LateHalf, share=0.3) is None


@pytest.mark.slow
def test_the_pages_check_runs_as_printed(
    plugin_module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code = next(block for block in blocks("python") if "check_plugin" in block)
    exec(compile(code, "write-a-plugin.md", "exec"), {})
    assert "served=['flux', 'pixart', 'sdxl', 'wan']" in capsys.readouterr().out
    assert check_plugin(plugin_module.LateHalf, share=0.3).refused == {}


def test_it_is_found_by_name_and_does_what_the_page_says(plugin_module: Any) -> None:
    assert "latehalf" in catalog.names()
    tiny = tiny_pipeline("pixart")
    plain = run(tiny, steps=10)
    handle = tiny.pipe.enable_plugin("latehalf", share=0.6)
    first = run(tiny, steps=10)
    assert handle.report().timeline() == {"transformer": "######.#.#"}
    handle.detach()
    tiny.pipe.enable_plugin(plugin_module.LateHalf(share=0.6))
    assert torch.equal(run(tiny, steps=10), first)
    assert not torch.equal(first, plain)


def test_the_custom_plugin_conforms_and_acts_in_the_last_step() -> None:
    code = next(block for block in blocks("python") if "class Soften" in block)
    space: dict[str, Any] = {"__name__": "soften_of_the_page"}
    exec(compile(code, "write-a-plugin.md", "exec"), space)
    check_options(space["Soften"], factor=0.5)
    for family in ("pixart", "sdxl"):
        assert check_on(family, space["Soften"], factor=0.5) is None
    tiny = tiny_pipeline("pixart")
    plain = run(tiny)
    tiny.pipe.enable_plugin(space["Soften"](factor=0.5))
    assert not torch.equal(run(tiny), plain)


def test_every_other_block_is_python() -> None:
    for block in blocks("python"):
        compile(block, "write-a-plugin.md", "exec")
