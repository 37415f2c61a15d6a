"""The GPU session without a GPU: plans, goes through its code on the CPU, goes on, writes pages."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from skipstep.benchmarks.gpu import slices
from skipstep.benchmarks.gpu.__main__ import main
from skipstep.benchmarks.gpu.cases import CASES, uncovered
from skipstep.benchmarks.gpu.pages import NOTHING, regenerate
from skipstep.benchmarks.gpu.records import ROOT, Record, append, measured
from skipstep.benchmarks.gpu.slices import SLICES, Machine, Unit, best_tiles, candidates
from skipstep.kernels.tuning import SHARED_LIMIT, Tiles, shared_bytes

CPU = Machine(torch.device("cpu"), tiny=True)
FACTS = {"device": "H100", "torch": "2.13", "triton": "3.9", "git": "abc"}


def test_every_kernel_has_a_case() -> None:
    assert not uncovered(), "add these to CASES in benchmarks/gpu/cases.py"
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", SLICES)
def test_plans_need_no_gpu_and_name_each_unit_once(name: str) -> None:
    full = Machine(torch.device("cpu"), tiny=False)
    names = [unit.name for unit in SLICES[name](full)]
    assert names and len(set(names)) == len(names)


def test_a_dry_run_finds_every_case_right(tmp_path: Path) -> None:
    assert main(["correctness", "--dry-run", "--output", str(tmp_path)]) == 0
    found = measured(tmp_path, "correctness")
    assert set(found) == {case.name for case in CASES}
    assert all(record.values["right"] for record in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SLICES if name != "correctness"])
def test_a_dry_run_goes_through_every_slice(name: str, tmp_path: Path) -> None:
    assert main([name, "--dry-run", "--output", str(tmp_path)]) == 0
    assert set(measured(tmp_path, name)) == {unit.name for unit in SLICES[name](CPU)}


def test_a_stopped_slice_goes_on_and_failures_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    broken = True

    def unit(name: str) -> Unit:
        def measure() -> dict[str, Any]:
            calls.append(name)
            if name == "b" and broken:
                raise RuntimeError("no such instruction")
            return {"ms": 1.0}

        return Unit(name, measure)

    monkeypatch.setitem(slices.SLICES, "roofline", lambda machine: iter(map(unit, "abc")))
    command = ["roofline", "--dry-run", "--output", str(tmp_path)]
    assert main([*command, "--minutes", "0"]) == 1
    assert "3 left: run the same command again" in capsys.readouterr().out
    assert main(command) == 0
    assert calls == ["a", "b", "c"]
    broken = False
    assert main(command) == 0
    assert calls == ["a", "b", "c", "b"]
    lines = (tmp_path / "roofline.jsonl").read_text().splitlines()
    assert "RuntimeError: no such instruction" in json.loads(lines[1])["error"]


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["sparse", "--output", str(tmp_path)]) == 1
    assert "not measured: there is no GPU here" in capsys.readouterr().out
    assert main(["--output", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{said}" for name in SLICES)
    assert "not measured: there is no GPU here" in said


def test_pages_show_lines_of_a_gpu_and_none_of_a_dry_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    markers = [f"<!-- gpu {name} -->\nold\n<!-- end gpu {name} -->" for name in SLICES]
    page.write_text("Above.\n" + "\n".join(markers) + "\nBelow.\n")
    values = {"tflops": 431.2345, "right": True, "baselines": {"sdpa": 1.5}}
    append(tmp_path / "sparse.jsonl", Record("sparse", "n8192", FACTS, values))
    append(
        tmp_path / "roofline.jsonl", Record("roofline", "x", {**FACTS, "device": "CPU, dry run"})
    )
    with (tmp_path / "sparse.jsonl").open("a") as file:
        file.write('{"slice": "sparse", "name": "cut')
    for _ in range(2):
        regenerate(page, tmp_path)
        text = page.read_text()
        assert text.startswith("Above.") and text.endswith("Below.\n") and "old" not in text
        assert "Measured on H100, torch 2.13, triton 3.9, commit abc." in text
        assert "| n8192 | 431 | yes | sdpa 1.5 |" in text
        assert text.count(NOTHING) == len(SLICES) - 1


def test_the_page_of_the_project_has_all_markers(tmp_path: Path) -> None:
    page = tmp_path / "kernels.md"
    page.write_text((ROOT / "docs" / "kernels.md").read_text(encoding="utf-8"), encoding="utf-8")
    regenerate(page, tmp_path)
    assert page.read_text(encoding="utf-8").count(NOTHING) == len(SLICES)


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines <!-- gpu correctness -->"):
        regenerate(page, tmp_path)


def test_candidates_fit_and_the_fastest_wins() -> None:
    for tiles in candidates(128, 2, 90):
        assert shared_bytes(tiles, 128, 2) <= SHARED_LIMIT[90]
    slow = {"ms": 2.0, "tiles": vars(Tiles(128, 64, 8, 2))}
    fast = {"ms": 1.0, "tiles": vars(Tiles(64, 64, 4, 3))}
    key = "block_sparse_attention/d64/bfloat16"
    assert best_tiles({f"{key}/1": slow, f"{key}/2": fast}) == {key: Tiles(64, 64, 4, 3)}
