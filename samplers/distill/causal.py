"""Causal generation with a rolling memory of keys and values (the student of Self Forcing, Huang et
al. 2025, arXiv:2506.08009).

A sequence is made chunk by chunk. A chunk's queries see the keys and values of the last `window`
chunks and its own; those of finished chunks are written down once, by a pass over the clean chunk
at t = 0, and never computed again. That is attention with a block-causal mask, and both memory and
work of a chunk stay the same however long the sequence grows. Without a memory the same module sees
its whole input at once, as its teacher does.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from jaxtyping import Float
from torch import Tensor, nn

from skipstep.samplers.distill.flow import Condition
from skipstep.samplers.distill.matching import denoised
from skipstep.samplers.distill.networks import Flow
from skipstep.samplers.distill.walk import renoise

__all__ = ["Memory", "Remembers", "make_causal", "remembering", "roll_behind", "roll_out"]


@dataclass
class Memory:
    """Hold what each layer keeps of finished chunks; `frames` went before the chunk at work."""

    window: int
    frames: int = 0
    writing: bool = False
    kept: dict[int, deque[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def extended(
        self, layer: object, k: Float[Tensor, "b s *d"], v: Float[Tensor, "b s *d"]
    ) -> tuple[Float[Tensor, "b more *d"], Float[Tensor, "b more *d"]]:
        """Return the layer's kept keys and values with the chunk's own behind them."""
        past = self.kept.setdefault(id(layer), deque(maxlen=self.window))
        keys = torch.cat([*(each for each, _ in past), k], 1)
        values = torch.cat([*(each for _, each in past), v], 1)
        if self.writing:
            past.append((k.detach(), v.detach()))
        return keys, values


class Remembers(nn.Module):
    """A module that consults the memory of the sequence being made, if there is one."""

    memory: Memory | None = None


@contextmanager
def remembering(module: nn.Module, memory: Memory) -> Iterator[None]:
    """Let the parts of a module that remember use this memory."""
    parts = [each for each in module.modules() if isinstance(each, Remembers)]
    for each in parts:
        each.memory = memory
    try:
        yield
    finally:
        for each in parts:
            each.memory = None


def roll_out(
    flow: Flow,
    noise: Float[Tensor, " b *size"],
    nodes: Sequence[float],
    condition: Condition,
    *,
    chunk: int,
    window: int,
    leave_at: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " b *size"]:
    """Make a sequence of `chunk` frames at a time, each in few steps with fresh noise between them.

    A chunk ends with evaluation `leave_at` (the last without one), and that alone has a gradient.
    """
    axis = frame_axis(noise)
    memory = Memory(window)
    made: list[Tensor] = []
    last = len(nodes) - 2 if leave_at is None else leave_at
    with_gradient = torch.is_grad_enabled()
    with remembering(flow.module, memory):
        for x in chunks_of(noise, chunk):
            for i in range(last + 1):
                t = torch.full((len(x),), nodes[i]).to(x)
                with torch.set_grad_enabled(with_gradient and i == last):
                    x_0 = denoised(flow, x, t, condition)
                if i < last:
                    z = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
                    x = renoise(x_0, torch.zeros_like(t), torch.full_like(t, nodes[i + 1]), z)
            made.append(x_0)
            _remember(flow, memory, x_0, condition)
    return torch.cat(made, axis)


def roll_behind(
    flow: Flow,
    past: Float[Tensor, " b *size"],
    x_t: Float[Tensor, " b *size"],
    t: Float[Tensor, " b"],
    condition: Condition,
    *,
    chunk: int,
    window: int,
) -> Float[Tensor, " b *size"]:
    """Return v of every chunk of x_t, each behind the true chunks of `past` before it."""
    axis = frame_axis(past)
    memory = Memory(window)
    found: list[Tensor] = []
    with remembering(flow.module, memory):
        for clean, x in zip(chunks_of(past, chunk), chunks_of(x_t, chunk), strict=True):
            found.append(flow(x, t, condition))
            _remember(flow, memory, clean, condition)
    return torch.cat(found, axis)


def _remember(flow: Flow, memory: Memory, clean: Tensor, condition: Condition) -> None:
    """Write down a finished chunk."""
    memory.writing = True
    with torch.no_grad():
        flow(clean.detach(), torch.zeros(len(clean)).to(clean), condition)
    memory.writing = False
    memory.frames += clean.shape[frame_axis(clean)]


def chunks_of(x: Tensor, frames: int) -> list[Tensor]:
    """Return a sequence in chunks of so many frames; the last may be shorter."""
    axis = frame_axis(x)
    count = x.shape[axis]
    return [x.narrow(axis, i, min(frames, count - i)) for i in range(0, count, frames)]


def frame_axis(x: Tensor) -> int:
    """Return the axis of frames: 2 of a video [b, c, f, h, w], 1 of a sequence."""
    return 2 if x.ndim == 5 else 1


class CausalWanAttention(Remembers):
    """The processor of a Wan layer's self-attention, with memory."""

    def forward(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Return the layer's answer to the chunk's tokens."""
        q, k, v = (
            projected.unflatten(2, (attn.heads, -1))
            for projected in (
                attn.norm_q(attn.to_q(hidden_states)),
                attn.norm_k(attn.to_k(hidden_states)),
                attn.to_v(hidden_states),
            )
        )
        if rotary_emb is not None:
            q, k = (rotated(each, *rotary_emb) for each in (q, k))
        if self.memory is not None:
            k, v = self.memory.extended(self, k, v)
        found = dispatch_attention_fn(q, k, v).flatten(2, 3).type_as(q)
        answer: Tensor = attn.to_out[1](attn.to_out[0](found))
        return answer


def rotated(
    x: Float[Tensor, "b n h d"], cosines: Float[Tensor, "1 n 1 d"], sines: Float[Tensor, "1 n 1 d"]
) -> Float[Tensor, "b n h d"]:
    """Return x with each pair of numbers turned by its token's angle."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cosines[..., 0::2], sines[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).type_as(x)


class ShiftedRope(Remembers):
    """Wan's rotary positions, counted from the first frame of the whole clip."""

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope

    def forward(self, hidden_states: Float[Tensor, "b c f h w"]) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of the chunk's tokens."""
        before = 0 if self.memory is None else self.memory.frames
        frames = hidden_states.shape[2]
        whole = hidden_states[:, :, :1].expand(-1, -1, before + frames, -1, -1)
        cosines, sines = self.rope(whole)
        start = cosines.shape[1] * before // (before + frames)
        return cosines[:, start:], sines[:, start:]


def make_causal(module: nn.Module) -> Callable[[], None]:
    """Let a Wan transformer remember; return what undoes it. Modules that can already are left.

    Raises ValueError for other modules.
    """
    from diffusers import WanTransformer3DModel

    if any(isinstance(each, Remembers) for each in module.modules()):
        return lambda: None
    if not isinstance(module, WanTransformer3DModel):
        raise ValueError(
            f"self_forcing: {type(module).__name__} has no causal form here: it needs a "
            "WanTransformer3DModel, or an own module whose attention is a `Remembers` (causal.py)"
        )
    layers = [block.attn1 for block in module.blocks]
    own = [layer.processor for layer in layers]
    rope = module.rope
    for layer in layers:
        layer.set_processor(CausalWanAttention())
    module.rope = ShiftedRope(rope)

    def undo() -> None:
        module.rope = rope
        for layer, processor in zip(layers, own, strict=True):
            layer.set_processor(processor)

    return undo
