"""Tally a comparison: enter pipeline calls into the results of their arms, and match costs."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.compare.arms import Arm, equal_cost_steps, fewer_steps_arm
from skipstep.pipelines.compare.comparison import ArmResult
from skipstep.pipelines.metrics.fidelity import WINDOW, feature_distance, psnr, ssim
from skipstep.plugins import options

__all__ = [
    "Batch",
    "Taken",
    "TextScore",
    "add_quality",
    "add_timing",
    "match_costs",
    "start_result",
]

Pictures = Float[Tensor, "b f 3 height width"]
TextScore = Callable[[Float[Tensor, "b 3 height width"], list[str]], Float[Tensor, " b"]]


@dataclass(frozen=True)
class Batch:
    """Prompts that run through the pipeline together, and the seed of each."""

    prompts: list[Any]
    seeds: list[int]


@dataclass(frozen=True)
class Taken:
    """One pipeline call: its pictures, what it cost per picture, and what the plugins reported."""

    pictures: Pictures
    seconds: float
    cpu_seconds: float
    peak_bytes: int | None
    report: Any


def start_result(arm: Arm) -> ArmResult:
    """Return the empty result of an arm."""
    plugins = [options.to_dict(plugin) for plugin in arm.plugins]
    return ArmResult(arm.name, arm.kind, arm.steps, plugins)


def add_timing(result: ArmResult, run: Taken, truth: Taken) -> None:
    """Add the cost of one call to an arm's result."""
    result.seconds.append(run.seconds)
    result.cpu_seconds.append(run.cpu_seconds)
    result.baseline_seconds.append(truth.seconds)
    if run.peak_bytes is not None:
        result.peak_bytes = max(result.peak_bytes or 0, run.peak_bytes)


def add_quality(
    result: ArmResult, run: Taken, truth: Taken, batch: Batch, text_score: TextScore | None
) -> None:
    """Add the fidelity, the text scores and the report of one batch to an arm's result."""
    if result.kind != "baseline":
        result.psnr += psnr(run.pictures, truth.pictures).tolist()
        frames = run.pictures.shape[1]
        own, other = run.pictures.flatten(0, 1), truth.pictures.flatten(0, 1)
        if min(own.shape[-2:]) >= WINDOW:
            result.ssim += ssim(own, other).view(-1, frames).mean(1).tolist()
        result.feature_distance += feature_distance(own, other).view(-1, frames).mean(1).tolist()
    if text_score is not None:
        middle = run.pictures[:, run.pictures.shape[1] // 2]
        scores = text_score(middle, [str(prompt) for prompt in batch.prompts])
        result.text_scores += scores.tolist()
    if run.report is not None:
        add_report(result, run.report, len(batch.seeds))


def add_report(result: ArmResult, report: Any, pictures: int) -> None:
    """Add what the plugins say they did; shares are means over pictures."""
    before = len(result.psnr) - pictures
    total = before + pictures
    flops = None
    if report.flops_done is not None and report.flops_full:
        flops = report.flops_done / report.flops_full
    if before == 0:
        result.fraction, result.flops_fraction = report.fraction, flops
    else:
        result.fraction = (result.fraction * before + report.fraction * pictures) / total
        if flops is not None and result.flops_fraction is not None:
            result.flops_fraction = (result.flops_fraction * before + flops * pictures) / total
    result.cache_bytes = max(result.cache_bytes, report.bytes_held)
    result.timelines.append(timeline(report))
    result.report_verdict = report.verdict
    # One warning comes with other numbers after every call: the first of a kind stands for all.
    known = {without_numbers(warning) for warning in result.warnings}
    result.warnings += [text for text in report.warnings if without_numbers(text) not in known]


def without_numbers(text: str) -> str:
    """Return the text with every number blotted out."""
    return re.sub(r"\d[\d.,]*", "#", text)


def timeline(report: Any) -> list[float]:
    """Return the share of the denoiser's rows, over branches and samples, computed at each step."""
    computed: dict[int, list[bool]] = {}
    for call in report.calls:
        computed.setdefault(call.step, []).extend(choice.compute for choice in call.choices)
    return [
        sum(choices) / len(choices) for _, choices in sorted(computed.items()) if len(choices) > 0
    ]


def match_costs(results: dict[str, ArmResult], chosen: Sequence[Arm]) -> list[Arm]:
    """Return the fewer-steps arms, one a number of steps, and enter them into the results."""
    beside: dict[str, Arm] = {}
    for arm in chosen:
        result = results[arm.name]
        cost = result.fraction if result.flops_fraction is None else result.flops_fraction
        fewer = equal_cost_steps(arm.steps, cost)
        if fewer is None:
            continue
        match = fewer_steps_arm(fewer)
        result.equal_cost = match.name
        beside[match.name] = match
    for match in sorted(beside.values(), key=lambda arm: -arm.steps):
        results[match.name] = start_result(match)
        results[match.name].fraction = match.steps / chosen[0].steps
        if any(result.flops_fraction is not None for result in results.values()):
            results[match.name].flops_fraction = match.steps / chosen[0].steps
    return sorted(beside.values(), key=lambda arm: -arm.steps)
