"""What the last run did, as data; text, dict, notebook HTML and a timeline are views of it.

A report never guesses: counts are counted, bytes are summed over the buffers really held, FLOPs are
measured once per input shape by torch's own counter, and what could not be known is None. The
verdict says in words what happened and which knob to turn.
"""

import html
from dataclasses import asdict, dataclass, field
from typing import Any

from skipstep.caching.base import Choice
from skipstep.plugins.attention.account import AttentionLayer, sentences, table

__all__ = ["Call", "Report"]

MIB = 2**20
MARK_COMPUTED, MARK_SKIPPED, MARK_MIXED = "#", ".", "+"


@dataclass
class Call:
    """One denoiser call: a choice per sample, the work units and FLOPs done out of those an
    uncached call takes, host seconds.
    """

    step: int
    denoiser: str
    branch: int
    choices: list[Choice]
    work_done: float
    work_full: float
    seconds: float
    flops_done: float | None = None
    flops_full: float | None = None

    @property
    def computed(self) -> int:
        return sum(choice.compute for choice in self.choices)

    @property
    def mark(self) -> str:
        if self.computed == len(self.choices):
            return MARK_COMPUTED
        return MARK_MIXED if self.computed else MARK_SKIPPED


@dataclass
class Report:
    """Hold what one run did. `fraction` is the share of block computations executed; `bytes_held`
    is the peak.
    """

    pipeline: str
    plugins: list[str]
    steps: int = 0
    seconds: float = 0.0
    calls: list[Call] = field(default_factory=list)
    flops_done: float | None = None
    flops_full: float | None = None
    bytes_held: int = 0
    attention: list[AttentionLayer] = field(default_factory=list)
    threshold_option: str | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def computed(self) -> int:
        """Count the (denoiser call, sample) pairs that were computed."""
        return sum(call.computed for call in self.calls)

    @property
    def total(self) -> int:
        """Count all (denoiser call, sample) pairs."""
        return sum(len(call.choices) for call in self.calls)

    @property
    def fraction(self) -> float:
        """Return the share of block computations executed, 0 to 1; 1 when nothing was watched."""
        full = sum(call.work_full for call in self.calls)
        return sum(call.work_done for call in self.calls) / full if full else 1.0

    @property
    def verdict(self) -> str:
        """Say in plain words what the run did and what to do about it."""
        parts = [self._what_happened(), *self.warnings]
        if self.error:
            parts.insert(0, f"The run was interrupted ({self.error}).")
        return " ".join(parts)

    def _what_happened(self) -> str:
        if not self.calls:
            said = " ".join([*sentences(self.attention), *self.notes])
            return said or "No denoiser call was watched in this run."
        return " ".join([self._what_was_skipped(), *sentences(self.attention)])

    def _what_was_skipped(self) -> str:
        skipped = self.total - self.computed
        if skipped:
            saved = (
                ""
                if not self.flops_full
                else f", {1 - (self.flops_done or 0) / self.flops_full:.0%} of the FLOPs"
            )
            return (
                f"Skipped {skipped} of {self.total} sample computations: "
                f"{1 - self.fraction:.0%} of the block computations{saved} saved."
            )
        return f"Nothing was skipped: {self._why_nothing()}"

    def _why_nothing(self) -> str:
        broken = next(
            (c.why for call in self.calls for c in call.choices if c.why.startswith("contract")),
            None,
        )
        if broken:
            return f"{broken}."
        gated = [
            c
            for call in self.calls
            for c in call.choices
            if c.value is not None and c.why == "changed"
        ]
        limit = gated[0].threshold if gated else None
        if not gated or limit is None:
            forced = sorted({c.why for call in self.calls for c in call.choices})
            warmed = {
                call.step
                for call in self.calls
                for c in call.choices
                if c.why in ("warm-up", "first")
            }
            if "warm-up" in forced and self.steps:
                others = ", ".join(why for why in forced if why not in ("warm-up", "first"))
                rest = f", the others: {others}" if others else ""
                return (
                    f"the warm-up takes {len(warmed)} of {self.steps} steps{rest}. Pass a smaller "
                    "warmup_steps, 2 for example."
                )
            return f"every step was computed because of: {', '.join(forced)} ({self.steps} steps)."
        values = sorted(c.value for c in gated if c.value is not None)
        better = values[len(values) // 3] * 1.02
        would = sum(value < better for value in values)
        name = self.threshold_option or "threshold"
        return (
            f"smallest change {values[0]:.3g}, {name} {limit:.3g}; "
            f"{better:.2g} would have skipped about {would} of {self.total}."
        )

    def timeline(self) -> dict[str, str]:
        """Return one string per denoiser and branch: `#` computed, `.` skipped, `+` some samples of
        the batch.
        """
        lines: dict[str, str] = {}
        branches = {(call.denoiser, call.branch) for call in self.calls}
        for call in self.calls:
            several = sum(name == call.denoiser for name, _ in branches) > 1
            key = f"{call.denoiser}[{call.branch}]" if several else call.denoiser
            lines[key] = lines.get(key, "") + call.mark
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data, the derived figures included."""
        data = asdict(self)
        return data | {
            "computed": self.computed,
            "total": self.total,
            "fraction": self.fraction,
            "timeline": self.timeline(),
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        lines = [f"{self.pipeline} with {', '.join(self.plugins) or 'no plugin'}: {self.verdict}"]
        lines += [f"  {name}  {marks}" for name, marks in self.timeline().items()]
        figures = [f"{self.steps} steps", f"{self.seconds:.2f} s"]
        if self.calls:
            figures.append(f"{self.bytes_held / MIB:.2f} MiB held")
        if self.flops_full:
            figures.append(
                f"{(self.flops_done or 0) / 1e9:.2f} of {self.flops_full / 1e9:.2f} GFLOP"
            )
        lines.append("  " + ", ".join(figures))
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def table(self) -> str:
        """Return one line per denoiser call: step, branch, computed samples, why, the gate's value
        and threshold.
        """
        rows = ["step  denoiser        branch  computed  why (value / threshold)"]
        for call in self.calls:
            why = "; ".join(dict.fromkeys(_reason(choice) for choice in call.choices))
            computed = f"{call.computed}/{len(call.choices)}"
            rows.append(
                f"{call.step:>4}  {call.denoiser:<14}  {call.branch:>6}  {computed:>8}  {why}"
            )
        return "\n".join(rows)

    def attention_table(self) -> str:
        """Return one line per layer: tokens, sparse calls, kept blocks, kept attention, savings."""
        return table(self.attention)

    def _repr_html_(self) -> str:
        bars = "".join(
            f"<div><code>{html.escape(name)}</code> {_bar(marks)}</div>"
            for name, marks in self.timeline().items()
        )
        verdict, table = html.escape(self.verdict), html.escape(self.table())
        return f"<div><p>{verdict}</p>{bars}<pre>{table}</pre></div>"


def _reason(choice: Choice) -> str:
    if choice.value is None:
        return choice.why
    limit = "" if choice.threshold is None else f" / {choice.threshold:.4g}"
    return f"{choice.why} ({choice.value:.4g}{limit})"


def _bar(marks: str) -> str:
    colours = {MARK_COMPUTED: "#3b6ea5", MARK_SKIPPED: "#d8dee6", MARK_MIXED: "#8fb0d3"}
    words = {MARK_COMPUTED: "computed", MARK_SKIPPED: "skipped", MARK_MIXED: "partly computed"}
    return "".join(
        f'<span title="step {i}: {words[m]}" style="display:inline-block;width:10px;height:14px;'
        f'margin-right:1px;background:{colours[m]}"></span>'
        for i, m in enumerate(marks)
    )
