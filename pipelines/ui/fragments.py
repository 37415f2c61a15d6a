"""Pieces of the page as HTML: the live view, the timeline, the figures, the table of plugins.

Every text from outside is escaped, and no text becomes an attribute's name or a style. Pictures are
data URIs. The style is in style.py.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from skipstep.pipelines.compare.verdicts import FULL
from skipstep.pipelines.pictures import data_uri
from skipstep.pipelines.ui.figures import Figure
from skipstep.pipelines.ui.studio import Progress
from skipstep.plugins.listing import Listing

__all__ = [
    "FAILED",
    "STOPPED",
    "ends",
    "figure_row",
    "live",
    "nothing",
    "outlook",
    "plugin_table",
    "timeline_strip",
    "verdict_card",
    "welcome",
]

LARGEST = 512
STOPPED = "Stopped. Nothing is running for this page."
FAILED = "It failed, and the message says why. Nothing is running for this page."
SIDES = {
    "loading": "Loading the model",
    "warming up": "Warming up: the plugins learn the model",
    "plain": "Plain picture",
    "accelerated": "Accelerated picture",
}


def tile(name: str, picture: NDArray[np.uint8] | None, *, is_busy: bool) -> str:
    """Return one half of the live view."""
    busy = ' data-busy="true"' if is_busy else ""
    inside = (
        f'<img src="{data_uri(picture, largest=LARGEST)}" alt="{escape(name)}, preview">'
        if picture is not None
        else '<span class="blank" aria-hidden="true"></span>'
    )
    return f'<figure class="tile"{busy}>{inside}<figcaption>{escape(name)}</figcaption></figure>'


def live(progress: Progress, preview: NDArray[np.uint8] | None) -> str:
    """Return what is shown while a pair is made; `preview` is the last one there was."""
    is_second = progress.plain is not None
    left = progress.plain if is_second else preview
    right = preview if is_second else None
    share = progress.step / progress.steps if progress.steps else 0.0
    words = SIDES[progress.side]
    if progress.step:
        words += f": step {progress.step} of {progress.steps}"
    return (
        '<div class="live">'
        f"{tile('plain', left, is_busy=not is_second)}"
        f"{tile('accelerated', right, is_busy=is_second)}"
        "</div>"
        f'<div class="bar" role="progressbar" aria-label="{escape(words)}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share * 100:.0f}">'
        f'<i style="width:{share:.1%}"></i></div>'
        f'<p class="soft" role="status">{escape(words)}</p>'
    )


def welcome() -> str:
    """Return what is shown before the first picture."""
    return (
        '<div class="live">'
        f"{tile('plain', None, is_busy=False)}{tile('accelerated', None, is_busy=False)}"
        "</div>"
        '<p class="soft">The same noise twice: plain, and with plugins that skip work. '
        "Press Generate, or Shift+Enter in the prompt.</p>"
    )


def outlook(words: str) -> str:
    """Return what stands where results will be, in words."""
    return f'<p class="outlook">{escape(words)}</p>'


def ends() -> str:
    """Return what stands at the two ends of the slider."""
    return (
        '<div class="ends"><span>left: plain</span><span>drag the handle</span>'
        "<span>right: accelerated</span></div>"
    )


def timeline_strip(timeline: Sequence[float]) -> str:
    """Return one cell a step: computed, partly computed, skipped; with a legend."""
    if not timeline:
        return '<p class="soft">Every step was computed.</p>'
    kinds = ["c" if v >= FULL else "s" if v <= 1 - FULL else "p" for v in timeline]
    words = {"c": "computed", "s": "skipped", "p": "partly computed"}
    counts = {kind: kinds.count(kind) for kind in ("c", "p", "s")}
    told = ", ".join(f"{count} {words[kind]}" for kind, count in counts.items() if count)
    cells = "".join(
        f'<i class="{kind}" title="step {i}: {words[kind]}">{i}</i>'
        for i, (kind, _) in enumerate(zip(kinds, timeline, strict=True), start=1)
    )
    legend = "".join(
        f'<span><i class="{kind}"></i>{words[kind]} {count}</span>'
        for kind, count in counts.items()
        if count
    )
    return (
        f'<div class="steps" role="img" aria-label="{len(kinds)} steps: {told}">{cells}</div>'
        f'<div class="legend" aria-hidden="true">{legend}</div>'
    )


def figure_row(figures: Sequence[Figure]) -> str:
    """Return the figures as a list of names and values."""
    cells = "".join(
        f"<div><dt>{escape(each.name)}</dt><dd>{escape(each.value)}</dd>"
        f"<small>{escape(each.about)}</small></div>"
        for each in figures
    )
    return f'<dl class="figures">{cells}</dl>'


def verdict_card(words: str) -> str:
    """Return the verdict, read out by screen readers when it changes."""
    return f'<p class="verdict" role="status">{escape(words)}</p>'


def plugin_table(listing: Listing) -> str:
    """Return the catalogue: those that work on this pipeline first, the others with the reason."""
    # Caches first: there are most of them, and they are what a page about skipping is opened for.
    rows = sorted(
        listing.rows,
        key=lambda row: (row.why_not is not None, row.kind != "cache", row.kind, row.name),
    )
    works = sum(row.why_not is None for row in rows)
    lines = "".join(
        f'<tr class="{"no" if row.why_not else "yes"}"><th scope="row">{escape(row.name)}</th>'
        f"<td>{escape(row.kind)}</td>"
        f"<td>{'works' if row.why_not is None else 'no'}</td>"
        f"<td>{escape(row.summary if row.why_not is None else row.why_not)}</td>"
        f"<td>{escape(row.paper)}</td></tr>"
        for row in rows
    )
    names = ("plugin", "kind", "here", "what it does, or why it does not work here", "paper")
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<p class="soft">{works} of {len(rows)} plugins work on {escape(listing.pipeline)}.</p>'
        '<div class="wide"><table><caption class="unseen">Plugins on this model</caption><thead>'
        f"<tr>{heads}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def nothing(words: str) -> str:
    """Return what is shown after a run that came to nothing, with the reason."""
    return (
        '<div class="live">'
        f"{tile('plain', None, is_busy=False)}{tile('accelerated', None, is_busy=False)}"
        f'</div><p class="soft" role="status">{escape(words)}</p>'
    )
