"""One call of one denoiser: its attention calls, each sparse or dense for a reason that is told."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skipstep.caching.tree import rows_of
from skipstep.plugins.attention import tally
from skipstep.plugins.attention.layout import Layout, find_grid, grid_for, main_input
from skipstep.plugins.attention.methods.base import Grid, SparseAttention
from skipstep.plugins.attention.methods.quantized import (
    Quantized,
    QuantizedCalibration,
    part_of,
)
from skipstep.plugins.attention.reach import listener_now
from skipstep.plugins.attention.sparse_call import attend_sparsely, break_even, fewest_tokens
from skipstep.plugins.run import Run

if TYPE_CHECKING:
    from skipstep.plugins.attention.attach import DenoiserAttention

__all__ = ["AttentionCall"]


class AttentionCall:
    """Answer the attention calls of one denoiser call."""

    def __init__(
        self,
        owner: "DenoiserAttention",
        run: Run,
        step: int,
        branch: int,
        named: Mapping[str, Any],
    ) -> None:
        self.owner, self.run, self.step, self.branch = owner, run, step, branch
        self.named = named
        self.tally = owner.tally(run)
        main = main_input(named)
        self.rows = 1 if main is None else rows_of(main)
        self.layer: int | None = None
        self.nth = 0
        self.is_part = False

    @staticmethod
    def now(owner: "DenoiserAttention") -> Optional["AttentionCall"]:
        """Return the call that runs in this thread, if it is one of `owner`'s."""
        found = listener_now()
        return found if isinstance(found, AttentionCall) and found.owner is owner else None

    @contextlib.contextmanager
    def in_layer(self, number: int, inputs: Sequence[Any]) -> Iterator[None]:
        """Be in one layer; attention outside of all layers, in a text refiner say, is not ours.

        A cache may send a part of the samples through. What was noted of all of them is then
        neither used nor changed, since it would be another sample's.
        """
        before = self.layer, self.nth, self.is_part
        tokens = next((x for x in inputs if isinstance(x, Tensor) and x.ndim > 2), None)
        self.is_part = tokens is not None and tokens.shape[0] % self.rows != 0
        self.layer, self.nth = number, 0
        try:
            yield
        finally:
            self.layer, self.nth, self.is_part = before

    def attend(
        self,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b g m d"],
        v: Float[Tensor, "b g m d"],
        mask: Tensor | None,
        scale: float | None,
        is_plain: bool,
        dense: Callable[[], Tensor],
    ) -> Float[Tensor, "b h n d"]:
        """Attend sparsely or densely and note how long it took; cross-attention is none of ours."""
        if self.layer is None or q.shape[2] != k.shape[2]:
            return dense()
        start = tally.moment(q.device)
        output = self._attend(q, k, v, mask, scale, is_plain)
        is_dense = output is None
        if output is None:
            start = tally.moment(q.device)
            output = dense()
        self.tally.took(self.layer, start, tally.moment(q.device), is_dense)
        return output

    def _attend(
        self,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b g m d"],
        v: Float[Tensor, "b g m d"],
        mask: Tensor | None,
        scale: float | None,
        is_plain: bool,
    ) -> Float[Tensor, "b h n d"] | None:
        """Attend sparsely, or return None and note why not."""
        layer = self.layer or 0
        tokens, pairs = q.shape[2], float(q.shape[0] * q.shape[1] * q.shape[2] ** 2)
        nth, self.nth = self.nth, self.nth + 1
        key = (self.owner, "memory", layer, nth, self.branch)
        memory: dict[str, Any] = {} if self.is_part else self.run.state.setdefault(key, {})
        method = self.owner.method
        why = self._why_dense(q, is_plain, memory)
        if isinstance(method, QuantizedCalibration):
            part = part_of(self.step, self.run.count, method.parts)
            if is_plain and mask is None:
                method.look(q, k, v, scale, layer, part)
            return None
        if why is None and isinstance(method, Quantized):
            return self._quantized(method, q, k, v, mask, scale, pairs)
        layout = self._layout(tokens) if why is None else None
        if isinstance(layout, str):
            why, layout = layout, None
        kv_lens: Tensor | None = None
        if layout is not None and mask is not None:
            kept = self._kept_keys(mask, layout)
            if kept is None:
                why = "they carry a mask that is more than padding of the text's end"
            elif kept.is_padded:
                kv_lens = kept.lens.expand(q.shape[0])
        if why is not None or layout is None:
            self.tally.dense(layer, tokens, pairs, why or "")
            return None
        outcome = attend_sparsely(
            cast(SparseAttention, method),
            q,
            k,
            v,
            layout,
            scale=scale,
            step=self.step,
            memory=memory,
            kv_lens=kv_lens,
        )
        if outcome.output is None:
            memory["stays dense"] = not outcome.is_for_now
            why = tally.REFRESH if outcome.is_for_now else tally.BREAK_EVEN
            self.tally.dense(layer, tokens, pairs, why)
            return None
        self.tally.sparse(layer, tokens, pairs, outcome.density, outcome.mass)
        return outcome.output

    def _quantized(
        self,
        method: Quantized,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b g n d"],
        v: Float[Tensor, "b g n d"],
        mask: Tensor | None,
        scale: float | None,
        pairs: float,
    ) -> Float[Tensor, "b h n d"] | None:
        """Attend with small integers, as precisely as this layer and part of the run need it."""
        layer, tokens = self.layer or 0, q.shape[2]
        # The first keys of each sample are all that a mask may let through.
        kept = None if mask is None else self._kept_keys(mask, Layout((1, 1, 1), tokens - 1))
        if mask is not None and kept is None:
            self.tally.dense(layer, tokens, pairs, "they carry a mask that is more than padding")
            return None
        precision = method.precision_at(layer, self.step, self.run.count)
        if precision == "native":
            self.tally.dense(layer, tokens, pairs, tally.CALIBRATED)
            return None
        kv_lens = None if kept is None else kept.lens.expand(q.shape[0])
        output = method.attend(q, k, v, precision, scale=scale, kv_lens=kv_lens)
        self.tally.quantized(layer, tokens, pairs)
        return output

    def _why_dense(self, q: Tensor, is_plain: bool, memory: dict[str, Any]) -> str | None:
        method = self.owner.method
        if not is_plain:
            return "they are causal or drop values out"
        if self.step < method.dense_steps:
            return tally.DENSE_STEPS
        if self.layer is not None and self.layer < method.dense_layers:
            return tally.DENSE_LAYERS
        if method.force:
            return None
        if q.shape[2] < fewest_tokens(q):
            return tally.FEW_TOKENS
        if isinstance(method, Quantized):
            return method.why_slower(q)
        keep, _ = cast(SparseAttention, method).budget()
        if memory.get("stays dense") or (keep is not None and keep >= break_even(q)):
            return tally.BREAK_EVEN
        return None

    def _layout(self, tokens: int) -> Layout | str:
        """Return how so many tokens lie, or what the user has to say about it."""
        key = (self.owner, "layout", tokens)
        if key not in self.run.state:
            self.run.state[key] = self._find_layout(tokens)
        found: Layout | str = self.run.state[key]
        return found

    def _find_layout(self, tokens: int) -> Layout | str:
        owner = self.owner
        method = cast(SparseAttention, owner.method)
        grid: Grid | None = method.grid or find_grid(self.named, owner.config)
        if grid is None:
            return (
                "the grid of the picture's tokens is not known; give grid=(frames, rows, columns)"
            )
        fitting = grid_for(tokens, grid, owner.has_levels)
        if fitting is not None:
            return Layout(fitting)
        whole = Layout(grid)
        if tokens < whole.picture:
            return (
                f"{tokens} tokens are fewer than the {grid[0]} x {grid[1]} x {grid[2]} of the "
                "picture; give grid=(frames, rows, columns)"
            )
        text_first = {"before": True, "after": False}.get(method.text or "")
        text_first = owner.text_first if text_first is None else text_first
        if text_first is None:
            return (
                f"{tokens - whole.picture} tokens are not the picture's, and where they stand is "
                'not known; give text="before" or text="after"'
            )
        return Layout(grid, tokens - whole.picture, text_first)

    def _kept_keys(self, mask: Tensor, layout: Layout) -> "KeptKeys | None":
        """Return how many tokens of each sample count, with the text put behind the picture, or
        None where the mask says something else. Looked at once per mask.
        """
        key = (self.owner, "mask", mask.data_ptr(), tuple(mask.shape), mask._version, layout)
        if key not in self.run.state:
            # The mask is held so that its memory cannot become another's.
            lens = padding_of(mask, layout)
            kept = None
            if lens is not None:
                kept = KeptKeys(lens, bool((lens < layout.tokens).any()))
            self.run.state[key] = mask, kept
        found: KeptKeys | None = self.run.state[key][1]
        return found


class KeptKeys(NamedTuple):
    """How many tokens of each sample a mask lets through, and whether that leaves any out."""

    lens: Int[Tensor, " b"]
    is_padded: bool


def padding_of(mask: Tensor, layout: Layout) -> Int[Tensor, " b"] | None:
    """Return the number of leading tokens, text last, that a key mask lets through, or None where
    it is no such mask.

    >>> mask = torch.tensor([[True, False, True, True]])[:, None, None]
    >>> padding_of(mask, Layout((1, 1, 2), text=2, text_first=True))
    tensor([3])
    """
    kept = mask if mask.dtype == torch.bool else _without_bias(mask)
    if kept is None or kept.shape[-1] != layout.tokens:
        return None
    rows = kept.reshape(-1, *kept.shape[-3:]) if kept.ndim >= 3 else kept[None, None]
    if rows.shape[1:3] != (1, 1) and not bool((rows == rows[:, :1, :1]).all()):
        return None
    keys: Bool[Tensor, "b n"] = rows[:, 0, 0]
    if layout.text_first:
        keys = keys.roll(-layout.text, dims=-1)
    count = keys.sum(-1)
    is_end = keys == (torch.arange(keys.shape[-1], device=keys.device) < count[:, None])
    has_picture = count >= layout.picture
    return count if bool(is_end.all()) and bool(has_picture.all()) else None


def _without_bias(mask: Tensor) -> Bool[Tensor, "..."] | None:
    """Return which keys an additive mask lets through, or None where it does more than that."""
    kept = mask == 0
    is_shut = mask <= -1e4
    return kept if bool((kept | is_shut).all()) else None
