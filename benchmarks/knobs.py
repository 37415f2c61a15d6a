"""Turn a preset's knob and see what it buys: fidelity against work, beside abcache at equal work.

python -m skipstep.benchmarks.knobs [--presets seacache toca] [--steps 28] [--prompts 8]

On the reference model. Fidelity is the PSNR to the uncached picture of the same seed, its mean over
prompts and the worst; work is the share of an uncached run's counted FLOPs. "abcache" is what its
best settings give at that work, linear in the logarithm of the work. Where defaults come from: the
settings marked * are the presets' own. MagCache's ratios and TeaCache's curve ("fitted") are
calibrated on eight prompts that are not judged.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch

from skipstep.benchmarks.forecasters import draw
from skipstep.benchmarks.rhythms import FIRST_PROMPT
from skipstep.pipelines.metrics.fidelity import psnr
from skipstep.pipelines.reference.load import load_reference
from skipstep.pipelines.reference.prompts import load_prompts
from skipstep.pipelines.tune.calibrate import calibrate_magcache, calibrate_teacache
from skipstep.pipelines.tune.trial import work_of
from skipstep.plugins import catalog

Setting = dict[str, Any]


def one(knob: str, *values: Any, **fixed: Any) -> list[Setting]:
    """Return a setting for each value of one knob."""
    return [{**fixed, knob: value} for value in values]


def codebooks(*scales: float) -> list[Setting]:
    """Return AdaCache's codebook with its limits scaled."""
    steps = (6, 5, 4, 3, 2)
    limits = (0.08, 0.16, 0.24, 0.32, 0.40)
    return [
        {"codebook": tuple((round(s * a, 6), n) for a, n in zip(limits, steps, strict=True))}
        for s in scales
    ]


SWEEPS: dict[str, list[Setting]] = {
    "adacache": codebooks(0.125, 0.25, 0.5, 1),
    "dbcache": one("threshold", 0.04, 0.08, 0.12, 0.2),
    "dicache": one("threshold", 0.1, 0.2, 0.4, 0.6),
    "easycache": one("threshold", 0.02, 0.05, 0.1, 0.2),
    "fbcache": one("threshold", 0.05, 0.1, 0.15, 0.25),
    "foresight": [
        *one("tolerance", 0.25, 0.5, 1, 2, 4),
        *one("tolerance", 1, 2, interval=5),
    ],
    "magcache": one("threshold", 0.03, 0.06, 0.12, 0.2),
    "seacache": one("threshold", 0.1, 0.15, 0.25, 0.4),
    "speca": one("threshold", 0.05, 0.1, 0.2),
    "teacache": one("threshold", 0.05, 0.1, 0.2, 0.3),
    "teacache fitted": one("threshold", 0.05, 0.1, 0.2, 0.3),
    "cfgcache": one("interval", 2, 3, 5),
    "clusca": [
        *one("interval", 2, 3, 4),
        *one("propagation", 0, 0.5),
        *one("clusters", 4),
        {"order": 0},
    ],
    "duca": one("interval", 2, 3, 4),
    "fastercache": [*one("interval", 2, 3, 4), *one("stop", 0, 0.5), {"start": 1}],
    "pab": [{}, {"spatial": 3, "cross": 6}],
    "taylorseer": one("interval", 2, 3, 4, 5),
    "tgate": one("gate_step", 0.3, 0.4, 0.6),
    "toca": [
        *one("interval", 2, 3, 4),
        *one("share", 0, 0.05, 0.2, 0.4),
        {"influence": 0},
        {"waiting": 0},
        {"spread": 0},
        {"entropy": 1},
    ],
}
"""The settings that are tried; a preset's defaults are always among them."""
BASELINE = [
    {"warmup_steps": warmup, "interval": interval}
    for warmup, interval in product((5, 7), (2, 3, 4, 5))
]


@dataclass(frozen=True)
class Point:
    """What one setting gave."""

    work: float
    mean: float
    worst: float


def front(points: Sequence[Point]) -> list[Point]:
    """Return what nothing beats in both work and mean, by rising work.

    >>> [p.work for p in front([Point(0.5, 40, 0), Point(0.6, 39, 0), Point(0.7, 50, 0)])]
    [0.5, 0.7]
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.work, -p.mean)):
        if not found or point.mean > found[-1].mean:
            found.append(point)
    return found


def at_work(points: Sequence[Point], work: float) -> float | None:
    """Return the mean that a front gives at some work, or None outside what was measured.

    >>> at_work([Point(0.25, 30, 0), Point(1.0, 50, 0)], 0.5)
    40.0
    """
    if len(points) < 2 or not points[0].work <= work <= points[-1].work:
        return None
    logs = [math.log(point.work) for point in points]
    return float(np.interp(math.log(work), logs, [point.mean for point in points]))


def plugin_of(title: str, setting: Setting, fitted: dict[str, Any]) -> Any:
    """Return the preset with a setting, or the calibrated one of that title."""
    if title in fitted:
        return replace(fitted[title], **setting)
    return catalog.load(title)(**setting)


def main() -> None:
    """Print one row a setting."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--presets", nargs="*", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument("--steps", type=int, default=28, help="of an uncached run")
    parser.add_argument("--prompts", type=int, default=8, help="how many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe: Any = load_reference()
    pipe.set_progress_bar_config(disable=True)
    known = [entry["prompt"] for entry in load_prompts()]
    prompts = known[FIRST_PROMPT : FIRST_PROMPT + given.prompts]
    plain = draw(pipe, prompts, given.steps)

    def measure(plugin: Any) -> Point:
        with pipe.plugins(plugin):
            image = draw(pipe, prompts, given.steps)
            work = work_of(pipe.plugin_report())
        decibels = psnr(image, plain).clamp(max=100)
        return Point(work, float(decibels.mean()), float(decibels.min()))

    call = {"num_inference_steps": given.steps, "output_type": "np"}
    fitted: dict[str, Any] = {}
    if "magcache" in given.presets:
        fitted["magcache"] = calibrate_magcache(pipe, known[:8], **call)
    if "teacache fitted" in given.presets:
        fitted["teacache fitted"] = calibrate_teacache(pipe, known[:8], **call)
    abcache = catalog.load("abcache")
    baseline = front([measure(abcache(**setting)) for setting in BASELINE])
    print("| preset | setting | computed | PSNR (worst) | abcache |\n|---|---|---|---|---|")
    for title in given.presets:
        own, rows = plugin_of(title, {}, fitted), list[tuple[Point, Any, Setting]]()
        for setting in [*SWEEPS[title], {}]:
            plugin = plugin_of(title, setting, fitted)
            if all(plugin != tried for _, tried, _ in rows):
                rows.append((measure(plugin), plugin, setting))
        for point, plugin, setting in sorted(rows, key=lambda row: -row[0].work):
            mark = "*" if plugin == own else ""
            said = ", ".join(f"{k}={v}" for k, v in setting.items()) or "defaults"
            other = at_work(baseline, point.work)
            print(
                f"| {title} | {said}{mark} | {point.work:.0%} | "
                f"{point.mean:.1f} dB ({point.worst:.1f}) | "
                f"{'' if other is None else f'{other:.1f} dB'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
