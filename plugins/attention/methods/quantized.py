"""SageAttention: products of small integers in place of queries times keys.

"SageAttention: Accurate 8-Bit Attention for Plug-and-play Inference Acceleration", Zhang et al.
2024 (arXiv:2410.02367), and "SageAttention2: Efficient Attention with Thorough Outlier Smoothing
and Per-thread INT4 Quantization" (arXiv:2411.10958). Tensor cores multiply 8-bit integers twice as
fast as 16-bit numbers. Nothing is left out; the error is that of rounding. The formulas are with
the kernel (`kernels/quant_attention.py`).

    SageAttention 1    bits=8
    SageAttention 2    bits=8 or 4, pv="fp8", groups="thread", smooth_q=True
    adaptive           table: for every layer and part of the run, the fewest bits at which the
                       cosine with exact attention stays above a bound

Where it fails: fp8 values alone cost 2 % (opt in). Where it is slower and therefore stays away
unless forced: on a CPU, where this is an emulation for studying quality, and on Hopper GPUs with
values of 16 bits, where dense attention in 16 bits is faster.

Differs from the authors' code: values stay in the model's type unless asked, and all sums are in
fp32 (theirs overflow on some models); the adaptive choice is per part of the run as well.
"""

from functools import cached_property
from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.quant_attention import quantized_attention
from skipstep.plugins.attention.methods.base import WayToAttend

__all__ = ["Precision", "Quantized", "QuantizedCalibration", "part_of"]

Precision = Literal["int4", "int8", "native"]
BY_COST: tuple[Precision, ...] = ("int4", "int8")
HOPPER = (9, 0)


def part_of(step: int, count: int, parts: int) -> int:
    """Return in which of equal parts of a run a step lies; without a known end, the last.

    >>> [part_of(step, 10, 4) for step in range(10)]
    [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    """
    return min(step * parts // count, parts - 1) if count else parts - 1


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Quantized(WayToAttend):
    """Attend to everything, with quantised queries and keys."""

    name: ClassVar[str] = "quantized"
    summary: ClassVar[str] = "Attention in small integers (SageAttention); nothing is left out."
    paper: ClassVar[str] = (
        "SageAttention2: Efficient Attention with Thorough Outlier Smoothing and Per-thread INT4 "
        "Quantization (arXiv:2411.10958)"
    )

    bits: Annotated[Literal[4, 8], Field(description="Of the integers of queries and keys.")] = 8
    pv: Annotated[
        Literal["native", "fp8"], Field(description="Type in which values are multiplied.")
    ] = "native"
    groups: Annotated[
        Literal["block", "thread", "token"], Field(description="Rows that share a scale.")
    ] = "block"
    smooth_k: Annotated[bool, Field(description="Take the mean key off first; exact.")] = True
    smooth_q: Annotated[
        bool, Field(description="Take the mean query of each block off too; exact.")
    ] = False
    table: Annotated[
        tuple[tuple[Precision, ...], ...] | None,
        Field(
            description="Precision per layer and, within it, per equal part of the run, as "
            "calibrate_quantized finds it; None: `bits` everywhere."
        ),
    ] = None
    dense_steps: Annotated[int, Field(ge=0, description="First steps that stay exact.")] = 0
    dense_layers: Annotated[int, Field(ge=0, description="First layers that stay exact.")] = 0

    def __post_init__(self) -> None:
        """Refuse a table without parts."""
        if self.table is not None and not all(self.table):
            raise ValueError("table: every layer needs at least one part, as ('int8',)")

    def resolve(self) -> "Quantized":
        """Return itself."""
        return self

    def precision_at(self, layer: int, step: int, count: int) -> Precision:
        """Return how precise a layer has to be at a step of a run of `count`; a layer that the
        table does not know is exact.
        """
        if self.table is None:
            return "int4" if self.bits == 4 else "int8"
        if layer >= len(self.table):
            return "native"
        parts = self.table[layer]
        return parts[part_of(step, count, len(parts))]

    def why_slower(self, q: Tensor) -> str | None:
        """Return why exact attention is faster here, or None."""
        if q.device.type != "cuda":
            return "exact attention is faster on this device; force=True emulates the rounding"
        if torch.cuda.get_device_capability(q.device) == HOPPER and self.pv == "native":
            return "exact attention is faster on this GPU; pv='fp8' is not, or set force=True"
        return None

    def attend(
        self,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b g n d"],
        v: Float[Tensor, "b g n d"],
        precision: Precision,
        *,
        scale: float | None = None,
        kv_lens: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b h n d"]:
        """Return attention in this precision, which is not "native"."""
        return quantized_attention(
            q,
            k,
            v,
            bits=4 if precision == "int4" else 8,
            pv=self.pv,
            groups=self.groups,
            smooth_k=self.smooth_k,
            smooth_q=self.smooth_q,
            scale=scale,
            kv_lens=kv_lens,
        )


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class QuantizedCalibration(WayToAttend):
    """Attend exactly, and note how near every precision comes."""

    name: ClassVar[str] = "quantizedcalibration"
    summary: ClassVar[str] = "Attends exactly and records how near small integers come."

    settings: Annotated[Quantized, Field(description="How to quantise; its bits and table aside.")]
    parts: Annotated[int, Field(ge=1, le=100, description="Equal parts of a run.")] = 4

    @cached_property
    def lowest(self) -> dict[tuple[int, int, Precision], float]:
        """Hold the lowest cosine seen, by layer, part and precision, over all runs."""
        return {}

    def resolve(self) -> "QuantizedCalibration":
        """Return itself."""
        return self

    def look(
        self,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b g n d"],
        v: Float[Tensor, "b g n d"],
        scale: float | None,
        layer: int,
        part: int,
    ) -> None:
        """Compare each precision with exact attention, sample by sample."""
        exact = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        for precision in BY_COST:
            found = self.settings.attend(q, k, v, precision, scale=scale)
            cosine = torch.cosine_similarity(found.flatten(1).float(), exact.flatten(1).float())
            key = layer, part, precision
            self.lowest[key] = min(self.lowest.get(key, 1.0), float(cosine.min()))

    def table(self, min_cosine: float) -> tuple[tuple[Precision, ...], ...]:
        """Return the cheapest precision of every layer and part that stays above the bound."""

        def cheapest(layer: int, part: int) -> Precision:
            near: list[Precision] = [
                precision
                for precision in BY_COST
                if self.lowest.get((layer, part, precision), 0.0) >= min_cosine
            ]
            return near[0] if near else "native"

        layers = 1 + max((layer for layer, _, _ in self.lowest), default=-1)
        return tuple(
            tuple(cheapest(layer, part) for part in range(self.parts)) for layer in range(layers)
        )
