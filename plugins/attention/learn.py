"""Ask a block where in its attention the text lies: change the text, and see which keys move.

Models join text and picture in one sequence, some with the text in front, some behind, and none
says so. One block is run twice outside the picture's computation, with the text it was given and
with another; keys that differ are the text's. This costs two block calls, once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from skipstep.plugins.attention.reach import listening
from skipstep.plugins.profile import parameters_of
from skipstep.plugins.run import running

__all__ = ["text_comes_first"]

TEXT = "encoder_hidden_states"


def text_comes_first(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool | None:
    """Say whether the text's keys lie in front of the picture's in a block's self-attention; None
    where the block is given no text, or where its text is elsewhere.
    """
    named = dict(zip(parameters_of(block), args, strict=False)) | kwargs
    text = named.get(TEXT)
    if not isinstance(text, Tensor):
        return None
    # Rows of zeros, which some models pad with, have to change too, and not by a constant.
    other = torch.arange(text.shape[-1], device=text.device).cos().to(text.dtype) - text
    keys = [_first_keys(block, {**named, TEXT: value}) for value in (text, other)]
    if keys[0] is None or keys[1] is None or keys[0].shape != keys[1].shape:
        return None
    moved = (keys[0] != keys[1]).any(-1).any(1).any(0)
    at_start, at_end = bool(moved[0]), bool(moved[-1])
    return None if at_start == at_end else at_start


class _Watch:
    """Keep the keys of the first self-attention that is called."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float | None,
        is_plain: bool,
        dense: Callable[[], Tensor],
    ) -> Tensor:
        """Look, and let the processor attend as it would."""
        if self.keys is None and q.shape[2] == k.shape[2]:
            self.keys = k
        return dense()


def _first_keys(block: nn.Module, named: dict[str, Any]) -> Tensor | None:
    """Run a block past its seams, and past what is compiled, and return the keys it attends to."""
    watch = _Watch()
    with torch.no_grad(), running(None), listening(watch):
        call: Callable[..., Any] = block._call_impl
        call(**named)
    return watch.keys
