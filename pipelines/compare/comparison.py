"""The outcome of a comparison as data: what each arm cost, and how close its pictures came.

Text, page and sheet are views of it: compare_text.py, compare_page.py, compare_sheet.py.
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

from skipstep.pipelines.compare.intervals import (
    Estimate,
    bootstrap_interval,
    estimate,
    median_of_rows,
)
from skipstep.pipelines.pictures import write_whole

__all__ = ["ArmResult", "Comparison", "Ratio"]

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
        return self.text()

    def text(self, width: int | None = None) -> str:
        """Return table, timelines and verdicts; the table drops columns to fit into `width`."""
        from skipstep.pipelines.compare.text import text

        return text(self, width)

    def _repr_html_(self) -> str:
        from skipstep.pipelines.compare.page import fragment

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
            count = len(self.prompts)
            few = "1 prompt is" if count == 1 else f"{count} prompts are"
            found.append(f"{few} few: intervals are too narrow below about ten.")
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
        from skipstep.pipelines.compare.page import page
        from skipstep.pipelines.compare.sheet import save_sheet

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        described = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(target / "compare.json", described.encode())
        save_sheet(self, target / "sheet.png")
        write_whole(target / "index.html", page(self).encode())
        return target / "index.html"


def span(seeds: Sequence[int]) -> str:
    """Return "0-11" for consecutive seeds, else the list."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))
