"""FLOPs of a denoiser call, counted by torch's own counter once per input shape.

Counting slows a call down, so it is done on the first full pass and looked up afterwards; what a
skipped pass costs is that count less what the skipped modules had in it. Compiled code hides its
operations from the counter: there nothing is counted and the report says None.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from skipstep.plugins.report import Call

__all__ = ["Meter"]


def _sdpa_cpu(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    count: Callable[..., int] = sdpa_flop_count
    return count(query, key, value)


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_cpu}
"""torch counts attention on GPUs but not its CPU kernel."""


class Meter:
    """Know the FLOPs per sample of a full pass and of a skipped one.

    Args:
        root: the denoiser. skipped: the modules inside it that a skipped pass does not run; the
        root itself if none. is_on: False where the counter cannot see (compiled code).
    """

    def __init__(self, root: nn.Module, skipped: Sequence[nn.Module], *, is_on: bool) -> None:
        names = {id(module): path for path, module in root.named_modules()}
        self.skipped = [f"{type(root).__name__}.{names[id(m)]}".rstrip(".") for m in skipped]
        self.is_on = is_on
        self.per_row: dict[tuple[int, ...], tuple[float, float]] = {}
        self._shape: tuple[int, ...] = ()

    @contextlib.contextmanager
    def watch(self, shape: tuple[int, ...], rows: int) -> Iterator[None]:
        """Count a pass over `rows` samples of `shape` unless that shape is known already."""
        self._shape = shape
        if not self.is_on or shape in self.per_row:
            yield
            return
        counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        with counter:
            yield
        counts = counter.get_flop_counts()
        full = float(counter.get_total_flops())
        saved = sum(float(sum(counts[name].values())) for name in self.skipped if name in counts)
        self.per_row[shape] = full / rows, (full - saved) / rows

    def totals(self, calls: Sequence[Call]) -> tuple[float, float] | None:
        """Return (FLOPs done, FLOPs of the same calls uncached), or None if not counted."""
        if self._shape not in self.per_row:
            return None
        full, skip = self.per_row[self._shape]
        done = sum(
            full * call.computed + skip * (len(call.choices) - call.computed) for call in calls
        )
        return done, full * sum(len(call.choices) for call in calls)
