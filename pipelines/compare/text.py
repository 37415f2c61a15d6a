"""A comparison as plain text: the table, the timelines, the verdicts."""

import statistics
import textwrap
from collections.abc import Sequence

from skipstep.pipelines.compare.comparison import ArmResult, Comparison
from skipstep.pipelines.compare.intervals import Estimate
from skipstep.pipelines.compare.verdicts import FULL

__all__ = ["COLUMNS", "cells", "in_pairs", "number", "strip", "text"]

COLUMNS = (
    "arm",
    "steps",
    "blocks",
    "FLOPs",
    "s/picture",
    "CPU s",
    "speed-up",
    "PSNR dB",
    "worst",
    "SSIM",
    "LPe",
    "text",
    "cache",
    "peak",
)


def in_pairs(arms: Sequence[ArmResult]) -> list[ArmResult]:
    """Order the arms so that each plugin arm is followed by its fewer-steps arm."""
    named = {arm.name: arm for arm in arms}
    ordered = {arm.name: arm for arm in arms if arm.kind == "baseline"}
    for arm in arms:
        if arm.kind == "plugins":
            ordered[arm.name] = arm
            if arm.equal_cost in named:
                ordered.setdefault(arm.equal_cost, named[arm.equal_cost])
    return list(ordered.values())


FIRST_TO_GO = ("FLOPs", "cache", "peak", "steps", "CPU s", "worst", "text", "LPe", "s/picture")
GAP = "  "


def text(comparison: Comparison, width: int | None = None) -> str:
    """Return the whole comparison as text, lines of prose wrapped at `width`."""
    plugins = [arm for arm in comparison.arms if arm.kind == "plugins"]
    longest = max((len(arm.name) for arm in plugins), default=0)
    strips = [
        f"  {arm.name:<{longest}}  {strip(arm.timelines[0])}" for arm in plugins if arm.timelines
    ]
    headline = comparison.headline()
    prose = [f"{arm.name}: {arm.verdict}" for arm in plugins]
    prose += [f"{arm.name}: warning: {each}" for arm in plugins for each in arm.warnings]
    prose += comparison.notes()
    if width is not None:
        prose = [textwrap.fill(line, width, subsequent_indent="  ") for line in prose]
        headline = textwrap.fill(headline, width, subsequent_indent="  ")
    return "\n".join(
        [
            headline,
            "",
            *table(comparison.arms, width),
            "",
            "Computed (#), partly (+) and skipped (.) steps of the first prompts:",
            *strips,
            "",
            *prose,
        ]
    )


def cells(arm: ArmResult) -> list[str]:
    """Return one text per column of the table; an empty text where there is nothing to say."""
    found = arm.estimates
    speed = arm.speedup
    interval = "" if speed.low is None else f" ({speed.low:.2f}-{speed.high:.2f})"
    return [
        arm.name,
        str(arm.steps),
        f"{arm.fraction:.0%}",
        "" if arm.flops_fraction is None else f"{arm.flops_fraction:.0%}",
        f"{statistics.median(arm.seconds):.2f}",
        f"{statistics.median(arm.cpu_seconds):.2f}",
        "" if arm.kind == "baseline" else f"{speed.median:.2f}x{interval}",
        with_interval(found.get("psnr"), ".1f"),
        "" if found.get("psnr") is None else number(found["psnr"].worst, ".1f"),
        "" if found.get("ssim") is None else number(found["ssim"].mean, ".3f"),
        ""
        if found.get("feature_distance") is None
        else number(found["feature_distance"].mean, ".3f"),
        "" if found.get("text_scores") is None else number(found["text_scores"].mean, ".3f"),
        "" if arm.cache_bytes == 0 else f"{arm.cache_bytes / 2**20:.1f} MiB",
        "" if arm.peak_bytes is None else f"{arm.peak_bytes / 2**30:.2f} GiB",
    ]


def number(value: float | None, form: str) -> str:
    """Format a number that may be missing."""
    return "" if value is None else format(value, form)


def with_interval(found: Estimate | None, form: str) -> str:
    """Format a mean with its interval and say how many pictures were identical or broken."""
    if found is None:
        return ""
    if found.mean is None:
        return "identical" if found.identical == found.count else "broken"
    text = format(found.mean, form)
    if found.low is not None and found.high is not None:
        text += f" ({found.low:{form}}-{found.high:{form}})"
    if found.identical:
        text += f" +{found.identical} identical"
    if found.broken:
        text += f" +{found.broken} broken"
    return text


def table(arms: Sequence[ArmResult], width: int | None = None) -> list[str]:
    """Return the lines of the table, without empty columns and those that do not fit in `width`."""
    rows = [dict(zip(COLUMNS, cells(arm), strict=True)) for arm in in_pairs(arms)]
    used = [name for name in COLUMNS if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in used}
    for name in FIRST_TO_GO:
        if width is not None and sum(widths[n] + len(GAP) for n in used) - len(GAP) > width:
            used = [kept for kept in used if kept != name]
    lines = [{name: name for name in used}, *rows]
    return [
        GAP.join(
            line[name].ljust(widths[name]) if name == "arm" else line[name].rjust(widths[name])
            for name in used
        ).rstrip()
        for line in lines
    ]


def strip(timeline: Sequence[float]) -> str:
    """Draw one character a step: computed, partly computed, skipped."""
    return "".join("#" if v >= FULL else "." if v <= 1 - FULL else "+" for v in timeline)
