"""The video sibling (Wan, Wan Team 2025): clips in one pass, tokens over frames and picture.

  x_t = (1 - t) x_0 + t eps,   t = sigmoid(n), n ~ N(0, 1)     (Esser et al. 2024, arXiv:2403.03206)
  L = |v(x_t, 1000 t, text) - (eps - x_0)|^2
Differs from the authors' code: 11 M parameters, MiniLM token states (padding zeroed, as the
pipeline does) instead of UMT5, a small autoencoder of the same class (video_autoencoder.py).
"""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.reference.batch import Batch
from skipstep.pipelines.reference.recipe import Data
from skipstep.pipelines.reference.text import MAX_TOKENS

__all__ = ["ReferenceVideoPipeline", "new_video", "new_video_pipeline", "video_flow_loss"]


class ReferenceVideoPipeline(WanPipeline):  # type: ignore[misc]
    """WanPipeline with this model's size, frames, steps and guidance as defaults."""

    default_size = 64
    default_frames = 9

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        *,
        max_sequence_length: int = MAX_TOKENS,
        **arguments: Any,
    ) -> Any:
        """Return clips of `prompt`; every argument is WanPipeline's."""
        return super().__call__(
            prompt,
            negative_prompt,
            height or self.default_size,
            width or self.default_size,
            num_frames or self.default_frames,
            num_inference_steps,
            guidance_scale,
            max_sequence_length=max_sequence_length,
            **arguments,
        )

    def save_pretrained(self, save_directory: str, **arguments: Any) -> None:
        """Save a folder that any diffusers installation opens as a WanPipeline."""
        WanPipeline(**self.components).save_pretrained(save_directory, **arguments)


def new_video(config: dict[str, Any]) -> WanTransformer3DModel:
    """Return the untrained denoiser: it starts by predicting zero and ignoring the text."""
    model = WanTransformer3DModel(**config)
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn2.to_out[0].weight)
    return model


def video_flow_loss(
    model: torch.nn.Module, batch: Batch, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Return the mean squared error of the predicted flow at random times."""
    x_0 = batch.latents  # [b, c, frames, h, w]
    t = torch.sigmoid(torch.randn(len(x_0), generator=generator)).to(x_0.device)
    eps = torch.randn(x_0.shape, generator=generator).to(x_0.device)
    v = model(
        hidden_states=torch.lerp(x_0, eps, t[:, None, None, None, None]),
        timestep=1000 * t,
        encoder_hidden_states=batch.text,
        return_dict=False,
    )[0]
    loss: Tensor = (v.float() - (eps - x_0)).pow(2).mean()
    return loss


def new_video_pipeline(
    parts: dict[str, Any], denoiser: WanTransformer3DModel, data: Data
) -> ReferenceVideoPipeline:
    """Return the pipeline of `denoiser` and the shared text encoder, tokenizer and autoencoder."""
    pipeline = ReferenceVideoPipeline(
        **parts, transformer=denoiser, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0)
    )
    pipeline.default_size, pipeline.default_frames = data.size, data.frames
    return pipeline
