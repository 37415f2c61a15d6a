"""The caches of the catalogue with options under which they skip in a short run of a tiny pipeline.

Defaults are made for runs of 20 to 50 steps of trained models. Random weights change by other
amounts and runs of eight steps are soon over, so a test with defaults might compute everything and
prove nothing. Thresholds are therefore measured: one run in which nothing is skipped tells what the
gate sees.
"""

import statistics
from dataclasses import replace
from typing import Any

from skipstep.caching.base import CachePlugin
from skipstep.caching.magcache import MagCacheCalibration
from skipstep.caching.spans.planned import whole_plan
from skipstep.plugins import catalog
from skipstep.plugins.lifecycle import manager_for
from skipstep.plugins.profile import profile
from skipstep.plugins.report import Report
from skipstep.testing.families import run
from skipstep.testing.tiny import Tiny

__all__ = ["ADAPTIVE", "PRESETS", "gate_values", "lively", "never_skips", "splitting_threshold"]

WARMUP_STEPS = 2
SHORT: dict[str, Any] = {"warmup_steps": WARMUP_STEPS, "final_steps": 1}
LIVELY: dict[str, dict[str, Any]] = {
    "abcache": {"interval": 2},
    "adacache": {"codebook": ((5.0, 2),)},
    "cfgcache": {"interval": 2},
    "clusca": {"interval": 2, "clusters": 2},
    "dbcache": {"back": 0},
    "deepcache": {"interval": 2},
    "deltadit": {"interval": 2, "kept_blocks": 1},
    "dicache": {},
    "duca": {"interval": 3},
    "easycache": {},
    "ecad": {},
    "fastercache": {"interval": 2},
    "fbcache": {},
    "foca": {"interval": 2},
    "foresight": {"tolerance": 4.0},
    "fora": {"interval": 2},
    "freqca": {"interval": 2},
    "hicache": {"interval": 2},
    "hicachepp": {"interval": 2},
    "magcache": {"max_skips": 2},
    "pab": {"start": 0.0, "stop": 1.0},
    "seacache": {},
    "speca": {"threshold": 10.0, "max_skips": 2},
    "spectrum": {"growth": 0.5},
    "taylorseer": {"interval": 3},
    "teacache": {},
    "tgate": {},
    "toca": {"interval": 3},
}
NEVER: dict[str, dict[str, Any]] = {
    "abcache": {"interval": 1},
    "adacache": {"codebook": ((5.0, 1),)},
    "cfgcache": {"interval": 1},
    "clusca": {"interval": 1},
    "dbcache": {"threshold": 0.0, "back": 0},
    "deepcache": {"interval": 1},
    "deltadit": {"interval": 1, "kept_blocks": 1},
    "dicache": {"threshold": 0.0},
    "duca": {"interval": 1},
    "easycache": {"threshold": 0.0},
    "ecad": {},
    "fastercache": {"interval": 1},
    "fbcache": {"threshold": 0.0},
    "foca": {"interval": 1},
    "foresight": {"tolerance": 0.0},
    "fora": {"interval": 1},
    "freqca": {"interval": 1},
    "hicache": {"interval": 1},
    "hicachepp": {"interval": 1},
    "magcache": {"threshold": 0.0},
    "pab": {"start": 0.5, "stop": 0.5},
    "seacache": {"threshold": 0.0},
    "speca": {"warmup_steps": 100},
    "spectrum": {"gap": 1, "growth": 0},
    "taylorseer": {"interval": 1},
    "teacache": {"threshold": 0.0},
    "tgate": {"gate_step": 1.0},
    "toca": {"interval": 1},
}
# How far above the median change of one step: a skip or two in a row, then a computed step.
ABOVE_MEDIAN = 1.6

PRESETS: tuple[str, ...] = tuple(LIVELY)
"""The caches that are named after their papers; "cache" is the product they are rows of."""

ADAPTIVE: tuple[str, ...] = (
    "dbcache",
    "dicache",
    "easycache",
    "fbcache",
    "magcache",
    "seacache",
    "teacache",
)
"""The presets with a threshold."""

_VALUES: dict[tuple[str, str, str, int, int], list[list[float]]] = {}
_RATIOS: dict[tuple[str, str, int], tuple[float, ...]] = {}


def lively(name: str, tiny: Tiny, steps: int = 8, **options: Any) -> CachePlugin:
    """Build a preset that skips in a run of `steps` steps; `options` replace what is chosen here.

    Raises Incompatible where the threshold or the ratios would have to be measured on a pipeline
    that the preset cannot serve.
    """
    made = {**_ratios(name, tiny, steps), **_plan(name, tiny, steps, skips=True)}
    chosen = {**SHORT, **LIVELY[name], **made}
    if name in ADAPTIVE and "threshold" not in options:
        values = [value for row in gate_values(name, tiny, steps) for value in row]
        chosen["threshold"] = min(10.0, ABOVE_MEDIAN * statistics.median(values))
    return _load(name)(**{**chosen, **options})


def never_skips(name: str, tiny: Tiny, steps: int = 8, **options: Any) -> CachePlugin:
    """Build a preset whose gate lets no step be skipped; everything else is at work.

    Raises Incompatible where MagCache's ratios cannot be measured.
    """
    made = {**_ratios(name, tiny, steps), **_plan(name, tiny, steps, skips=False)}
    return _load(name)(**{**SHORT, **NEVER[name], **made, **options})


def splitting_threshold(name: str, tiny: Tiny, steps: int = 8, batch: int = 4) -> float:
    """Return a threshold between what two samples of a batch show at the first step after warm-up.

    It lies in the middle of the widest gap, so one side skips that step and the other computes it.
    """
    values = sorted(gate_values(name, tiny, steps, batch)[0])
    gap, place = max((b - a, i) for i, (a, b) in enumerate(zip(values, values[1:], strict=False)))
    return values[place] + gap / 2


def gate_values(name: str, tiny: Tiny, steps: int = 8, batch: int = 1) -> list[list[float]]:
    """Return what the gate sees at each step after warm-up, per sample, when nothing is skipped.

    Raises Incompatible where the preset cannot serve the pipeline.
    """
    key = (name, *_what(tiny), steps, batch)
    if key not in _VALUES:
        report = _run_with(never_skips(name, tiny, steps), tiny, steps, batch)
        seen = [
            [choice.value for choice in call.choices if choice.value is not None]
            for call in report.calls
            if call.step >= WARMUP_STEPS
        ]
        _VALUES[key] = [row for row in seen if row]
    return _VALUES[key]


def _load(name: str) -> type[CachePlugin]:
    found: type[CachePlugin] = catalog.load(name)
    return found


def _what(tiny: Tiny) -> tuple[str, str]:
    return type(tiny.pipe).__name__, type(getattr(tiny.pipe, tiny.denoiser)).__name__


def _ratios(name: str, tiny: Tiny, steps: int) -> dict[str, Any]:
    """Measure MagCache's ratios in one run, and remember them."""
    if name != "magcache":
        return {}
    key = (*_what(tiny), steps)
    if key not in _RATIOS:
        calibration = MagCacheCalibration()
        _run_with(calibration, tiny, steps, 1)
        _RATIOS[key] = calibration.record.ratios().ratios
    return {"ratios": {"ratios": _RATIOS[key]}}


def _plan(name: str, tiny: Tiny, steps: int, *, skips: bool) -> dict[str, Any]:
    """Make ECAD's plan: every other module of every step but the first, or all of them."""
    if name != "ecad":
        return {}
    whole = whole_plan(profile(tiny.pipe).denoisers[0], steps)
    if not skips:
        return {"plan": whole, "on_mismatch": "warn"}
    rows = [
        tuple(
            "".join(str((step + c + block) % 2) for block in range(whole.blocks))
            for c in range(len(whole.components))
        )
        for step in range(1, steps)
    ]
    return {"plan": replace(whole, compute=(whole.compute[0], *rows)), "on_mismatch": "warn"}


def _run_with(plugin: CachePlugin, tiny: Tiny, steps: int, batch: int) -> Report:
    handle = manager_for(tiny.pipe).enable(plugin)
    try:
        run(tiny, steps=steps, batch=batch)
        report = handle.report()
    finally:
        handle.detach()
    if report is None:
        raise RuntimeError(f"{plugin.name} ran without a report")
    return report
