"""Which cache, and which attention, works on which pipeline: every cell is run, none is written.

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

from skipstep.plugins import catalog
from skipstep.plugins.attention.block_sparse import METHODS
from skipstep.plugins.errors import Incompatible
from skipstep.plugins.options import to_dict
from skipstep.plugins.report import Report
from skipstep.testing import FAMILIES, Tiny, run, tiny_pipeline
from skipstep.testing.presets import PRESETS, lively, never_skips

__all__ = ["ATTENTION", "COMMAND", "attention_cell", "attention_section", "cell", "measure", "page"]

COMMAND = "python -m benchmarks.coverage"
DOCS = Path(__file__).resolve().parents[1] / "docs"
STEPS = 8
ATTENTION_STEPS = 3
ATTENTION: tuple[str, ...] = (*METHODS, "quantized")
"""The ways to attend that are shown; `block_sparse` is any of them."""
# Tokens of a block where 8 are too many for the few tokens of a tiny video.
BLOCK_OF = {
    "CogVideoXPipeline": 1,
    "HunyuanVideoPipeline": 2,
    "MochiPipeline": 1,
    "WanPipeline": 2,
    "DiTPipeline": 2,
    "StableDiffusion3Pipeline": 32,
}
TOLD = {"ZImagePipeline": {"text": "after"}}
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


def attention_cell(tiny: Tiny, name: str) -> dict[str, Any]:
    """Run one way to attend on one pipeline and return what happened.

    Raises RuntimeError when the cell neither works nor is refused.
    """
    tokens = BLOCK_OF.get(type(tiny.pipe).__name__, 8)
    told: dict[str, Any] = {}
    if name != "quantized":
        told = {"block_q": tokens, "block_k": tokens, "keep": 0.25}
        told |= TOLD.get(type(tiny.pipe).__name__, {})
    if name in ("draft", "nabla", "sta", "vsa"):
        told["tile"] = (1, 1, tokens)
    if name == "nabla":
        told["window"] = (1, 1, 1)
    if name == "xattention":
        told["stride"] = min(2, tokens)
    cls = catalog.load(name)
    before = run_without(tiny, ATTENTION_STEPS)
    try:
        tiny.pipe.enable_plugin(cls(**told, force=True, dense_steps=0, dense_layers=0))
    except Incompatible as refused:
        return {"works": False, "reason": str(refused).partition(": ")[2]}
    found, again = (run(tiny, steps=ATTENTION_STEPS) for _ in range(2))
    report = tiny.pipe.plugin_report()
    tiny.pipe.disable_plugins()
    layers = report.attention
    served = sum(layer.sparse + layer.quantized for layer in layers)
    if not served:
        return {"works": False, "reason": report.verdict.partition(" stayed dense: ")[2]}
    pairs = sum(layer.pairs for layer in layers)
    saved = sum(layer.saved * layer.pairs for layer in layers) / pairs
    is_changed = not torch.equal(found, before)
    after = run(tiny, steps=ATTENTION_STEPS)
    held = {
        "two runs differ": torch.equal(found, again),
        # Two frames are too few for radial attention to leave anything out.
        "nothing changed": is_changed or (saved == 0 and name != "quantized"),
        "disabling does not restore the picture": torch.equal(after, before),
    }
    broken = [problem for problem, is_held in held.items() if not is_held]
    if broken:
        raise RuntimeError(f"{name} on {type(tiny.pipe).__name__}: {'; '.join(broken)}")
    return {"works": True, "saved": round(saved, 3)}


def refusal(report: Report) -> str | None:
    """Return why a run was computed in full, where the cache learned that it cannot serve it."""
    whys = (choice.why for call in report.calls for choice in call.choices)
    return next((why for why in whys if why.startswith("contract not learned")), None)


def run_without(tiny: Tiny, steps: int = STEPS) -> torch.Tensor:
    """Run the plain pipeline."""
    with tiny.pipe.plugins_off():
        return run(tiny, steps=steps)


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
            "attention": {name: attention_cell(tiny, name) for name in ATTENTION},
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
            *attention_section(rows),
        ]
    )


def attention_section(rows: dict[str, Any]) -> list[str]:
    """Write the table of ways to attend, if it was measured."""
    if not all("attention" in row for row in rows.values()):
        return []
    names = list(next(iter(rows.values()))["attention"])
    reasons: list[str] = []
    lines = []
    for family, row in rows.items():
        texts = []
        for name in names:
            found = row["attention"][name]
            if found["works"]:
                texts.append("works" if name == "quantized" else f"works ({found['saved']:.0%})")
                continue
            note = found["reason"].replace(row["denoiser"], ANY_DENOISER)
            if note not in reasons:
                reasons.append(note)
            texts.append(f"no [^a{reasons.index(note) + 1}]")
        lines.append(f"| {' | '.join([family, *texts])} |")
    return [
        "## Which way to attend works where",
        "",
        "The figure is the share of all query-key products that was left out with a quarter of "
        "the key blocks kept; text is kept besides, and these toys have few tokens and much of it. "
        "Two runs are equal, and disabling gives the plain picture again.",
        "",
        f"| {' | '.join(['family', *names])} |",
        f"|{'---|' * (len(names) + 1)}",
        *lines,
        "",
        *[f"[^a{number}]: {reason}" for number, reason in enumerate(reasons, 1)],
        "",
    ]


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
