"""A call of an attention module, taken apart: which arguments hold picture tokens, and where.

Nothing is known by name but the text's parameter. A module's first argument is its tokens: the
picture's alone, or the picture's behind or before the text's. Any other tensor with an axis as long
as the picture (or as picture and text together) goes along with them: rotary positions, masks.

That this reading is right is tried out: the picture's tokens are permuted, everything that goes
along with them too, and the answer must be the same answer, permuted (`permutes`). A module that
looks at neighbours, has positions of its own, or is read wrongly fails and is left alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skipstep.caching.tree import map_tensors, tensors_in

__all__ = ["AttentionCall", "Layout", "permutes", "read"]

TEXT = "encoder_hidden_states"
SAME = 2e-2
"""Largest mean relative difference of an answer that is the same up to rounding."""


@dataclass(frozen=True)
class Layout:
    """Say where the picture's tokens are.

    Args:
        count: picture tokens, N.
        text: text tokens that are attended to together with them, T.
        own_text: whether those are in the module's first argument.
        text_first: whether they come first where both are in one tensor.
    """

    count: int
    text: int
    own_text: bool
    text_first: bool

    @property
    def total(self) -> int:
        """Tokens of picture and text together."""
        return self.count + self.text

    def together(self, places: Int[Tensor, " m"]) -> Int[Tensor, " s"]:
        """Return chosen picture places in the order of all tokens, with all of the text."""
        text = torch.arange(self.text, device=places.device)
        parts = [text, places + self.text] if self.text_first else [places, text + self.count]
        return torch.cat(parts)


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention module with its arguments by name, as they were given."""

    module: nn.Module
    call_next: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]
    layout: Layout

    @property
    def tokens(self) -> Float[Tensor, "b s c"]:
        """The module's first argument."""
        found: Tensor = self.args[0] if self.args else self.kwargs[self.names[0]]
        return found

    @property
    def picture(self) -> Float[Tensor, "b n c"]:
        """The picture's tokens."""
        return self.tokens[:, self._span] if self.layout.own_text else self.tokens

    @property
    def _span(self) -> slice:
        start = self.layout.text if self.layout.text_first else 0
        return slice(start, start + self.layout.count)

    @property
    def is_telling(self) -> bool:
        """Say whether this reading, once proved, tells where text stands among all tokens.

        That takes positions of text and picture in one tensor, and text that came on its own.
        """
        others = [value for name, value in self._named() if name not in (self.names[0], TEXT)]
        total = self.layout.total
        return (
            bool(self.layout.text)
            and not self.layout.own_text
            and any(total in tensor.shape for tensor in tensors_in(others))
        )

    @property
    def has_positions(self) -> bool:
        """Say whether anything but the tokens goes along with them."""
        others = [value for name, value in self._named() if name not in (self.names[0], TEXT)]
        return any(self._axes("", tensor) for tensor in tensors_in(others))

    def row(self, i: int) -> "AttentionCall":
        """Return the call for one sample of the batch."""
        batch = len(self.tokens)

        def one(tensor: Tensor) -> Tensor:
            return tensor[i : i + 1] if tensor.ndim > 1 and len(tensor) == batch else tensor

        args, kwargs = map_tensors((self.args, self.kwargs), one)
        return replace(self, args=args, kwargs=kwargs)

    def with_picture(
        self, picture: Float[Tensor, "b m c"], places: Int[Tensor, " m"] | None
    ) -> Any:
        """Call the module on other picture tokens; what goes along is taken from their places."""
        tokens = picture
        if self.layout.own_text:
            parts = self.tokens[:, : self._span.start], self.tokens[:, self._span.stop :]
            tokens = torch.cat([parts[0], picture, parts[1]], dim=1)
        named = [
            tokens if name == self.names[0] else self._along(name, value, places)
            for name, value in self._named()
        ]
        count = len(self.args)
        kwargs = dict(zip(self.kwargs, named[count:], strict=True))
        return self.call_next(*named[:count], **kwargs)

    def answer(self, output: Any) -> Float[Tensor, "b m d"]:
        """Return the picture's part of what the module returned."""
        first: Tensor = output if isinstance(output, Tensor) else output[0]
        if not self.layout.own_text:
            return first
        text = self.layout.text
        return first[:, text:] if self.layout.text_first else first[:, : first.shape[1] - text]

    def with_answer(self, output: Any, picture: Float[Tensor, "b n d"]) -> Any:
        """Return what the module returned with another part for the picture."""
        first: Tensor = output if isinstance(output, Tensor) else output[0]
        if self.layout.own_text:
            text = self.layout.text
            if self.layout.text_first:
                picture = torch.cat([first[:, :text], picture], dim=1)
            else:
                picture = torch.cat([picture, first[:, first.shape[1] - text :]], dim=1)
        return picture if isinstance(output, Tensor) else (picture, *output[1:])

    def _named(self) -> list[tuple[str, Any]]:
        positional = list(zip(self.names, self.args, strict=False))
        return positional + list(self.kwargs.items())

    def _axes(self, name: str, tensor: Tensor) -> list[int]:
        """Return the axes along which a tensor holds tokens: all of a mask, else the first."""
        sizes = (self.layout.count, self.layout.total)
        axes = [axis for axis, size in enumerate(tensor.shape) if size in sizes]
        return axes if "mask" in name else axes[:1]

    def _along(self, name: str, value: Any, places: Int[Tensor, " m"] | None) -> Any:
        if name == TEXT or places is None:
            return value
        joint = self.layout.together(places)

        def pick(tensor: Tensor) -> Tensor:
            for axis in self._axes(name, tensor):
                chosen = places if tensor.shape[axis] == self.layout.count else joint
                tensor = tensor.index_select(axis, chosen)
            return tensor

        return map_tensors(value, pick)


def read(
    module: nn.Module,
    names: tuple[str, ...],
    call_next: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    counts: Sequence[int],
    text_first: bool | None,
) -> list[AttentionCall]:
    """Return the ways in which a call may be understood; none if it holds no picture alone.

    Args:
        names: of the forward's parameters.
        counts: how many tokens the picture may have.
        text_first: the order that was proved on another module of this model, or None.
    """
    named = dict(zip(names, args, strict=False)) | kwargs
    tokens, text = named.get(names[0]), named.get(TEXT)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        return []
    length = tokens.shape[1]
    if length in counts:
        beside = text.shape[1] if isinstance(text, Tensor) else 0
        if beside and text_first is None:
            layouts = [Layout(length, beside, False, first) for first in (True, False)]
        else:
            layouts = [Layout(length, beside, False, bool(text_first))]
    elif text is None and text_first is not None and len(counts) == 1 and length > counts[0]:
        layouts = [Layout(counts[0], length - counts[0], True, text_first)]
    else:
        return []
    return [AttentionCall(module, call_next, args, kwargs, names, layout) for layout in layouts]


def permutes(call: AttentionCall, output: Any) -> bool:
    """Say whether permuting the picture's tokens permutes the module's `output`."""
    count = call.layout.count
    answer = call.answer(output)
    if answer.shape[1] != count:
        return False
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(answer.device)
    again = call.answer(call.with_picture(call.picture[:, order], order))
    if again.shape != answer.shape:
        return False
    expected = answer[:, order].float()
    return bool((again.float() - expected).abs().mean() <= SAME * expected.abs().mean())
