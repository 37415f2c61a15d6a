"""The adapter of SpeedUpNet (Chai et al. 2024, arXiv:2312.08887): a negative prompt inside
cross-attention, so that guidance costs one pass.

  A = A+ - [a_n |A+|/|A-| A- + b_n] + [a_p |A+|/|A++| A++ + b_p]
A+ is the layer's attention to the prompt; A- and A++ are attentions of the same queries to the
negative and the positive prompt through keys and values of the adapter's own. a, b are one number a
channel. The two prompts come as one row of tokens, half each, as `flow.joined` lays them.
Differs from the authors' code: a = b = 0 at the start (theirs is a = 1), so that the adapter begins
as the conditional pass; norms are a sample's own (theirs are the whole batch's), so that a picture
does not depend on its neighbours; K and V begin as copies of the layer's own.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["SpeedUpAttention", "cross_attentions", "with_speedup"]


class Branch(nn.Module):
    """Attend to one prompt by own keys and values, as large as the layer's own answer."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.to_k, self.to_v = (
            nn.Linear(own.in_features, own.out_features, bias=False)
            for own in (attn.to_k, attn.to_v)
        )
        with torch.no_grad():
            self.to_k.weight.copy_(attn.to_k.weight)
            self.to_v.weight.copy_(attn.to_v.weight)
        self.to(attn.to_k.weight)
        self.scale = nn.Parameter(torch.zeros_like(attn.to_v.weight[:, 0]))
        self.shift = nn.Parameter(torch.zeros_like(self.scale))

    def forward(
        self,
        attn: Attention,
        query: Float[Tensor, "b h n d"],
        tokens: Float[Tensor, "b s c"],
        mask: Float[Tensor, "b h one s"] | None,
        plain: Float[Tensor, "b n inner"],
    ) -> Float[Tensor, "b n inner"]:
        """Return a |A+|/|A| A + b."""
        found = attended(attn, query, self.to_k(tokens), self.to_v(tokens), mask)
        size, wanted = (each.norm(dim=(1, 2), keepdim=True) for each in (found, plain))
        sized: Tensor = self.scale * (wanted / size.clamp(min=1e-6)) * found
        return sized + self.shift


class SpeedUpAttention(nn.Module):
    """The processor of one cross-attention layer."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.negative, self.positive = Branch(attn), Branch(attn)

    def forward(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: Float[Tensor, "b s k"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Return the layer's answer to two prompts, half of the tokens each."""
        if encoder_hidden_states is None or encoder_hidden_states.shape[1] % 2:
            raise ValueError("speedup: tokens of a prompt and of a negative prompt, equally many")
        x, tokens = hidden_states, encoder_hidden_states
        if attn.norm_cross:
            tokens = attn.norm_encoder_hidden_states(tokens)
        masks: tuple[Tensor | None, ...] = (None, None)
        if attention_mask is not None:
            whole = attn.prepare_attention_mask(attention_mask, tokens.shape[1], len(x))
            masks = whole.unflatten(0, (len(x), attn.heads)).chunk(2, -1)  # [b, h, 1, s / 2]
        prompt, other = tokens.chunk(2, 1)
        query = by_head(attn, attn.to_q(x), attn.norm_q)
        plain = attended(attn, query, attn.to_k(prompt), attn.to_v(prompt), masks[0])
        plain = (
            plain
            - self.negative(attn, query, other, masks[1], plain)
            + self.positive(attn, query, prompt, masks[0], plain)
        )
        out: Tensor = attn.to_out[1](attn.to_out[0](plain))
        if attn.residual_connection:
            out = out + x
        scaled: Tensor = out / attn.rescale_output_factor
        return scaled


def by_head(attn: Attention, x: Float[Tensor, "b n inner"], norm: Any) -> Tensor:
    """Return x as [b, h, n, d], normed where the layer does so."""
    found = x.reshape(*x.shape[:-1], attn.heads, -1).transpose(1, 2)
    if norm is not None:
        found = norm(found)
    return found


def attended(
    attn: Attention,
    query: Float[Tensor, "b h n d"],
    keys: Float[Tensor, "b s inner"],
    values: Float[Tensor, "b s inner"],
    mask: Tensor | None,
) -> Float[Tensor, "b n inner"]:
    """Return the attention before the layer's output projection."""
    k, v = by_head(attn, keys, attn.norm_k), by_head(attn, values, None)
    return F.scaled_dot_product_attention(query, k, v, mask).transpose(1, 2).flatten(2)


def cross_attentions(module: nn.Module) -> Iterator[tuple[str, Attention]]:
    """Yield the cross-attention layers that the adapter serves, by name."""
    for name, part in module.named_modules():
        if (
            isinstance(part, Attention)
            and part.is_cross_attention
            and isinstance(part.processor, AttnProcessor | AttnProcessor2_0)
            and part.spatial_norm is None
            and part.group_norm is None
        ):
            yield name, part


def with_speedup(module: nn.Module) -> dict[str, SpeedUpAttention]:
    """Return an adapter for each of the module's cross-attention layers, by the layer's name.

    Raises ValueError for a module without any.
    """
    found = {name: SpeedUpAttention(attn) for name, attn in cross_attentions(module)}
    if not found:
        raise ValueError(
            f"speedup: {type(module).__name__} has no cross-attention of its own to the prompt "
            "(diffusers' Attention), which the adapter stands in: use it on a UNet or PixArt, or "
            "the recipe `trajectory`, whose student has a fixed negative prompt"
        )
    return found
