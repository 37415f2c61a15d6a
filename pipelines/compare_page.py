"""A comparison as one HTML file: verdicts, a cost-fidelity chart, the table, and every picture under a slider.

The file is self-contained: pictures are data URIs, style and script are inside, and its content policy forbids the
browser to load anything else. Every text from outside (prompts, arm names, verdicts) is escaped.
"""

import math
import statistics
from collections.abc import Sequence
from html import escape

from skipstep.pipelines.comparison import (
    COLUMNS,
    FULL,
    ArmResult,
    Comparison,
    cells,
    in_pairs,
    number,
)
from skipstep.pipelines.pictures import data_uri

__all__ = ["fragment", "page"]

LARGEST = 512
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --back: #f7f6f3; --card: #fff; --ink: #1d1f24; --soft: #63676f; --line: #e3e1db;
  --plugin: #0b7a75; --fewer: #b4690e; --skip: #e4e2dc; --part: #8fc3c0; }
@media (prefers-color-scheme: dark) { :root { --back: #131418; --card: #1c1e24; --ink: #eceae5; --soft: #a0a4ad;
  --line: #31343c; --plugin: #45c2bb; --fewer: #f0a850; --skip: #363a43; --part: #2b7772; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.02em; }
h2 { font-size: 19px; margin: 44px 0 14px; letter-spacing: -.01em; }
p { margin: 0 0 10px; } .soft { color: var(--soft); }
code, .name { font-family: ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; font-size: .92em; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 16px; margin-top: 28px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; }
.card .name { display: block; font-weight: 600; overflow-wrap: anywhere; }
.key { display: inline-grid; place-items: center; width: 22px; height: 22px; border-radius: 50%; margin-right: 6px;
  background: var(--plugin); color: var(--card); font: 600 12px/1 system-ui, sans-serif; }
.figures { display: grid; grid-template-columns: repeat(3, auto); justify-content: space-between; gap: 10px;
  margin: 14px 0; }
.figures b { display: block; font-size: 23px; line-height: 1.2; letter-spacing: -.02em; white-space: nowrap; }
.figures span { color: var(--soft); font-size: 12.5px; }
.strip { display: flex; gap: 2px; margin: 10px 0 4px; height: 14px; }
.strip i { flex: 1; border-radius: 2px; background: var(--skip); }
.strip .c { background: var(--plugin); } .strip .p { background: var(--part); }
.verdict { margin: 8px 0 0; }
.warning { color: var(--fewer); margin: 6px 0 0; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 9px 10px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; border-top: 0; }
th:first-child, td:first-child { text-align: left; }
td:first-child { font-family: ui-monospace, Menlo, "DejaVu Sans Mono", monospace; font-size: 13px; }
tr.fewer td { color: var(--soft); } tr.fewer td:first-child { padding-left: 28px; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font: 13px system-ui, "DejaVu Sans", sans-serif; }
.chart .axis { stroke: var(--line); stroke-width: 1; }
.chart .plugins { fill: var(--plugin); stroke: var(--plugin); }
.chart .fewer { fill: var(--fewer); stroke: var(--fewer); }
.chart .key-text { fill: var(--card); font-weight: 600; }
.pick { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin-bottom: 18px; position: sticky; top: 0;
  background: var(--back); padding: 10px 0; z-index: 5; }
.pick label { border: 1px solid var(--line); background: var(--card); border-radius: 999px; padding: 5px 14px;
  cursor: pointer; font-size: 13.5px; }
.pick input[type=radio] { position: absolute; opacity: 0; }
.pick label:has(:checked) { border-color: var(--plugin); color: var(--plugin); box-shadow: inset 0 0 0 1px var(--plugin); }
.pick label:has(:focus-visible) { outline: 2px solid var(--plugin); outline-offset: 2px; }
.pick .tick { margin-left: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 22px 18px; }
figure { margin: 0; }
.pair { --cut: 50%; position: relative; aspect-ratio: var(--shape); border-radius: 10px; overflow: hidden;
  border: 1px solid var(--line); background: var(--card); }
.pair img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.pair .arm { display: none; clip-path: inset(0 0 0 var(--cut)); }
.pair .arm.on { display: block; }
.pair::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 0 1px rgba(0, 0, 0, .35); pointer-events: none; }
.pair input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.pair:has(input:focus-visible) { outline: 2px solid var(--plugin); outline-offset: 2px; }
.pair .tag { position: absolute; bottom: 8px; font-size: 11px; padding: 1px 7px; border-radius: 6px; color: #fff;
  background: rgba(20, 20, 24, .62); pointer-events: none; }
.tag.left { left: 8px; } .tag.right { right: 8px; }
.differences .pair { filter: brightness(6); background: #000; isolation: isolate;
  border-color: transparent; }
.differences .pair .arm { clip-path: none; mix-blend-mode: difference; }
.differences .pair::after, .differences .pair .tag { display: none; }
figcaption { font-size: 13.5px; line-height: 1.4; margin-top: 8px; overflow-wrap: anywhere; }
figcaption .strip { height: 7px; margin: 6px 0 2px; }
.only { display: none; } .only.on { display: block; } .strip.only.on { display: flex; }
footer { margin-top: 48px; border-top: 1px solid var(--line); padding-top: 16px; font-size: 13.5px; color: var(--soft); }
@media (max-width: 600px) { main { padding: 24px 14px; } }
"""

SCRIPT = """
const show = arm => document.querySelectorAll("[data-arm]").forEach(
  found => found.classList.toggle("on", found.dataset.arm === arm));
document.querySelectorAll("input[name=arm]").forEach(
  found => found.addEventListener("change", () => show(found.value)));
document.querySelectorAll(".pair input").forEach(
  found => found.addEventListener("input", () => found.parentElement.style.setProperty("--cut", found.value + "%")));
document.querySelector("#differences")?.addEventListener(
  "change", event => document.body.classList.toggle("differences", event.target.checked));
"""


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
            f'<tr class="{kind}">{"".join(f"<td>{escape(row[i])}</td>" for i in used)}</tr>'
        )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


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
        f'<span class="name"><span class="key">{key}</span>{escape(arm.name)}</span>',
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


def sentence(text: str) -> str:
    """Return the text with a capital and a full stop."""
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def chart(comparison: Comparison) -> str:
    """Return the chart of fidelity over cost: plugins numbered, uncached runs of fewer steps as the line to beat."""
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
    for decibels in range(low, high + 1, 5):
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
            parts.append(
                f'<circle class="plugins" cx="{x:.1f}" cy="{y:.1f}" r="11"><title>{label}</title></circle>'
            )
            parts.append(
                f'<text class="key-text" x="{x:.1f}" y="{y + 4.5:.1f}" text-anchor="middle">{keys[arm.name]}</text>'
            )
        else:
            parts.append(
                f'<circle class="fewer" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{label}</title></circle>'
            )
            parts.append(f'<text x="{x + 11:.1f}" y="{y + 18:.1f}">{arm.steps} steps</text>')
    parts += [
        "</svg>",
        '<p class="soft" style="margin: 6px 8px 2px">Numbered: plugins. Small dots: the uncached pipeline with '
        "fewer steps at the same cost. Bars: 95 % intervals of the mean over prompts.</p>",
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
        '<label class="tick"><input type="checkbox" id="differences"> differences, 6 times brighter</label>',
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
            f'<p class="soft">The first {len(baseline)} of {len(comparison.prompts)} prompts are shown.</p>'
        )
    if max(baseline[0].shape[:2]) > LARGEST:
        parts.append(
            f'<p class="soft">Pictures are shrunk to {LARGEST} pixels for this page; all numbers are '
            "from the full ones.</p>"
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
