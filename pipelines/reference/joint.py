"""The joint-attention sibling (Flux, Black Forest Labs 2024): text and picture tokens together.

  x_t = (1 - t) x_0 + t eps,   t = sigmoid(n), n ~ N(0, 1)     (Esser et al. 2024, arXiv:2403.03206)
  L = |v(x_t, t, text, pooled text) - (eps - x_0)|^2,   four latents of a square are one token
Differs from the authors' code: 7 M parameters, MiniLM in both text slots (its pooled state where
Flux has CLIP's), guidance by a second branch with an empty prompt, as nothing is distilled.
"""

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.reference.batch import Batch
from skipstep.pipelines.reference.recipe import Data
from skipstep.pipelines.reference.text import MAX_TOKENS

__all__ = ["ReferenceJointPipeline", "joint_flow_loss", "new_joint", "new_joint_pipeline", "pack"]


class ReferenceJointPipeline(FluxPipeline):  # type: ignore[misc]
    """FluxPipeline with this model's size, steps, prompt length and guidance as defaults.

    One negative prompt serves every prompt of a list; the stock class wants as many as prompts.
    """

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        negative_prompt: str | list[str] = "",
        true_cfg_scale: float = 3.0,
        num_inference_steps: int = 20,
        max_sequence_length: int = MAX_TOKENS,
        **arguments: Any,
    ) -> Any:
        """Return pictures of `prompt`; every argument is FluxPipeline's."""
        if isinstance(prompt, list) and isinstance(negative_prompt, str):
            negative_prompt = [negative_prompt] * len(prompt)
        return super().__call__(
            prompt,
            negative_prompt=negative_prompt,
            true_cfg_scale=true_cfg_scale,
            num_inference_steps=num_inference_steps,
            max_sequence_length=max_sequence_length,
            **arguments,
        )

    def save_pretrained(self, save_directory: str, **arguments: Any) -> None:
        """Save a folder that any diffusers installation opens as a FluxPipeline."""
        FluxPipeline(**self.components).save_pretrained(save_directory, **arguments)


def new_joint(config: dict[str, Any]) -> FluxTransformer2DModel:
    """Return the untrained denoiser: it starts by predicting zero."""
    model = FluxTransformer2DModel(**config)
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    return model


def pack(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s d"]:
    """Return squares of 2 x 2 latents as tokens, channels first inside a token, as Flux does."""
    b, c, h, w = latents.shape
    squares = latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(b, h * w // 4, 4 * c)


def positions(height: int, width: int) -> Float[Tensor, "s 3"]:
    """Return (0, row, column) of every token."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float()


def joint_flow_loss(
    model: torch.nn.Module, batch: Batch, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Return the mean squared error of the predicted flow at random times."""
    x_0 = pack(batch.latents)
    device = x_0.device
    t = torch.sigmoid(torch.randn(len(x_0), generator=generator)).to(device)
    eps = torch.randn(x_0.shape, generator=generator).to(device)
    height, width = batch.latents.shape[-2:]
    v = model(
        hidden_states=torch.lerp(x_0, eps, t[:, None, None]),
        timestep=t,
        encoder_hidden_states=batch.text,
        pooled_projections=batch.pooled,
        img_ids=positions(height // 2, width // 2).to(device),
        txt_ids=torch.zeros(batch.text.shape[1], 3, device=device),
        guidance=None,
        return_dict=False,
    )[0]
    loss: Tensor = (v.float() - (eps - x_0)).pow(2).mean()
    return loss


def new_joint_pipeline(
    parts: dict[str, Any], denoiser: FluxTransformer2DModel, data: Data
) -> ReferenceJointPipeline:
    """Return the pipeline of `denoiser` and the shared text encoder, tokenizer and autoencoder."""
    pipeline = ReferenceJointPipeline(
        **parts,
        text_encoder_2=parts["text_encoder"],
        tokenizer_2=parts["tokenizer"],
        transformer=denoiser,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )
    # The stock class takes 128 latents a side for granted; nothing in its files says otherwise.
    pipeline.default_sample_size = data.size // pipeline.vae_scale_factor
    return pipeline
