"""The outcome of a comparison as data, and as text: the table, the timelines, the verdicts.

Every number here is measured or counted; the verdict of an arm only puts them in words. PSNR
differences between a plugin and the fewer-steps arm beside it are judged on pairs (same prompt,
same seed) with a bootstrap 95 % interval: when it contains 0, the verdict says that the two cannot
be told apart.
"""

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skipstep.pipelines.intervals import Estimate, bootstrap_interval, estimate, median_of_rows
from skipstep.pipelines.pictures import write_whole

__all__ = ["ArmResult", "Comparison", "Ratio"]

FULL = 0.9995
# With fewer pairs not even the same sign every time is significant at 5 % (two-sided: 2 / 2^6).
LEAST_PAIRS = 6
# Identical pictures count as this many decibels where two arms are compared; float32 ends here.
CAP = 120.0
BUSY = 0.6


@dataclass(frozen=True)
class Ratio:
    """A median over paired timings with its 95 % interval (None for fewer than two timings)."""

    median: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Ratio":
        """Summarise one ratio per timing."""
        low, high = bootstrap_interval(values, statistic=median_of_rows) or (None, None)
        return cls(statistics.median(values), low, high, len(values))


@dataclass
class ArmResult:
    """What one arm cost and what its pictures look like beside the uncached ones.

    Lists with one entry per timing: `seconds` and `cpu_seconds` (per picture, CPU seconds of the
    whole process), `baseline_seconds` (the uncached run timed in the same round). Lists with one
    entry per prompt: `psnr` (dB, infinite when identical), `ssim`, `feature_distance`,
    `text_scores`; the first three are empty for the uncached arm.
    """

    name: str
    kind: Literal["baseline", "plugins", "fewer steps"]
    steps: int
    plugins: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    baseline_seconds: list[float] = field(default_factory=list)
    fraction: float = 1.0
    """Share of the block computations of an uncached run at full steps that were executed."""
    flops_fraction: float | None = None
    cache_bytes: int = 0
    peak_bytes: int | None = None
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    feature_distance: list[float] = field(default_factory=list)
    text_scores: list[float] = field(default_factory=list)
    timelines: list[list[float]] = field(default_factory=list)
    """Per batch of prompts and step: the share of the denoiser's work that was computed, 0 to 1."""
    equal_cost: str | None = None
    """Name of the fewer-steps arm of the same cost."""
    report_verdict: str = ""
    warnings: list[str] = field(default_factory=list)
    verdict: str = ""

    @property
    def speedup(self) -> Ratio:
        """Return how many times faster than the uncached run beside it."""
        pairs = zip(self.baseline_seconds, self.seconds, strict=True)
        return Ratio.of([base / own for base, own in pairs])

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Return mean, interval and worst decile of each measured quality."""
        measured = {
            "psnr": (self.psnr, True),
            "ssim": (self.ssim, True),
            "feature_distance": (self.feature_distance, False),
            "text_scores": (self.text_scores, True),
        }
        return {
            name: estimate(values, higher_is_better=better)
            for name, (values, better) in measured.items()
            if values
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types; an infinite or broken value becomes null."""
        described = asdict(self)
        described["speedup"] = asdict(self.speedup)
        described["estimates"] = {name: asdict(found) for name, found in self.estimates.items()}
        for name in ("psnr", "ssim", "feature_distance", "text_scores"):
            described[name] = [v if math.isfinite(v) else None for v in described[name]]
        return described


@dataclass
class Comparison:
    """Arms compared on the same prompts and seeds; print it, or `save` it as a page."""

    pipeline: str
    prompts: list[str]
    seeds: list[int]
    steps: int
    batch_size: int
    machine: dict[str, str]
    arms: list[ArmResult] = field(default_factory=list)
    repeat_psnr: float = math.inf
    """PSNR between two runs of the first batch's uncached pictures: infinite if repeatable."""
    seconds: float = 0.0
    load: float | None = None
    """One-minute load average of the machine before the first call, where the system tells it."""
    pictures: dict[str, list[NDArray[np.uint8]]] = field(default_factory=dict, repr=False)
    """Arm name -> 8-bit pictures [height, width, 3] of the first prompts, videos' middle frames."""

    def __getitem__(self, name: str) -> ArmResult:
        """Return the arm called `name`."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(f"no arm {name!r}; there are: {', '.join(arm.name for arm in self.arms)}")

    def __str__(self) -> str:
        lines = [self.headline(), "", *table(self.arms), ""]
        lines += ["Computed (#), partly (+) and skipped (.) steps of the first prompts:"]
        width = max(len(arm.name) for arm in self.arms if arm.kind == "plugins")
        lines += [
            f"  {arm.name:<{width}}  {strip(arm.timelines[0])}"
            for arm in self.arms
            if arm.kind == "plugins" and arm.timelines
        ]
        lines += [""]
        lines += [f"{arm.name}: {arm.verdict}" for arm in self.arms if arm.kind == "plugins"]
        lines += [f"{arm.name}: warning: {text}" for arm in self.arms for text in arm.warnings]
        lines += self.notes()
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from skipstep.pipelines.compare_page import fragment

        return fragment(self)

    def headline(self) -> str:
        """Return one line that says what was compared, and on what."""
        count = f"{len(self.prompts)} prompt{'s' if len(self.prompts) != 1 else ''}"
        return (
            f"{self.pipeline}: {count}, {self.steps} steps, seeds {span(self.seeds)}, "
            f"batches of {self.batch_size}, on {self.machine['device']}"
        )

    def notes(self) -> list[str]:
        """Return what a reader must know to read the table."""
        if math.isinf(self.repeat_psnr):
            repeats = "The uncached pipeline repeats itself exactly."
        else:
            repeats = (
                "The uncached pipeline does not repeat itself: the same seed gave pictures "
                f"{self.repeat_psnr:.1f} dB apart, so no arm can be judged above that."
            )
        found = [
            repeats,
            "blocks: share of the block computations executed. PSNR, SSIM (higher is closer) and "
            "LPe (a feature distance, lower is closer; not LPIPS) to the uncached picture of the "
            "same seed; worst: mean of the worst tenth. Speed-up: median over rounds, of whole "
            "pipeline calls. In brackets: 95 % intervals.",
        ]
        if self.load is not None and self.load > BUSY * (os.cpu_count() or 1):
            found.append(
                f"Other programs kept this machine busy (load {self.load:.1f} on {os.cpu_count()} "
                "cores at the start): read the ratios and the CPU seconds, not the seconds."
            )
        if len(self.prompts) < 10:
            found.append(
                f"{len(self.prompts)} prompts are few: intervals are too narrow below about ten."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures as JSON types."""
        return {
            "version": 1,
            "pipeline": self.pipeline,
            "prompts": self.prompts,
            "seeds": self.seeds,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "machine": self.machine,
            "repeatable": math.isinf(self.repeat_psnr),
            "repeat_psnr": self.repeat_psnr if math.isfinite(self.repeat_psnr) else None,
            "seconds": self.seconds,
            "load": self.load,
            "notes": self.notes(),
            "arms": [arm.to_dict() for arm in self.arms],
        }

    def save(self, folder: str | Path) -> Path:
        """Write index.html (self-contained), sheet.png and compare.json; return the page."""
        from skipstep.pipelines.compare_page import page
        from skipstep.pipelines.compare_sheet import save_sheet

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        described = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(target / "compare.json", described.encode())
        save_sheet(self, target / "sheet.png")
        write_whole(target / "index.html", page(self).encode())
        return target / "index.html"


def judge(arm: ArmResult, beside: ArmResult | None) -> str:
    """Put the numbers of a plugin arm in words; `beside` is its fewer-steps arm."""
    if arm.fraction >= FULL:
        reason = f": {arm.report_verdict}" if arm.report_verdict else ""
        return f"nothing was skipped{reason}"
    halves = 0.455 <= arm.fraction < 0.545
    share = f"computes {arm.fraction:.0%} of the blocks"
    saved = f"halves the block computations ({arm.fraction:.0%})" if halves else share
    psnr = estimate(arm.psnr)
    if psnr.broken:
        return (
            f"{saved}, but {psnr.broken} of {psnr.count} pictures hold values that are not "
            "numbers: do not use this"
        )
    if psnr.mean is None:
        return f"{saved} with identical pictures"
    parts = [f"{saved} at {psnr.mean:.1f} dB"]
    if beside is not None:
        parts.append(against_fewer_steps(arm, beside))
    return "; ".join([*parts, speed_in_words(arm.speedup)])


def speed_in_words(speed: Ratio) -> str:
    """Say whether the measured time differs from the uncached one beside it."""
    if speed.low is None or speed.high is None or speed.count < LEAST_PAIRS:
        times = "once" if speed.count == 1 else f"{speed.count} times"
        return f"{speed.median:.2f}x as fast, timed only {times}"
    if speed.low > 1:
        return f"measured {speed.median:.2f}x as fast"
    if speed.high < 1:
        return f"measured slower, {speed.median:.2f}x as fast"
    return (
        f"no clear change of speed was measured ({speed.median:.2f}x, 95 %: "
        f"{speed.low:.2f}-{speed.high:.2f})"
    )


def against_fewer_steps(arm: ArmResult, beside: ArmResult) -> str:
    """Say whether the plugin beats fewer steps of the same cost, judged on pairs."""
    theirs = estimate(beside.psnr)
    if theirs.mean is None:
        return f"{beside.steps} uncached steps at the same cost give identical pictures: use those"
    same = f"the same cost in fewer steps ({beside.steps})"
    pairs = [
        (min(own, CAP), min(other, CAP))
        for own, other in zip(arm.psnr, beside.psnr, strict=True)
        if not math.isnan(own) and not math.isnan(other)
    ]
    gains = [own - other for own, other in pairs]
    interval = bootstrap_interval(gains)
    if interval is None or len(gains) < LEAST_PAIRS:
        return f"{same} gives {theirs.mean:.1f} dB (too few prompts to judge the difference)"
    if interval[0] > 0:
        return f"{same} gives only {theirs.mean:.1f} dB"
    if interval[1] < 0:
        return f"{same} is closer, {theirs.mean:.1f} dB: this setting does not pay here"
    return f"{same} gives {theirs.mean:.1f} dB: no clear difference on {len(gains)} prompts"


def strip(timeline: Sequence[float]) -> str:
    """Draw one character a step: computed, partly computed, skipped."""
    return "".join("#" if v >= FULL else "." if v <= 1 - FULL else "+" for v in timeline)


def span(seeds: Sequence[int]) -> str:
    """Return "0-11" for consecutive seeds, else the list."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


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


def table(arms: Sequence[ArmResult]) -> list[str]:
    """Return the lines of the table, without the columns that are empty for every arm."""
    rows = [cells(arm) for arm in in_pairs(arms)]
    used = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
    lines = [[COLUMNS[i] for i in used], *[[row[i] for i in used] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(used))]
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
