"""The reference denoiser (PixArt-alpha, Chen et al. 2023, arXiv:2310.00426) and its loss.

  x_t = (1 - t) x_0 + t eps,   t = sigmoid(n), n ~ N(0, 1)     (Esser et al. 2024, arXiv:2403.03206)
  L = |v(x_t, 1000 t, text) - (eps - x_0)|^2
Differs from the authors' code: 6.4 M parameters, MiniLM token embeddings instead of T5, no size
conditions.
"""

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.reference.batch import Batch
from skipstep.pipelines.reference.recipe import Data
from skipstep.pipelines.reference.text import MAX_TOKENS

__all__ = [
    "DENOISER",
    "ReferencePipeline",
    "flow_loss",
    "new_denoiser",
    "new_pixart_pipeline",
    "new_scheduler",
]

# The released weights; a retrained version takes a new name, since git keeps every file.
DENOISER = "denoiser-v2"


class ReferencePipeline(PixArtAlphaPipeline):  # type: ignore[misc]
    """PixArtAlphaPipeline with defaults for 128 pixels, so that a prompt is all a call needs.

    The stock pipeline refuses every `sample_size` but 32, 64 and 128 (256 pixels and more) unless
    `use_resolution_binning=False`; there is no configuration value for it, hence this class. It
    changes default arguments and nothing else. A saved copy names the stock class, so that
    `DiffusionPipeline.from_pretrained` opens it without this package; there the keyword has to be
    given.
    """

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] = "",
        num_inference_steps: int = 20,
        *,
        guidance_scale: float = 3.0,
        clean_caption: bool = False,
        use_resolution_binning: bool = False,
        max_sequence_length: int = MAX_TOKENS,
        **arguments: Any,
    ) -> Any:
        """Return pictures of `prompt`; every argument is PixArtAlphaPipeline's."""
        return super().__call__(
            prompt,
            negative_prompt,
            num_inference_steps,
            guidance_scale=guidance_scale,
            clean_caption=clean_caption,
            use_resolution_binning=use_resolution_binning,
            max_sequence_length=max_sequence_length,
            **arguments,
        )

    def save_pretrained(self, save_directory: str, **arguments: Any) -> None:
        """Save a folder that any diffusers installation opens as a PixArtAlphaPipeline."""
        PixArtAlphaPipeline(**self.components).save_pretrained(save_directory, **arguments)


def new_denoiser(config: dict[str, Any]) -> PixArtTransformer2DModel:
    """Return the untrained denoiser: it starts by predicting zero and ignoring the text."""
    model = PixArtTransformer2DModel(**config)
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.attn2.to_out[0].weight)
    return model


def new_scheduler() -> DPMSolverMultistepScheduler:
    """Return the sampler the pipeline ships with: DPM-Solver++ 2M on the straight flow."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
    )


def flow_loss(
    model: torch.nn.Module, batch: Batch, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Return the mean squared error of the predicted flow at random times."""
    x_0 = batch.latents
    t = torch.sigmoid(torch.randn(len(x_0), generator=generator)).to(x_0.device)
    eps = torch.randn(x_0.shape, generator=generator).to(x_0.device)
    x_t = torch.lerp(x_0, eps, t[:, None, None, None])
    v = model(
        hidden_states=x_t,
        timestep=1000 * t,
        encoder_hidden_states=batch.text,
        encoder_attention_mask=batch.mask.to(x_t.dtype),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    loss: Tensor = (v.float() - (eps - x_0)).pow(2).mean()
    return loss


def new_pixart_pipeline(
    parts: dict[str, Any], denoiser: PixArtTransformer2DModel, data: Data
) -> ReferencePipeline:
    """Return the pipeline of `denoiser` and the shared text encoder, tokenizer and autoencoder."""
    return ReferencePipeline(**parts, transformer=denoiser, scheduler=new_scheduler())
