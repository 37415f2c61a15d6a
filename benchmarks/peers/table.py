"""The answers of all peers as points, tables and sentences."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from skipstep.benchmarks.peers.arms import OURS, STEPS_ALONE
from skipstep.benchmarks.peers.fronts import (
    GOAL_DECIBELS,
    GOAL_SPEED,
    GRID,
    LEAST_PAIRS,
    Fidelity,
    Point,
    compare_at,
    front,
    over_range,
    verdict,
)
from skipstep.benchmarks.peers.protocol import Answer, Measured
from skipstep.pipelines.compare.comparison import Ratio
from skipstep.pipelines.compare.intervals import Estimate, estimate

__all__ = ["DISTANCE", "PSNR", "RANGES", "SPEEDS", "fronts_of", "judged", "refusals", "table"]

PSNR = Fidelity("PSNR", "dB", 1, higher_is_better=True)
DISTANCE = Fidelity("feature distance", "", 4, higher_is_better=False)
SPEEDS = (1.5, 2.0, 2.5, 3.0, 4.0)
RANGES = ((1.5, 2.0), (2.0, 3.0), (3.0, 4.0))


def speed_of(result: Measured, *, by: str) -> float:
    """Return how many times faster than uncached: by computed FLOPs, or by measured time."""
    if by == "time":
        pairs = zip(result.baseline_seconds, result.seconds, strict=True)
        return statistics.median(baseline / own for baseline, own in pairs)
    return 1 / max(1e-9, statistics.fmean(result.fraction))


def points_of(answer: Answer, fidelity: Fidelity, *, by: str) -> list[Point]:
    """Return the settings of a peer that ran."""
    found = []
    for result in answer.results:
        if not result.psnr or result.cannot_run or (by == "time" and not result.seconds):
            continue
        values = result.psnr if fidelity is PSNR else result.feature_distance
        sign = 1 if fidelity.higher_is_better else -1
        goodness = tuple(sign * value for value in values)
        found.append(Point(answer.peer, result.setting, speed_of(result, by=by), goodness))
    return found


def fronts_of(
    answers: Sequence[Answer], fidelity: Fidelity, *, by: str = "FLOPs"
) -> dict[str, list[Point]]:
    """Return the front of every peer that has one, by name."""
    fronts = {answer.peer: front(points_of(answer, fidelity, by=by)) for answer in answers}
    return {name: found for name, found in fronts.items() if found}


def interval(found: Estimate, digits: int) -> str:
    """Write a mean with its interval."""
    if found.mean is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f}-{found.high:.{digits}f})"


def table(answers: Sequence[Answer], *, everything: bool = False) -> Table:
    """Return the settings on a front (of either fidelity), or all of them, from slow to fast."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("peer", "setting", "FLOPs", "x FLOPs", "x time", "PSNR dB", "worst", "LPe"):
        right = heading not in ("peer", "setting")
        shown.add_column(heading, justify="right" if right else "left", overflow="fold")
    for answer in answers:
        kept = {
            point.setting
            for fidelity in (PSNR, DISTANCE)
            for point in fronts_of([answer], fidelity).get(answer.peer, [])
        }
        ran = [each for each in answer.results if each.psnr and each.cannot_run is None]
        for result in sorted(ran, key=lambda each: speed_of(each, by="FLOPs")):
            if not everything and result.setting not in kept:
                continue
            psnr = estimate(result.psnr)
            distance = estimate(result.feature_distance, higher_is_better=False)
            measured = "-"
            if result.seconds:
                pairs = zip(result.baseline_seconds, result.seconds, strict=True)
                measured = f"{Ratio.of([b / own for b, own in pairs]).median:.2f}"
            shown.add_row(
                answer.peer,
                result.setting,
                f"{statistics.fmean(result.fraction):.1%}",
                f"{speed_of(result, by='FLOPs'):.2f}",
                measured,
                interval(psnr, 1),
                "-" if psnr.worst is None else f"{psnr.worst:.1f}",
                interval(distance, 4),
            )
    return shown


def refusals(answers: Sequence[Answer]) -> list[str]:
    """Say what cannot run on this model, one line for each reason of each peer."""
    lines: dict[tuple[str, str], list[str]] = {}
    for answer in answers:
        for result in answer.results:
            if result.cannot_run is not None:
                lines.setdefault((answer.peer, result.cannot_run), []).append(result.setting)
    told = []
    for (peer, reason), settings in lines.items():
        more = f" and {len(settings) - 1} more" if len(settings) > 1 else ""
        told.append(f"{peer} cannot run on this model: {reason} [{settings[0]}{more}]")
    return told


def judged(answers: Sequence[Answer], *, by: str = "FLOPs") -> tuple[list[str], dict[str, Any]]:
    """Return the verdicts at each speed and over each range, in words and as data."""
    lines: list[str] = []
    data: dict[str, Any] = {"speed by": by}
    for fidelity in (PSNR, DISTANCE):
        fronts = fronts_of(answers, fidelity, by=by)
        own = fronts.pop(OURS, [])
        alone = {name: fronts.pop(name) for name in (STEPS_ALONE,) if name in fronts}
        for title, others in (("peers", fronts), (STEPS_ALONE, alone)):
            lines.append(f"{fidelity.name} against {title}, speed by {by}:")
            gaps = [compare_at(own, others, speed) for speed in SPEEDS]
            for speed, gap in zip(SPEEDS, gaps, strict=True):
                lines.append("  " + verdict(gap, speed, fidelity, OURS))
            for low, high in RANGES:
                found = over_range(own, others, low, high)
                if found:
                    least, most = min(g.gain for g in found), max(g.gain for g in found)
                    digits = fidelity.digits
                    lines.append(
                        f"  from {low:g}x to {high:g}x: {least:+.{digits}f} to "
                        f"{most:+.{digits}f} {fidelity.unit}".rstrip()
                    )
            if fidelity is PSNR and title == "peers":
                lines.append("  " + goal(own, others))
            data[f"{fidelity.name} against {title}"] = [
                None if gap is None else asdict(gap) for gap in gaps
            ]
    return lines, data


def goal(own: list[Point], others: dict[str, list[Point]]) -> str:
    """Say at how many speeds from 1.5x to 4x the goal is met: 2 dB, or 1.25x the speed."""
    gaps = over_range(own, others, SPEEDS[0], SPEEDS[-1])
    met = [gap.gain >= GOAL_DECIBELS or (gap.speed_ratio or 0.0) >= GOAL_SPEED for gap in gaps]
    few = any(gap.pairs < LEAST_PAIRS for gap in gaps)
    return (
        f"goal ({GOAL_DECIBELS:g} dB, or {GOAL_SPEED:g}x the speed): met at {sum(met)} of {GRID} "
        f"speeds from {SPEEDS[0]:g}x to {SPEEDS[-1]:g}x, {GRID - len(met)} cannot be compared"
        + (", on too few prompts to judge" if few else "")
    )
