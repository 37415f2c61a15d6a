"""FLOPs of a denoiser call, counted by torch's own counter once per shape of its inputs.

Counting slows a call down, so it is done on the first full pass and looked up afterwards; what a
skipped pass costs is that count less what the modules it spared had in it. Compiled code hides its
operations from the counter: there nothing is counted and the report says None.
"""

import contextlib
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

__all__ = ["Counts", "Meter", "known_counts"]

Counts = dict[Hashable, tuple[float, dict[Hashable, float]]]
"""Shapes -> FLOPs of a full call, and of each unit in it that can be spared."""

_COUNTS: "weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Counts]]" = (
    weakref.WeakKeyDictionary()
)


def known_counts(denoiser: nn.Module, skipped: Hashable) -> Counts:
    """Return what was counted before on this denoiser where `skipped` was the part to skip, so that
    a reconfigured or second plugin does not count again.
    """
    return _COUNTS.setdefault(denoiser, {}).setdefault(skipped, {})


def _sdpa_cpu(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    count: Callable[..., int] = sdpa_flop_count
    return count(query, key, value)


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_cpu}
"""torch counts attention on GPUs but not its CPU kernel."""


class _OneModule:
    """Stand in for torch's module tracker, whose hooks are global to the process: a model running
    in another thread would be taken for a part of ours.
    """

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Meter:
    """Know the FLOPs of a full call and of the units in it that can be spared, per shape of the
    inputs.

    Args:
        is_on: False where the counter cannot see (compiled code).
        known: earlier counts, to which new ones are added.
    """

    def __init__(self, *, is_on: bool, known: Counts) -> None:
        self.is_on = is_on
        self.known = known
        self._counter: FlopCounterMode | None = None
        self._units: dict[Hashable, list[float]] = {}

    @contextlib.contextmanager
    def watch(self, shapes: Hashable) -> Iterator[None]:
        """Count a full call unless these shapes are known already."""
        if not self.is_on or shapes in self.known:
            yield
            return
        counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        counter.mod_tracker = _OneModule()  # type: ignore[assignment]
        self._counter, self._units = counter, {}
        try:
            with counter:
                yield
            units = {place: sum(calls) / len(calls) for place, calls in self._units.items()}
            self.known[shapes] = float(counter.get_total_flops()), units
        finally:
            self._counter = None

    @property
    def is_counting(self) -> bool:
        """Say whether the call that is running is being counted."""
        return self._counter is not None

    def unit(self, place: Hashable, call: Callable[..., Any], *args: Any) -> Any:
        """Make a call and note its FLOPs as those of the unit at `place`, on average if it is
        called several times.
        """
        if self._counter is None:
            return call(*args)
        before = self._counter.get_total_flops()
        result = call(*args)
        self._units.setdefault(place, []).append(self._counter.get_total_flops() - before)
        return result

    def cost(
        self, shapes: Hashable, spared: Mapping[Hashable, float]
    ) -> tuple[float, float] | None:
        """Return (FLOPs done, FLOPs uncached) of a call, given how often each place was spared as
        a share of the batch, or None if it was not counted.
        """
        if shapes not in self.known:
            return None
        full, units = self.known[shapes]
        return full - sum(units.get(place, 0.0) * n for place, n in spared.items()), full
