"""What a run's attention calls were, layer by layer, as data, as a sentence and as a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["AttentionLayer", "sentences", "table"]


@dataclass
class AttentionLayer:
    """One layer's self-attention in a run.

    Args:
        denoiser: whose layer it is.
        layer: its number, in the order of the model.
        tokens: of the longest call.
        calls: all of them.
        sparse: those that were sparse.
        density: share of the blocks that these kept.
        mass: share of the attention that they kept; None where it was not probed.
        pairs: of queries and keys, over all calls.
        saved: share of those pairs that was left out.
        quantized: calls in small integers.
        why_dense: reasons why the others were dense, and how often.
        dense_seconds: median time of a call that stayed dense; None where none did.
        seconds: median time of a sparse or quantised call, the search for its mask included.
    """

    denoiser: str
    layer: int
    tokens: int
    calls: int
    sparse: int
    density: float
    mass: float | None
    pairs: float
    saved: float
    quantized: int = 0
    why_dense: dict[str, int] = field(default_factory=dict)
    dense_seconds: float | None = field(default=None, compare=False)
    seconds: float | None = field(default=None, compare=False)

    @property
    def gain(self) -> float | None:
        """How many times faster a sparse or quantised call was than one that stayed dense."""
        if not self.seconds or self.dense_seconds is None:
            return None
        return self.dense_seconds / self.seconds


def sentences(layers: Sequence[AttentionLayer]) -> list[str]:
    """Say in one sentence what sparse attention did, if it was there."""
    if not layers:
        return []
    calls = sum(layer.calls for layer in layers)
    sparse = [layer for layer in layers if layer.sparse]
    count = sum(layer.sparse for layer in sparse)
    quantized = sum(layer.quantized for layer in layers)
    if quantized:
        return [f"Attention was quantised in {quantized} of {calls} calls."]
    if not count:
        return [f"Attention was dense in all of its {calls} calls."]
    density = sum(layer.density * layer.sparse for layer in sparse) / count
    masses = [(layer.mass, layer.sparse) for layer in sparse if layer.mass is not None]
    held = sum(mass * n for mass, n in masses) / sum(n for _, n in masses) if masses else None
    pairs = sum(layer.pairs for layer in layers)
    saved = sum(layer.saved * layer.pairs for layer in layers) / pairs
    mass_said = "" if held is None else f", which hold {held:.1%} of the attention"
    return [
        f"Attention was sparse in {count} of {calls} calls: {density:.0%} of the blocks "
        f"kept{mass_said}; {saved:.0%} of all query-key products saved{_time_said(sparse)}."
    ]


def _time_said(layers: Sequence[AttentionLayer]) -> str:
    """Say what was measured of the calls' time, where both kinds were seen in the same layers."""
    timed = [
        (layer.sparse, layer.dense_seconds, layer.seconds)
        for layer in layers
        if layer.dense_seconds is not None and layer.seconds is not None
    ]
    took = sum(count * sparse for count, _, sparse in timed)
    if not took:
        return ""
    return (
        f"; a sparse call was {sum(n * d for n, d, _ in timed) / took:.2g}x as fast as a dense one"
    )


def table(layers: Sequence[AttentionLayer]) -> str:
    """Return one line per layer: tokens, sparse calls, kept blocks, kept attention, savings."""
    rows = ["denoiser        layer  tokens  sparse calls  density   mass  saved    gain  why dense"]
    for layer in layers:
        mass = "-" if layer.mass is None else f"{layer.mass:.3f}"
        gain = "-" if layer.gain is None else f"{layer.gain:.2g}x"
        why = "; ".join(f"{text} ({count})" for text, count in layer.why_dense.items())
        rows.append(
            f"{layer.denoiser:<14}  {layer.layer:>5}  {layer.tokens:>6}  "
            f"{f'{layer.sparse}/{layer.calls}':>12}  {layer.density:>7.3f}  {mass:>5}  "
            f"{layer.saved:>5.0%}  {gain:>6}  {why}".rstrip()
        )
    return "\n".join(rows)
