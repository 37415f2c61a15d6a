"""Which cache works on which family of pipelines: every cell is run, none is written by hand.

A cell works when, on a tiny pipeline of random weights, a gate that never skips gives the uncached
picture to the bit, two cached runs are equal, steps were really skipped, and disabling gives the
uncached picture again. A refusal is quoted. Anything else is an error and nothing is written.

    python -m benchmarks.coverage          writes docs/coverage.md and docs/coverage.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import diffusers
import torch

from skipstep.plugins.errors import Incompatible
from skipstep.plugins.options import to_dict
from skipstep.plugins.report import Report
from skipstep.testing import FAMILIES, Tiny, run, tiny_pipeline
from skipstep.testing.presets import PRESETS, lively, never_skips

__all__ = ["COMMAND", "cell", "measure", "page"]

COMMAND = "python -m benchmarks.coverage"
DOCS = Path(__file__).resolve().parents[1] / "docs"
STEPS = 8
# Stands for the class of a family's denoiser, so that equal refusals share a footnote.
ANY_DENOISER = "*denoiser*"


def cell(tiny: Tiny, preset: str) -> dict[str, Any]:
    """Run one preset on one pipeline and return what happened.

    Raises RuntimeError when the cell neither works nor is refused.
    """
    try:
        skipping, never = lively(preset, tiny, STEPS), never_skips(preset, tiny, STEPS)
        tiny.pipe.enable_plugin(skipping)
    except Incompatible as refused:
        # MagCache is calibrated first, so the refusal may have come from that.
        reason = str(refused).partition(": ")[2]
        return {"works": False, "reason": reason}
    uncached_before = run_without(tiny)
    cached, again = run(tiny, steps=STEPS), run(tiny, steps=STEPS)
    report = tiny.pipe.plugin_report()
    why = refusal(report)
    if why is None and preset == "cfgcache" and report.fraction == 1:
        why = report.verdict
    if why:
        tiny.pipe.disable_plugins()
        return {"works": False, "reason": why}
    tiny.pipe.enable_plugin(never)
    unskipped = run(tiny, steps=STEPS)
    tiny.pipe.disable_plugins()
    uncached = run(tiny, steps=STEPS)
    held = {
        "a gate that never skips changes the picture": torch.equal(unskipped, uncached),
        "two cached runs differ": torch.equal(cached, again),
        "nothing was skipped": report.fraction < 1 and not torch.equal(cached, uncached),
        "disabling does not restore the picture": torch.equal(uncached, uncached_before),
    }
    broken = [problem for problem, is_held in held.items() if not is_held]
    if broken:
        raise RuntimeError(f"{preset} on {type(tiny.pipe).__name__}: {'; '.join(broken)}")
    return {
        "works": True,
        "fraction": round(report.fraction, 4),
        "timeline": list(report.timeline().values()),
        "options": rounded(to_dict(skipping)["options"]),
    }


def refusal(report: Report) -> str | None:
    """Return why a run was computed in full, where the cache learned that it cannot serve it."""
    whys = (choice.why for call in report.calls for choice in call.choices)
    return next((why for why in whys if why.startswith("contract not learned")), None)


def run_without(tiny: Tiny) -> torch.Tensor:
    """Run the plain pipeline."""
    with tiny.pipe.plugins_off():
        return run(tiny, steps=STEPS)


def rounded(value: Any) -> Any:
    """Keep five digits of measured options."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list | tuple) else value


def measure() -> dict[str, Any]:
    """Run every preset on every family."""
    rows: dict[str, Any] = {}
    for family in FAMILIES:
        tiny = tiny_pipeline(family)
        cells = {preset: cell(tiny, preset) for preset in PRESETS}
        rows[family] = {
            "pipeline": type(tiny.pipe).__name__,
            "denoiser": type(getattr(tiny.pipe, tiny.denoiser)).__name__,
            "guidance": tiny.guidance,
            "cells": cells,
        }
        print(f"{family}: " + ", ".join(f"{name} {shown(c)}" for name, c in cells.items()))
    return {
        "command": COMMAND,
        "steps": STEPS,
        "torch": torch.__version__.partition("+")[0],
        "diffusers": diffusers.__version__,
        "families": rows,
    }


def shown(found: dict[str, Any]) -> str:
    """Write a cell as text."""
    return f"{found['fraction']:.1%}" if found["works"] else "refused"


def page(measured: dict[str, Any]) -> str:
    """Write the page that shows what `measure` returned."""
    rows: dict[str, Any] = measured["families"]
    presets = list(next(iter(rows.values()))["cells"])
    reasons: list[str] = []
    lines = []
    for family, row in rows.items():
        texts = []
        for preset in presets:
            found = row["cells"][preset]
            if found["works"]:
                texts.append(f"works ({found['fraction']:.1%})")
                continue
            note = f"`{preset}`: {found['reason'].replace(row['denoiser'], ANY_DENOISER)}"
            if note not in reasons:
                reasons.append(note)
            texts.append(f"refused [^{reasons.index(note) + 1}]")
        cells = [family, f"{row['pipeline']}, guidance {row['guidance']}", *texts]
        lines.append(f"| {' | '.join(cells)} |")
    count = sum(c["works"] for row in rows.values() for c in row["cells"].values())
    total = len(rows) * len(presets)
    head = ["family", "pipeline", *presets]
    return "\n".join(
        [
            "# Which cache works where",
            "",
            f"Written by `{measured['command']}` with torch {measured['torch']} and diffusers "
            f"{measured['diffusers']}; do not edit. The same data: [coverage.json](coverage.json).",
            "",
            f"{count} of {total} cells work, {total - count} are refused with a reason. "
            "Each cell was run on a real diffusers pipeline with a few thousand random weights: a "
            "gate that never skips gives the uncached picture to the bit, two cached runs are "
            "equal, and disabling gives the uncached picture again. The figure is the share of "
            "block computations that were executed in a run of "
            f"{measured['steps']} steps. Thresholds were measured on each pipeline, so that "
            "something is skipped; with trained weights and your threshold the share is another. "
            "Random weights say nothing about quality. In the reasons, *denoiser* stands for the "
            "class of the pipeline's denoiser.",
            "",
            f"| {' | '.join(head)} |",
            f"|{'---|' * len(head)}",
            *lines,
            "",
            *[f"[^{number}]: {reason}" for number, reason in enumerate(reasons, 1)],
            "",
        ]
    )


def main() -> None:
    """Measure, and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder to write into")
    folder = parser.parse_args().docs
    torch.set_num_threads(1)
    measured = measure()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coverage.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (folder / "coverage.md").write_text(page(measured), encoding="utf-8")
    print(f"wrote {folder / 'coverage.md'} and coverage.json")


if __name__ == "__main__":
    main()
