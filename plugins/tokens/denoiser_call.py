"""One call of a denoiser under a token reduction: which modules attend on how many tokens."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipstep.caching.tree import tensors_in
from skipstep.plugins.tokens.base import ImportancePlugin, Place
from skipstep.plugins.tokens.importance import attention_received
from skipstep.plugins.tokens.reach import AttentionCall, permutes, read
from skipstep.plugins.tokens.tally import Tally
from skipstep.plugins.tokens.token_map import TokenMap, reduce_tokens, restore_tokens, stack

if TYPE_CHECKING:
    from skipstep.plugins.tokens.attach import DenoiserTokens

__all__ = ["ReducedCall", "picture_grids"]

Grid = tuple[int, int, int]


class ReducedCall:
    """One call: the lengths that a picture's sequence may have, and what each sample remembers."""

    def __init__(
        self, owner: "DenoiserTokens", tally: Tally, main: Tensor | None, step: int
    ) -> None:
        self.owner, self.plugin, self.tally = owner, owner.plugin, tally
        config = dict(getattr(owner.denoiser.inner, "config", None) or {})
        self.is_unet = owner.denoiser.kind == "unet"
        self.grids = {} if main is None else picture_grids(main.shape, config, self.is_unet)
        self.rows = 0 if main is None else len(main)
        self.is_dense = self.plugin.keeps_all or step < self.plugin.dense_steps
        self.memories: list[dict[Hashable, Any]] = [{} for _ in range(self.rows)]
        self.importance: dict[int, tuple[int, Tensor]] = {}
        self.visits = 0
        self.spared = 0.0
        self.is_trying = False

    def serve(
        self, call_next: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the denoiser; its FLOPs are counted once per shape, when nothing is tried out."""
        if self.is_dense:
            return call_next(*args, **kwargs)
        shapes, owner = _shapes(args, kwargs), self.owner
        self.tally.calls += 1
        if shapes not in owner.seen:
            owner.seen.add(shapes)
            return call_next(*args, **kwargs)
        with owner.whole.watch(shapes):
            output = call_next(*args, **kwargs)
        if self.is_trying or self.visits != len(owner.modules):
            owner.whole.known.pop(shapes, None)
            return output
        full = owner.full.setdefault(shapes, owner.whole.known[shapes][0] + self.spared)
        self.tally.flops_full += full
        self.tally.flops_done += full - self.spared
        self.tally.counted += 1
        return output

    def attend(
        self,
        path: str,
        module: nn.Module,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Answer one attention call, on fewer tokens where that can be done."""
        self.visits += 1
        if self.is_dense:
            return call_next(*args, **kwargs)
        call = self._proven(path, module, call_next, args, kwargs)
        if call is None:
            self.tally.unlike.add(path)
            return call_next(*args, **kwargs)
        self.tally.longest = max(self.tally.longest, call.layout.count)
        if call.layout.count < self.plugin.min_tokens:
            return call_next(*args, **kwargs)
        return self._reduced(path, call)

    def _proven(
        self,
        path: str,
        module: nn.Module,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> AttentionCall | None:
        """Return the reading of this call that was proved right; each is tried out once."""
        owner = self.owner
        shapes = _shapes(args, kwargs)
        calls = read(
            module, owner.names[path], call_next, args, kwargs, tuple(self.grids), owner.text_first
        )
        for call in calls:
            if len(call.tokens) != self.rows:
                continue
            key = path, shapes, call.layout
            if key not in owner.is_proven:
                self.is_trying = True
                with owner.meter.watch((path, shapes)):
                    output = call_next(*args, **kwargs)
                owner.is_proven[key] = permutes(call, output)
            if owner.is_proven[key]:
                if call.is_telling:
                    owner.text_first = call.layout.text_first
                return call
        return None

    def _reduced(self, path: str, call: AttentionCall) -> Any:
        """Attend on the slots, and give every token its slot's answer."""
        rows, count = call.picture.shape[:2]
        importance = self._importance(path, call)
        choosing = repr(self.plugin), rows, call.picture.shape[1:]
        with self.owner.meter.watch(choosing):
            maps = [
                self.plugin.choose(
                    call.picture[i],
                    None if importance is None else importance[i],
                    Place(self.owner.depths[path], self.grids[count], self.memories[i]),
                )
                for i in range(rows)
            ]
        self.spared -= self.owner.meter.known[choosing][0]
        self.tally.tokens += rows * count
        self.tally.kept += sum(count if one is None else one.count for one in maps)
        if all(one is None for one in maps):
            return call.call_next(*call.args, **call.kwargs)
        self.tally.reduced.add(path)
        full = self.owner.meter.known[path, _shapes(call.args, call.kwargs)][0]
        self.spared += full
        alike = [one for one in maps if one is not None]
        is_alike = len(alike) == rows and len({one.count for one in alike}) == 1
        if is_alike and (rows == 1 or not call.has_positions):
            return self._attend(path, call, stack(alike))
        outputs = []
        for i, one in enumerate(maps):
            row = call.row(i)
            if one is None:
                self.spared -= full / rows
                outputs.append(row.call_next(*row.args, **row.kwargs))
            else:
                outputs.append(self._attend(path, row, stack([one])))
        return _joined(outputs)

    def _importance(self, path: str, call: AttentionCall) -> Float[Tensor, "b n"] | None:
        """Measure importance, or hand out what was measured a few layers before."""
        if not isinstance(self.plugin, ImportancePlugin):
            return None
        count = call.layout.count
        age, known = self.importance.get(count, (self.plugin.renew, None))
        if known is None or age >= self.plugin.renew:
            key = path, self.plugin.queries, _shapes((call.picture,), {}), "importance"
            with self.owner.meter.watch(key):
                known = attention_received(call.module, call.picture, self.plugin.queries)
            self.spared -= self.owner.meter.known[key][0]
            age = 0
        self.importance[count] = age + 1, known
        return known

    def _attend(self, path: str, call: AttentionCall, map_: TokenMap) -> Any:
        places = map_.places[0] if call.has_positions else None
        fewer = reduce_tokens(call.picture, map_)
        key = path, map_.count, _shapes(call.args, call.kwargs)
        with self.owner.meter.watch(key):
            output = call.with_picture(fewer, places)
        self.spared -= self.owner.meter.known[key][0]
        return call.with_answer(output, restore_tokens(call.answer(output), map_))


def picture_grids(
    shape: Sequence[int], config: dict[str, Any], is_unet: bool
) -> dict[int, Grid | None]:
    """Return the lengths that a sequence of the picture's tokens may have, and their grids.

    Args:
        shape: of the noisy picture: [b, n, c] tokens, or [b, c, (f,) h, w] latents.

    >>> picture_grids((2, 4, 32, 32), {"patch_size": 2, "in_channels": 4}, False)
    {256: (1, 16, 16)}
    >>> picture_grids((2, 4, 8, 8), {}, True)
    {64: (1, 8, 8), 16: (1, 4, 4), 4: (1, 2, 2)}
    """
    if len(shape) == 3:
        return {shape[1]: None}
    *_, height, width = shape
    if is_unet:
        levels = range(max(1, min(height, width).bit_length() - 1))
        sizes = [(-(-height >> level), -(-width >> level)) for level in levels]
        return {h * w: (1, h, w) for h, w in ((abs(h), abs(w)) for h, w in sizes)}
    patch = config.get("patch_size") or 1
    time = config.get("patch_size_t") or 1
    t, p, q = patch if isinstance(patch, list | tuple) else (time, patch, patch)
    cells = math.prod(shape[1:]) // int(config.get("in_channels") or shape[1])
    frames = cells // (height * width)
    grid = frames // t, height // p, width // q
    return {math.prod(grid): grid}


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in tensors_in([args, kwargs]))


def _joined(outputs: Sequence[Any]) -> Any:
    """Return the answers of single samples as those of a batch."""
    if isinstance(outputs[0], Tensor):
        return torch.cat(list(outputs))
    return tuple(
        torch.cat(list(parts)) if isinstance(parts[0], Tensor) else parts[0]
        for parts in zip(*outputs, strict=True)
    )
