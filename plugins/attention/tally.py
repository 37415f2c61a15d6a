"""What a run attended to, layer by layer, counted while it runs and read when it ends.

Densities and masses stay on the device until then, so that counting waits for nothing.
"""

import statistics
import time
from collections import Counter
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.plugins.attention.account import AttentionLayer
from skipstep.plugins.attention.methods.base import WayToAttend

__all__ = ["Moment", "Tally", "moment"]

DENSE_STEPS = "first steps"
DENSE_LAYERS = "first layers"
FEW_TOKENS = "too few tokens for sparse attention to be faster"
CALIBRATED = "calibration asks for full precision there"
REFRESH = "the mask is looked up anew"
BREAK_EVEN = "denser than what sparse attention is faster at"


Moment = float | torch.cuda.Event
"""A point in time: seconds of this process, or an event in a GPU's queue."""


def moment(device: torch.device) -> Moment | None:
    """Return this point in a device's time without waiting for it; None in a recorded graph."""
    if device.type != "cuda":
        return time.perf_counter()
    if torch.cuda.is_current_stream_capturing():
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
    event.record()
    return event


def seconds_between(start: Moment, end: Moment) -> float:
    """Return the seconds from one moment to another; waits for a GPU to get there."""
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    raise ValueError(f"the moments {start} and {end} are of two clocks")


Span = tuple[Moment, Moment]


def median_seconds(spans: list[Span]) -> float | None:
    """Return the median of some times, or None of none."""
    return statistics.median(seconds_between(*span) for span in spans) if spans else None


@dataclass
class _Layer:
    """Sums over the calls of one layer."""

    tokens: int = 0
    calls: int = 0
    quantized: int = 0
    pairs: float = 0.0
    done: list[tuple[float, Float[Tensor, ""]]] = field(default_factory=list)
    mass: list[Float[Tensor, ""]] = field(default_factory=list)
    why_dense: Counter[str] = field(default_factory=Counter)
    dense_spans: list[Span] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


class Tally:
    """Count the attention calls of one denoiser in one run."""

    def __init__(self, name: str, denoiser: str) -> None:
        self.name, self.denoiser = name, denoiser
        self.layers: dict[int, _Layer] = {}

    def dense(self, layer: int, tokens: int, pairs: float, why: str) -> None:
        """Note a call that stayed dense; `pairs` is its number of query-key pairs."""
        found = self._note(layer, tokens, pairs)
        found.why_dense[why] += 1

    def sparse(
        self,
        layer: int,
        tokens: int,
        pairs: float,
        density: Float[Tensor, ""],
        mass: Float[Tensor, ""] | None,
    ) -> None:
        """Note a sparse call."""
        found = self._note(layer, tokens, pairs)
        found.done.append((pairs, density))
        if mass is not None:
            found.mass.append(mass)

    def quantized(self, layer: int, tokens: int, pairs: float) -> None:
        """Note a call in small integers over all pairs."""
        self._note(layer, tokens, pairs).quantized += 1

    def took(self, layer: int, start: Moment | None, end: Moment | None, is_dense: bool) -> None:
        """Note when a call of a layer began and ended."""
        found = self.layers.get(layer)
        if found is not None and start is not None and end is not None:
            (found.dense_spans if is_dense else found.spans).append((start, end))

    def _note(self, layer: int, tokens: int, pairs: float) -> _Layer:
        found = self.layers.setdefault(layer, _Layer())
        found.tokens = max(found.tokens, tokens)
        found.calls += 1
        found.pairs += pairs
        return found

    def lines(self) -> list[AttentionLayer]:
        """Return one line per layer, in the order of the model."""
        found = []
        for number, layer in sorted(self.layers.items()):
            sparse = [(pairs, float(density)) for pairs, density in layer.done]
            masses = [float(mass) for mass in layer.mass]
            left_out = sum(pairs * (1 - density) for pairs, density in sparse)
            found.append(
                AttentionLayer(
                    denoiser=self.denoiser,
                    layer=number,
                    tokens=layer.tokens,
                    calls=layer.calls,
                    sparse=len(sparse),
                    quantized=layer.quantized,
                    density=sum(d for _, d in sparse) / len(sparse) if sparse else 1.0,
                    mass=sum(masses) / len(masses) if masses else None,
                    pairs=layer.pairs,
                    saved=left_out / layer.pairs if layer.pairs else 0.0,
                    why_dense=dict(layer.why_dense),
                    dense_seconds=median_seconds(layer.dense_spans),
                    seconds=median_seconds(layer.spans),
                )
            )
        return found

    def warnings(self, method: WayToAttend, layers: int, steps: int) -> list[str]:
        """Say in words what kept the plugin from being sparse, and which knob to turn."""
        whys: Counter[str] = Counter()
        for layer in self.layers.values():
            whys.update(layer.why_dense)
        is_never = not any(x.done or x.quantized for x in self.layers.values())
        head = f"{self.name} on {self.denoiser}"
        if not self.layers:
            return [f"{head} saw no self-attention call."]
        found = []
        for why, count in whys.items():
            if why == FEW_TOKENS:
                tokens = max(layer.tokens for layer in self.layers.values())
                found.append(
                    f"{head}: {count} calls of at most {tokens} tokens stayed dense, which is "
                    "faster for so few; force=True attends to them all the same."
                )
            elif why == BREAK_EVEN:
                found.append(
                    f"{head}: {count} calls stayed dense, because their masks kept so much that "
                    "dense attention is faster; lower keep or mass, or set force=True."
                )
            elif why == DENSE_STEPS and is_never:
                found.append(
                    f"{head} never did anything: the first {method.dense_steps} of {steps} steps "
                    "stay dense; lower dense_steps."
                )
            elif why == DENSE_LAYERS and is_never:
                found.append(
                    f"{head} never did anything: the first {method.dense_layers} of {layers} "
                    "layers stay dense; lower dense_layers."
                )
            elif why not in (DENSE_STEPS, DENSE_LAYERS, REFRESH, CALIBRATED):
                found.append(f"{head}: {count} calls stayed dense: {why}.")
        return found
