"""A comparison as one HTML file: verdicts, a chart, the table, every picture under a slider.

The file is self-contained: pictures are data URIs, style and script are inside, and its content
policy forbids the browser to load anything else. Every text from outside (prompts, arm names,
verdicts) is escaped.
"""

import math
import re
import statistics
from collections.abc import Sequence
from html import escape

from skipstep.pipelines.compare.comparison import ArmResult, Comparison
from skipstep.pipelines.compare.style import SCRIPT, STYLE
from skipstep.pipelines.compare.text import COLUMNS, cells, in_pairs, number
from skipstep.pipelines.compare.verdicts import FULL
from skipstep.pipelines.pictures import data_uri

__all__ = ["fragment", "page"]

LARGEST = 512
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(comparison: Comparison) -> str:
    """Return the whole page as text."""
    title = f"{comparison.pipeline}: what skipping costs"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(comparison.headline())}</p>',
        '<div class="cards">',
        *[card(arm, key) for key, arm in numbered(comparison)],
        "</div>",
        chart(comparison),
        "<h2>All numbers</h2>",
        fragment(comparison),
        pictures(comparison),
        footer(comparison),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            f"<script>{SCRIPT}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def fragment(comparison: Comparison) -> str:
    """Return the table of all arms alone, as for a notebook."""
    rows = [(arm, cells(arm)) for arm in in_pairs(comparison.arms)]
    used = [i for i in range(len(COLUMNS)) if any(row[i] for _, row in rows)]
    head = "".join(f"<th>{escape(COLUMNS[i])}</th>" for i in used)
    lines = []
    for arm, row in rows:
        kind = {"fewer steps": "fewer", "plugins": "plugins", "baseline": "baseline"}[arm.kind]
        lines.append(
            f'<tr class="{kind}">{"".join(f"<td>{in_cell(row[i])}</td>" for i in used)}</tr>'
        )
    body = "".join(lines)
    inside = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{inside}</div>'


def numbered(comparison: Comparison) -> list[tuple[int, ArmResult]]:
    """Return the plugin arms with the number each carries on the page."""
    arms = [arm for arm in comparison.arms if arm.kind == "plugins"]
    return list(enumerate(arms, start=1))


def card(arm: ArmResult, key: int) -> str:
    """Return the card of one plugin arm."""
    psnr = arm.estimates["psnr"]
    fidelity = "identical" if psnr.mean is None else f"{psnr.mean:.1f} dB"
    figures = [
        (f"{arm.fraction:.0%}", "of the blocks"),
        (f"{arm.speedup.median:.2f}x", "as fast"),
        (fidelity, "PSNR to uncached"),
    ]
    parts = [
        '<section class="card">',
        f'<span class="name"><span class="key">{key}</span>',
        f"<span>{breakable(arm.name)}</span></span>",
        '<div class="figures">',
        *[f"<div><b>{escape(value)}</b><span>{label}</span></div>" for value, label in figures],
        "</div>",
        strip(mean_timeline(arm.timelines)),
        f'<p class="verdict">{escape(sentence(arm.verdict))}</p>',
        *[f'<p class="warning">{escape(sentence(text))}</p>' for text in arm.warnings],
        "</section>",
    ]
    return "\n".join(parts)


def strip(timeline: Sequence[float], *, attributes: str = 'class="strip"') -> str:
    """Return a row of one cell a step: computed, partly computed, skipped."""
    if not timeline:
        return ""
    kinds = ["c" if v >= FULL else "s" if v <= 1 - FULL else "p" for v in timeline]
    label = f"{kinds.count('c')} of {len(kinds)} steps computed, {kinds.count('s')} skipped"
    marks = "".join(
        f'<i class="{kind}" title="step {i}: {value:.0%} computed"></i>'
        for i, (kind, value) in enumerate(zip(kinds, timeline, strict=True), start=1)
    )
    return f'<div {attributes} role="img" aria-label="{label}">{marks}</div>'


def mean_timeline(timelines: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of the timelines over batches, as far as all of them reach."""
    return [statistics.fmean(values) for values in zip(*timelines, strict=False)]


def breakable(text: str) -> str:
    """Return the text escaped, with places after commas and colons where a line may break."""
    return re.sub(r"([,:])(?=\S)", r"\1<wbr>", escape(text))


def in_cell(text: str) -> str:
    """Return the text of a cell escaped, what follows the number in small letters below it."""
    head, space, tail = text.partition(" (")
    if not space:
        return breakable(text)
    return f"{breakable(head)}<small>{escape(tail.replace(')', '', 1))}</small>"


def sentence(text: str) -> str:
    """Return the text with a capital and a full stop."""
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def chart(comparison: Comparison) -> str:
    """Return the chart of fidelity over cost, with uncached runs of fewer steps to beat."""
    points = [
        (arm.fraction, psnr, arm)
        for arm in comparison.arms
        if (psnr := arm.estimates.get("psnr")) is not None and psnr.mean is not None
    ]
    if not points:
        return ""
    width, height, left, bottom, top, right = 1000.0, 330.0, 56.0, 46.0, 18.0, 24.0
    edges = [
        value
        for _, psnr, _ in points
        for value in (psnr.low, psnr.high, psnr.mean)
        if value is not None
    ]
    low, high = math.floor(min(edges) / 5) * 5, math.ceil(max(edges) / 5) * 5
    high = max(high, low + 5)

    def across(fraction: float) -> float:
        return left + fraction * (width - left - right)

    def up(decibels: float) -> float:
        return height - bottom - (decibels - low) / (high - low) * (height - bottom - top)

    parts = [
        "<h2>Fidelity against cost</h2>",
        '<div class="chart">',
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        'aria-label="PSNR to the uncached pictures over the share of blocks computed">',
    ]
    for decibels in range(low, high + 1, 5 if high - low <= 40 else 10):
        y = up(decibels)
        parts.append(
            f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{decibels} dB</text>')
    for percent in range(0, 101, 20):
        x = across(percent / 100)
        parts.append(f'<text x="{x:.1f}" y="{height - 24}" text-anchor="middle">{percent} %</text>')
    parts.append(
        f'<text x="{(left + width) / 2}" y="{height - 6}" text-anchor="middle">'
        "share of block computations executed (further left is cheaper)</text>"
    )
    fewer = sorted(
        (x, psnr.mean) for x, psnr, arm in points if arm.kind == "fewer steps" and psnr.mean
    )
    if len(fewer) > 1:
        path = " ".join(f"{across(x):.1f},{up(mean):.1f}" for x, mean in fewer)
        parts.append(
            f'<polyline class="fewer" points="{path}" style="fill: none" stroke-width="1.5" '
            'stroke-dasharray="5 5" opacity=".7"/>'
        )
    keys = {arm.name: key for key, arm in numbered(comparison)}
    placed: list[tuple[float, float]] = []
    on_top: list[str] = []
    for fraction, psnr, arm in points:
        x, y = across(fraction), up(psnr.mean or low)
        style = "plugins" if arm.kind == "plugins" else "fewer"
        if psnr.low is not None and psnr.high is not None:
            parts.append(
                f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{up(psnr.low):.1f}" '
                f'y2="{up(psnr.high):.1f}" stroke-width="2" opacity=".55"/>'
            )
        label = escape(f"{arm.name}: {arm.fraction:.0%} of the blocks, {psnr.mean:.1f} dB")
        if arm.kind == "plugins":
            # The dot stays where it was measured; a number that would hide another moves right.
            key_x = x
            while any(math.hypot(key_x - px, y - py) < 24 for px, py in placed):
                key_x += 4
            placed.append((key_x, y))
            parts.append(f'<circle class="plugins" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
            on_top += [
                f'<circle class="plugins" cx="{key_x:.1f}" cy="{y:.1f}" r="11">',
                f"<title>{label}</title></circle>",
                f'<text class="key-text" x="{key_x:.1f}" y="{y + 4.5:.1f}" text-anchor="middle">',
                f"{keys[arm.name]}</text>",
            ]
        else:
            parts.append(
                f'<circle class="fewer" cx="{x:.1f}" cy="{y:.1f}" r="5">'
                f"<title>{label}</title></circle>"
            )
            # Plugins of equal cost stand to the right of one another.
            parts.append(
                f'<text x="{x - 11:.1f}" y="{y + 4:.1f}" text-anchor="end">{arm.steps} steps</text>'
            )
    parts += [
        *on_top,
        "</svg>",
        '<p class="soft" style="margin: 6px 8px 2px">Numbered: plugins. Small dots: the '
        "uncached pipeline with fewer steps at the same cost. Bars: 95 % intervals of the "
        "mean over prompts.</p>",
        "</div>",
    ]
    return "\n".join(parts)


def pictures(comparison: Comparison) -> str:
    """Return the selector of arms and one slider a prompt."""
    kept = comparison.pictures
    shown = [arm for arm in comparison.arms if arm.kind != "baseline" and kept.get(arm.name)]
    if not shown or not comparison.pictures.get(comparison.arms[0].name):
        return ""
    baseline = comparison.pictures[comparison.arms[0].name]
    labels = [
        f'<label><input type="radio" name="arm" value="{index}"{" checked" if index == 0 else ""}>'
        f"{escape(arm.name)}</label>"
        for index, arm in enumerate(shown)
    ]
    parts = [
        "<h2>Pictures</h2>",
        '<p class="soft">Drag a picture: uncached on the left, the chosen arm on the right.</p>',
        '<div class="pick">',
        *labels,
        '<label class="tick"><input type="checkbox" id="differences"> '
        "differences, 6 times brighter</label>",
        "</div>",
        '<div class="grid">',
        *[
            slider(comparison, shown, place, prompt)
            for place, prompt in enumerate(comparison.prompts[: len(baseline)])
        ],
        "</div>",
    ]
    if len(baseline) < len(comparison.prompts):
        parts.append(
            f'<p class="soft">The first {len(baseline)} of {len(comparison.prompts)} prompts are '
            "shown.</p>"
        )
    if max(baseline[0].shape[:2]) > LARGEST:
        parts.append(
            f'<p class="soft">Pictures are shrunk to {LARGEST} pixels for this page; all numbers '
            "are from the full ones.</p>"
        )
    return "\n".join(parts)


def slider(comparison: Comparison, shown: Sequence[ArmResult], place: int, prompt: str) -> str:
    """Return the pictures of one prompt under a slider, with the numbers of each arm."""
    truth = comparison.pictures[comparison.arms[0].name][place]
    height, width = truth.shape[:2]
    name = escape(prompt, quote=True)
    parts = [
        "<figure>",
        f'<div class="pair" style="--shape: {width} / {height}">',
        f'<img src="{data_uri(truth, largest=LARGEST)}" alt="uncached: {name}">',
    ]
    captions = []
    for index, arm in enumerate(shown):
        on = " on" if index == 0 else ""
        source = data_uri(comparison.pictures[arm.name][place], largest=LARGEST)
        alt = f"{escape(arm.name, quote=True)}: {name}"
        parts.append(f'<img class="arm{on}" data-arm="{index}" src="{source}" alt="{alt}">')
        batch = place // comparison.batch_size
        if batch < len(arm.timelines):
            attributes = f'class="strip only{on}" data-arm="{index}"'
            captions.append(strip(arm.timelines[batch], attributes=attributes))
        captions.append(
            f'<span class="soft only{on}" data-arm="{index}">{escape(numbers(arm, place))}</span>'
        )
    parts += [
        '<span class="tag left">uncached</span><span class="tag right">chosen arm</span>',
        f'<input type="range" min="0" max="100" value="50" aria-label="compare: {name}">',
        "</div>",
        f"<figcaption>{escape(prompt)}",
        *captions,
        "</figcaption>",
        "</figure>",
    ]
    return "\n".join(parts)


def numbers(arm: ArmResult, place: int) -> str:
    """Return the fidelity of one picture in words."""
    psnr = arm.psnr[place]
    if math.isinf(psnr):
        return "identical"
    parts = ["broken: not a number" if math.isnan(psnr) else f"{psnr:.1f} dB"]
    if arm.ssim:
        parts.append(f"SSIM {number(arm.ssim[place], '.3f')}")
    parts.append(f"LPe {number(arm.feature_distance[place], '.3f')}")
    return ", ".join(parts)


def footer(comparison: Comparison) -> str:
    """Return how it was measured, and on what."""
    machine = ", ".join(f"{name} {value}" for name, value in comparison.machine.items() if value)
    lines = [*comparison.notes(), f"Measured in {comparison.seconds:.0f} s on: {machine}."]
    return "<footer>" + "".join(f"<p>{escape(line)}</p>" for line in lines) + "</footer>"
