"""A chart of speed against quality as SVG: points with names, and a line to beat."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

__all__ = ["Point", "scatter"]

WIDTH, HEIGHT = 1000.0, 380.0
LEFT, BOTTOM, TOP, RIGHT = 64.0, 50.0, 20.0, 28.0


@dataclass(frozen=True)
class Point:
    """`x` is a share of the work, `y` a quality; "fewer" are plain runs of fewer steps."""

    x: float
    y: float
    name: str
    sort: Literal["plugins", "fewer"] = "plugins"
    is_best: bool = False


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers between two values.

    >>> ticks(0.0, 0.31)
    [0.0, 0.1, 0.2, 0.3]
    """
    raw = max(high - low, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def scatter(points: Sequence[Point], *, y_name: str, y_unit: str = "") -> str:
    """Return the chart; points whose y is not a number are left out."""
    shown = [point for point in points if math.isfinite(point.y)]
    if not shown:
        return ""
    low, high = min(p.y for p in shown), max(p.y for p in shown)
    margin = (high - low) * 0.1 or 1.0
    low, high = max(0.0, low - margin) if low >= 0 else low - margin, high + margin
    right = max(1.0, max(p.x for p in shown))

    def across(x: float) -> float:
        return LEFT + x / right * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    label = f"{y_name} over the share of work, {len(shown)} points"
    parts = [
        '<div class="chart">',
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(label)}">',
    ]
    for value in ticks(low, high):
        y = up(value)
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}{escape(y_unit)}'
            "</text>"
        )
    for percent in range(0, 101, 20):
        parts.append(
            f'<text x="{across(percent / 100):.1f}" y="{HEIGHT - 28}" text-anchor="middle">'
            f"{percent} %</text>"
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">share of the work '
        "that was computed (further left is cheaper)</text>"
        f'<text x="{LEFT}" y="{TOP - 6}">{escape(y_name)}</text>'
    )
    fewer = sorted((p.x, p.y) for p in shown if p.sort == "fewer")
    if len(fewer) > 1:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in fewer)
        parts.append(
            f'<polyline points="{path}" style="fill:none;stroke:var(--sk-fewer)" '
            'stroke-width="1.5" stroke-dasharray="5 5" opacity=".7"/>'
        )
    placed: list[tuple[float, float]] = []
    for point in shown:
        x, y = across(point.x), up(point.y)
        style = "dot" if point.sort == "plugins" else "fewer"
        name = escape(point.name)
        told = f"{point.x:.0%} of the work, {point.y:.4g}{escape(y_unit)}"
        if point.is_best:
            parts.append(f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="11"/>')
        parts.append(
            f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="6">'
            f"<title>{name}: {told}</title></circle>"
        )
        # A name that would lie over another one is left to the tooltip.
        if all(abs(x - px) > 150 or abs(y - py) > 15 for px, py in placed):
            is_right = x > WIDTH * 0.75
            parts.append(
                f'<text class="name" x="{x + (-11 if is_right else 11):.1f}" y="{y + 4:.1f}" '
                f'text-anchor="{"end" if is_right else "start"}">{escape(point.name[:34])}</text>'
            )
            placed.append((x, y))
    parts += [
        "</svg>",
        '<div class="legend"><span><i class="c"></i>with plugins</span>'
        '<span><i style="background:var(--sk-fewer)"></i>fewer plain steps</span></div>',
        "</div>",
    ]
    return "\n".join(parts)
