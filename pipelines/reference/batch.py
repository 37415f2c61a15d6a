"""What one training step sees: latents and what the pipeline's text encoders made of captions."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Scaled latents (clips have a frame axis after the channels), token states, mask, pooled."""

    latents: Float[Tensor, "b c *size"]
    text: Float[Tensor, "b s d"]
    mask: Int[Tensor, "b s"]
    pooled: Float[Tensor, "b d"]
