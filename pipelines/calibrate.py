"""Measure on a pipeline what a calibrated cache needs, and hand the cache back ready to enable."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from skipstep.caching.magcache import MagCache, MagCacheCalibration
from skipstep.plugins.fingerprint import fingerprint
from skipstep.plugins.verbs import plugin_report, plugins

__all__ = ["calibrate_magcache"]


def calibrate_magcache(
    pipe: Any,
    prompts: Sequence[str],
    *,
    path: str | Path | None = None,
    seed: int = 0,
    threshold: float = 0.06,
    **call: Any,
) -> MagCache:
    """Run the pipeline uncached on a few prompts and return a MagCache made for it.

    Args:
        prompts: a handful are enough, the ratios hardly depend on them (MagCache, section 3.1).
        path: where to save the ratios as JSON; load them with `MagCache(ratios=path)`.
        seed: the pictures' seeds are seed, seed + 1, ...
        call: goes to the pipeline: num_inference_steps, guidance_scale, height, width, ...
    """
    if not prompts:
        raise ValueError("calibrate_magcache was given no prompts: give at least one")
    calibration = MagCacheCalibration()
    with plugins(pipe, calibration):
        for i, prompt in enumerate(prompts):
            pipe(prompt=prompt, generator=torch.Generator().manual_seed(seed + i), **call)
        report = plugin_report(pipe)
    ratios = calibration.record.ratios(
        fingerprint(pipe, steps=report.steps if report is not None else 0)
    )
    if path is not None:
        ratios.save(path)
    return MagCache(ratios=ratios, threshold=threshold)
