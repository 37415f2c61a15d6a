"""Speed against fidelity: who is ahead at a speed, and by how much.

A peer's front are its settings that no other setting of its own beats in both speed and mean
fidelity. Between two neighbours of a front, fidelity is taken as linear in the logarithm of the
speed, prompt by prompt; beyond its ends nothing is said. With s_a <= s <= s_b the speeds,
    w = log(s / s_a) / log(s_b / s_a),   f(s) = (1 - w) f_a + w f_b.
Differences between two peers are paired over prompts, their 95 % interval is a bootstrap.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from skipstep.pipelines.compare.intervals import bootstrap_interval

__all__ = [
    "Fidelity",
    "Gap",
    "Point",
    "at_speed",
    "best_of",
    "compare_at",
    "front",
    "over_range",
    "speed_at",
    "verdict",
]

# The goal of the project: either of the two, over the best peer.
GOAL_SPEED, GOAL_DECIBELS = 1.25, 2.0
LEAST_PAIRS = 6
GRID = 9


@dataclass(frozen=True)
class Fidelity:
    """A measure of closeness to the uncached picture."""

    name: str
    unit: str
    digits: int
    higher_is_better: bool


@dataclass(frozen=True)
class Point:
    """One setting: how many times faster than uncached, and its fidelity on each prompt.

    `goodness` is higher for closer pictures: a distance comes with its sign turned.
    """

    peer: str
    setting: str
    speed: float
    goodness: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean over prompts."""
        return math.fsum(self.goodness) / len(self.goodness)


@dataclass(frozen=True)
class Gap:
    """How far one side is ahead of another at a speed; `low` and `high` bound it at 95 %.

    `gain` is in units of the fidelity, `speed_ratio` is how many times faster the first is at the
    fidelity the other has there (None where its front does not reach that fidelity).
    """

    speed: float
    gain: float
    low: float | None
    high: float | None
    pairs: int
    speed_ratio: float | None
    other: str
    settings: tuple[str, ...]
    own_settings: tuple[str, ...]


def front(points: Sequence[Point]) -> list[Point]:
    """Return the settings that are beaten by no other, from slow to fast.

    >>> a, b = Point("p", "a", 2.0, (30.0,)), Point("p", "b", 1.5, (29.0,))
    >>> [point.setting for point in front([a, b])]
    ['a']
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda each: (-each.speed, -each.mean)):
        if not found or point.mean > found[-1].mean:
            found.append(point)
    return found[::-1]


def bracket(found: Sequence[Point], speed: float) -> tuple[Point, Point, float] | None:
    """Return the two neighbours of a front around a speed, and the weight of the second."""
    for a, b in itertools.pairwise(found):
        if a.speed <= speed <= b.speed:
            return a, b, math.log(speed / a.speed) / math.log(b.speed / a.speed)
    if len(found) == 1 and found[0].speed == speed:
        return found[0], found[0], 0.0
    return None


def at_speed(found: Sequence[Point], speed: float) -> tuple[float, ...] | None:
    """Return a front's fidelity at a speed, one value a prompt, or None beyond its ends.

    >>> line = [Point("p", "a", 1.0, (40.0,)), Point("p", "b", 4.0, (20.0,))]
    >>> at_speed(line, 2.0), at_speed(line, 5.0)
    ((30.0,), None)
    """
    around = bracket(found, speed)
    if around is None:
        return None
    a, b, w = around
    return tuple((1 - w) * x + w * y for x, y in zip(a.goodness, b.goodness, strict=True))


def speed_at(found: Sequence[Point], goodness: float) -> float | None:
    """Return the speed at which a front has this mean fidelity, or None beyond its ends."""
    for a, b in itertools.pairwise(found):
        if b.mean <= goodness <= a.mean:
            w = (a.mean - goodness) / (a.mean - b.mean)
            return a.speed * math.exp(w * math.log(b.speed / a.speed))
    return None


def best_of(fronts: dict[str, list[Point]], speed: float) -> str | None:
    """Return who has the best mean fidelity at a speed, or None where nobody has a front."""
    means = {
        name: math.fsum(values) / len(values)
        for name, found in fronts.items()
        if (values := at_speed(found, speed)) is not None
    }
    return max(means, key=lambda name: means[name]) if means else None


def compare_at(own: Sequence[Point], others: dict[str, list[Point]], speed: float) -> Gap | None:
    """Return how far `own` is ahead of the best of the others, or None where one side is not."""
    best = best_of(others, speed)
    ours, around_ours = at_speed(own, speed), bracket(own, speed)
    if best is None or ours is None or around_ours is None:
        return None
    theirs, around = at_speed(others[best], speed), bracket(others[best], speed)
    if theirs is None or around is None:
        return None
    gains = [x - y for x, y in zip(ours, theirs, strict=True)]
    low, high = bootstrap_interval(gains) or (None, None)
    their_mean = math.fsum(theirs) / len(theirs)
    faster = speed_at(own, their_mean)
    return Gap(
        speed=speed,
        gain=math.fsum(gains) / len(gains),
        low=low,
        high=high,
        pairs=len(gains),
        speed_ratio=None if faster is None else faster / speed,
        other=best,
        settings=named(around),
        own_settings=named(around_ours),
    )


def named(around: tuple[Point, Point, float]) -> tuple[str, ...]:
    """Return the settings that a value between two points rests on."""
    a, b, w = around
    if w == 0 or a is b:
        return (a.setting,)
    return (b.setting,) if w == 1 else (a.setting, b.setting)


def over_range(
    own: Sequence[Point], others: dict[str, list[Point]], low: float, high: float
) -> list[Gap]:
    """Return the gaps at speeds evenly spread (in their logarithm) over a range."""
    speeds = [low * (high / low) ** (i / (GRID - 1)) for i in range(GRID)]
    gaps = [compare_at(own, others, speed) for speed in speeds]
    return [gap for gap in gaps if gap is not None]


def verdict(gap: Gap | None, speed: float, fidelity: Fidelity, own: str) -> str:
    """Say who is ahead at a speed, in one sentence."""
    if gap is None:
        return f"at {speed:g}x: nothing to compare, one side has no setting this slow or this fast"
    digits = fidelity.digits
    amount = f"{abs(gap.gain):.{digits}f} {fidelity.unit}".rstrip()
    between = " and ".join(gap.settings)
    who = f"{gap.other} ({between})"
    if gap.low is None or gap.high is None or gap.pairs < LEAST_PAIRS:
        sign = "ahead of" if gap.gain > 0 else "behind"
        return f"at {speed:g}x: {own} is {amount} {sign} {who}, on too few prompts to judge"
    span = f"95 %: {gap.low:+.{digits}f} to {gap.high:+.{digits}f}"
    if gap.low > 0:
        said = f"{own} is {amount} ahead of the best peer, {who}"
    elif gap.high < 0:
        said = f"{who} wins, {own} is {amount} behind"
    else:
        said = f"{own} and {who} cannot be told apart ({gap.gain:+.{digits}f} {fidelity.unit})"
    ratio = ""
    if gap.speed_ratio is not None:
        ratio = f"; at equal fidelity {gap.speed_ratio:.2f}x its speed"
    return f"at {speed:g}x: {said} ({span}{ratio})"
