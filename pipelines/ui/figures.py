"""What a pair of pictures cost and how close they are: figures, and a verdict in words.

The steps of "how close" are rules of thumb for people who do not think in decibels, and say so.
"""

import math
from dataclasses import dataclass
from typing import Any

from skipstep.pipelines.ui.controls import recipe_words
from skipstep.pipelines.ui.studio import Pair, Side, read_json

__all__ = ["Figure", "describe_pair", "figures_of", "verdict_of"]

MIB = 2**20
HARD_TO_SEE, CLOSE_LOOK = 40.0, 30.0


@dataclass(frozen=True)
class Figure:
    """One number with its name; `about` explains it."""

    name: str
    value: str
    about: str


def figures_of(pair: Pair) -> list[Figure]:
    """Return the figures of a pair, the most wanted first."""
    report = pair.accelerated.report
    fraction = 1.0 if report is None else report.fraction
    plain = f"plain {pair.plain.seconds:.2f} s"
    closeness = "-" if pair.ssim is None else f"{pair.ssim:.3f}"
    return [
        Figure("speed-up", f"{pair.speedup:.2f}x", "one run each"),
        Figure(
            "time",
            f"{pair.accelerated.seconds:.2f} s",
            f"{plain}, kept" if pair.plain.is_kept else plain,
        ),
        Figure("computed", f"{fraction:.0%}", "of the blocks"),
        Figure("memory", *memory(pair.accelerated)),
        Figure("PSNR", decibels(pair.psnr), "higher is closer"),
        Figure("SSIM", closeness, "1 is equal"),
        Figure("LPe", f"{pair.feature_distance:.3f}", "feature distance, 0 is equal"),
    ]


def decibels(value: float) -> str:
    """Return a PSNR in words: infinite is identical."""
    return "identical" if math.isinf(value) else f"{value:.1f} dB"


def memory(side: Side) -> tuple[str, str]:
    """Return what a run held in memory, and what that is."""
    held = 0 if side.report is None else side.report.bytes_held
    words = "held by plugins"
    if side.peak_bytes is not None:
        words += f", GPU peak {side.peak_bytes / MIB:,.0f} MiB"
    return (f"{held / MIB:.1f} MiB" if held >= MIB / 20 else f"{held / 1024:.0f} KiB"), words


def verdict_of(pair: Pair) -> str:
    """Say what was saved, what it cost, and how far to trust that."""
    report = pair.accelerated.report
    if report is None:
        return "No plugin is on: both pictures are plain ones. Choose a preset or a plugin."
    own = pair.accelerated.steps
    if own is not None:
        said = (
            f"{own} steps of a student against {pair.row.steps} plain ones. {how_close(pair.psnr)}"
        )
    elif report.fraction >= 1 and not report.calls:
        said = str(report.verdict)
    elif math.isinf(pair.psnr) and report.fraction < 1:
        said = f"{report.verdict} The two pictures are identical."
    else:
        said = f"{report.verdict} {how_close(pair.psnr)}"
    if pair.speedup < 1 and report.fraction < 1:
        said += (
            " It was not faster here: on small models and busy machines what a cache saves can get "
            "lost in the noise of a single run."
        )
    return f"{said} One run each, for a first impression; the Compare tab measures."


def how_close(psnr: float) -> str:
    """Say how close two pictures are, by rule of thumb."""
    if math.isnan(psnr):
        return "The accelerated picture holds values that are not numbers: do not use this."
    if math.isinf(psnr):
        return "The two pictures are identical."
    if psnr >= HARD_TO_SEE:
        return f"At {psnr:.1f} dB the difference is hard to see."
    if psnr >= CLOSE_LOOK:
        return f"At {psnr:.1f} dB the difference shows on a close look."
    return f"At {psnr:.1f} dB the picture is visibly another one."


def describe_pair(pair: Pair) -> dict[str, Any]:
    """Return a pair as plain data, pictures aside; what is infinite or broken becomes None."""
    report = pair.accelerated.report
    return {
        "model": pair.model,
        "pipeline": pair.pipeline,
        "prompt": pair.row.prompt,
        "seed": pair.row.seed,
        "steps": pair.row.steps,
        "recipe": recipe_words(read_json(pair.row.plugins)),
        "seconds": pair.accelerated.seconds,
        "seconds_plain": pair.plain.seconds,
        "speedup": pair.speedup,
        "fraction": 1.0 if report is None else report.fraction,
        "bytes_held": 0 if report is None else report.bytes_held,
        "psnr": pair.psnr if math.isfinite(pair.psnr) else None,
        "ssim": pair.ssim,
        "feature_distance": pair.feature_distance,
        "timeline": pair.timeline,
        "verdict": verdict_of(pair),
    }
