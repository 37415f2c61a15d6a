"""Measure on a pipeline what a calibrated cache needs, and hand the cache back ready to enable."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from skipstep.caching.magcache import MagCache, MagCacheCalibration
from skipstep.caching.teacache import TeaCache, TeaCacheCalibration
from skipstep.plugins.attention.methods.quantized import Quantized, QuantizedCalibration
from skipstep.plugins.fingerprint import fingerprint
from skipstep.plugins.verbs import plugin_report, plugins

__all__ = ["calibrate_magcache", "calibrate_quantized", "calibrate_teacache"]


def calibrate_magcache(
    pipe: Any,
    prompts: Sequence[str],
    *,
    path: str | Path | None = None,
    seed: int = 0,
    threshold: float = 0.2,
    **call: Any,
) -> MagCache:
    """Run the pipeline uncached on a few prompts and return a MagCache made for it.

    Args:
        prompts: a handful are enough, the ratios hardly depend on them (MagCache, section 3.1).
        path: where to save the ratios as JSON; load them with `MagCache(ratios=path)`.
        seed: the pictures' seeds are seed, seed + 1, ...
        call: goes to the pipeline: num_inference_steps, guidance_scale, height, width, ...
    """
    calibration = MagCacheCalibration()
    steps = _run_all("calibrate_magcache", pipe, calibration, prompts, seed, call)
    ratios = calibration.record.ratios(fingerprint(pipe, steps=steps))
    if path is not None:
        ratios.save(path)
    return MagCache(ratios=ratios, threshold=threshold)


def calibrate_teacache(
    pipe: Any,
    prompts: Sequence[str],
    *,
    path: str | Path | None = None,
    seed: int = 0,
    threshold: float = 0.2,
    **call: Any,
) -> TeaCache:
    """Run the pipeline uncached on some prompts and return a TeaCache made for it.

    Args:
        prompts: the more different, the better the fit; users of the method report 50 and more.
        path: where to save the curve as JSON; load it with `TeaCache(coefficients=path)`.
        seed: the pictures' seeds are seed, seed + 1, ...
        call: goes to the pipeline: num_inference_steps, guidance_scale, height, width, ...
    """
    calibration = TeaCacheCalibration()
    steps = _run_all("calibrate_teacache", pipe, calibration, prompts, seed, call)
    curve = calibration.record.curve(fingerprint(pipe, steps=steps))
    if path is not None:
        curve.save(path)
    return TeaCache(coefficients=curve, threshold=threshold)


def calibrate_quantized(
    pipe: Any,
    prompts: Sequence[str],
    *,
    min_cosine: float = 0.999,
    parts: int = 4,
    settings: Quantized | None = None,
    seed: int = 0,
    **call: Any,
) -> Quantized:
    """Run the pipeline with exact attention and return a Quantized whose table gives every layer
    and part of the run the fewest bits at which no sample's cosine with exact attention was lower.

    Args:
        prompts: a handful; the lowest cosine over all of them counts.
        min_cosine: the bound; 0.999 is an error of about 4 % of the output's length.
        parts: equal parts of a run that are judged apart.
        settings: how to quantise (values, groups, smoothing); SageAttention 1 by default.
        seed: the pictures' seeds are seed, seed + 1, ...
        call: goes to the pipeline: num_inference_steps, guidance_scale, height, width, ...
    """
    settings = settings or Quantized()
    calibration = QuantizedCalibration(settings=settings, parts=parts)
    _run_all("calibrate_quantized", pipe, calibration, prompts, seed, call)
    return replace(settings, table=calibration.table(min_cosine))


def _run_all(
    what: str, pipe: Any, calibration: Any, prompts: Sequence[str], seed: int, call: dict[str, Any]
) -> int:
    """Run every prompt with the calibration enabled; return the number of steps."""
    if not prompts:
        raise ValueError(f"{what} was given no prompts: give at least one")
    with plugins(pipe, calibration):
        for i, prompt in enumerate(prompts):
            pipe(prompt=prompt, generator=torch.Generator().manual_seed(seed + i), **call)
        report = plugin_report(pipe)
    return report.steps if report is not None else 0
