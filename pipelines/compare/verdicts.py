"""A comparison in words: what an arm saved and cost, and whether fewer steps would have done it.

Differences of PSNR between a plugin and the fewer-steps arm beside it are judged on pairs (same
prompt, same seed) with a bootstrap 95 % interval: when it contains 0, the verdict says that the two
cannot be told apart. Times are judged the same way, on the ratios within a round.
"""

import math

from skipstep.pipelines.compare.comparison import ArmResult, Ratio
from skipstep.pipelines.compare.intervals import bootstrap_interval, estimate

__all__ = ["FULL", "judge", "speed_in_words"]

# A share of the work above this is all of it.
FULL = 0.9995
# With fewer pairs not even the same sign every time is significant at 5 % (two-sided: 2 / 2^6).
LEAST_PAIRS = 6
# Identical pictures count as this many decibels where two arms are compared; float32 ends here.
CAP = 120.0


def judge(arm: ArmResult, beside: ArmResult | None) -> str:
    """Put the numbers of a plugin arm in words; `beside` is its fewer-steps arm."""
    if arm.fraction >= FULL:
        reason = arm.report_verdict.removeprefix("Nothing was skipped: ")
        return f"nothing was skipped{': ' if reason else ''}{reason}"
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
