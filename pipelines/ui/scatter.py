"""A chart of speed against quality as SVG: points with names, and a line to beat."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

__all__ = ["Point", "scatter"]

WIDTH, HEIGHT = 1000.0, 380.0
LEFT, BOTTOM, TOP, RIGHT = 78.0, 50.0, 24.0, 28.0


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
    """Return the chart.

    An infinite y lies on a line of its own at the top, "identical"; what is no number is left out.
    """
    shown = [point for point in points if not math.isnan(point.y)]
    finite = [point.y for point in shown if math.isfinite(point.y)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    has_top = len(finite) < len(shown)
    margin = (high - low) * 0.1 or 1.0
    top = TOP + 34 if has_top else TOP
    low, high = max(0.0, low - margin) if low >= 0 else low - margin, high + margin
    right = max(1.0, max(p.x for p in shown))

    def across(x: float) -> float:
        return LEFT + x / right * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        if math.isinf(y):
            return TOP + 8
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - top)

    label = f"{y_name} over the share of work, {len(shown)} points"
    parts = [
        '<div class="chart">',
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(label)}">',
    ]
    marks = [(up(value), f"{value:g}{y_unit}") for value in ticks(low, high)]
    if has_top:
        marks.append((up(math.inf), "identical"))
    for y, words in marks:
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(words)}</text>'
        )
    for percent in range(0, 101, 20):
        parts.append(
            f'<text x="{across(percent / 100):.1f}" y="{HEIGHT - 28}" text-anchor="middle">'
            f"{percent} %</text>"
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">share of the work '
        "that was computed (further left is cheaper)</text>"
        f'<text x="{LEFT}" y="{TOP - 8}">{escape(y_name)}</text>'
    )
    fewer = sorted((p.x, p.y) for p in shown if p.sort == "fewer" and math.isfinite(p.y))
    if len(fewer) > 1:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in fewer)
        parts.append(
            f'<polyline points="{path}" style="fill:none;stroke:var(--sk-fewer)" '
            'stroke-width="1.5" stroke-dasharray="5 5" opacity=".7"/>'
        )
    placed: list[tuple[float, float]] = []
    names: list[str] = []
    marked: list[str] = []
    # Plugins lie on top of plain runs, and their names are placed first.
    for point in sorted(shown, key=lambda point: point.sort == "fewer"):
        x, y = across(point.x), up(point.y)
        style = "dot" if point.sort == "plugins" else "fewer"
        name = escape(point.name)
        value = "identical" if math.isinf(point.y) else f"{point.y:.4g}{y_unit}"
        told = f"{point.x:.0%} of the work, {escape(value)}"
        mark = (
            f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="6">'
            f"<title>{name}: {told}</title></circle>"
        )
        if point.is_best:
            mark += f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="11"/>'
        marked.insert(0, mark)
        # A name that would lie over another one is left to the tooltip.
        if all(abs(x - px) > 150 or abs(y - py) > 15 for px, py in placed):
            is_right, away = x > WIDTH * 0.75, 17 if point.is_best else 11
            names.append(
                f'<text class="name" x="{x + (-away if is_right else away):.1f}" y="{y + 4:.1f}" '
                f'text-anchor="{"end" if is_right else "start"}">{escape(point.name[:34])}</text>'
            )
            placed.append((x, y))
    parts += [*names, *marked]
    parts += [
        "</svg>",
        '<div class="legend"><span><i class="c"></i>with plugins</span>'
        '<span><i style="background:var(--sk-fewer)"></i>fewer plain steps</span></div>',
        "</div>",
    ]
    return "\n".join(parts)
