"""The UNet sibling (Rombach et al. 2022, arXiv:2112.10752), trained to predict v.

  x_t = a_t x_0 + s_t eps,   a_t = cos(pi t / 2), s_t = sin(pi t / 2) on 1000 steps
                                                      (Nichol & Dhariwal 2021, arXiv:2102.09672)
  L = |v(x_t, t, text) - (a_t eps - s_t x_0)|^2       (Salimans & Ho 2022, arXiv:2202.00512)
The cosine ends at pure noise, so a plain background is learnt like everything else.
Differs from the authors' code: a few million parameters, MiniLM token embeddings instead of CLIP.
"""

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.reference.batch import Batch
from skipstep.pipelines.reference.recipe import Data

__all__ = ["ReferenceUNetPipeline", "new_unet", "new_unet_pipeline", "velocity_loss"]

STEPS = 1000
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": STEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    # Means nothing with this spacing, but the stock pipeline complains of any other value.
    "steps_offset": 1,
}


class ReferenceUNetPipeline(StableDiffusionPipeline):  # type: ignore[misc]
    """StableDiffusionPipeline with this model's number of steps and guidance as defaults."""

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        *,
        guidance_scale: float = 3.0,
        **arguments: Any,
    ) -> Any:
        """Return pictures of `prompt`; every argument is StableDiffusionPipeline's."""
        return super().__call__(
            prompt,
            height,
            width,
            num_inference_steps,
            guidance_scale=guidance_scale,
            **arguments,
        )

    def save_pretrained(self, save_directory: str, **arguments: Any) -> None:
        """Save a folder that any diffusers installation opens as a StableDiffusionPipeline."""
        stock = StableDiffusionPipeline(**self.components, requires_safety_checker=False)
        stock.save_pretrained(save_directory, **arguments)


def new_unet(config: dict[str, Any]) -> UNet2DConditionModel:
    """Return the untrained denoiser: it starts by predicting zero and ignoring the text."""
    model = UNet2DConditionModel(**config)
    torch.nn.init.zeros_(model.conv_out.weight)
    torch.nn.init.zeros_(model.conv_out.bias)
    for name, module in model.named_modules():
        if name.endswith("attn2"):
            torch.nn.init.zeros_(module.to_out[0].weight)
    return model


def new_scheduler() -> DPMSolverMultistepScheduler:
    """Return the sampler the pipeline ships with: DPM-Solver++ 2M on the cosine schedule."""
    return DPMSolverMultistepScheduler(**SCHEDULE)


def velocity_loss(
    model: torch.nn.Module, batch: Batch, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Return the mean squared error of the predicted v at uniformly drawn steps."""
    x_0 = batch.latents
    steps = torch.randint(STEPS, (len(x_0),), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator).to(x_0.device)
    squared = new_scheduler().alphas_cumprod[steps].to(x_0.device)[:, None, None, None]
    a, s = squared.sqrt(), (1 - squared).sqrt()
    v = model(
        a * x_0 + s * eps,
        steps.to(x_0.device),
        encoder_hidden_states=batch.text,
        return_dict=False,
    )[0]
    loss: Tensor = (v.float() - (a * eps - s * x_0)).pow(2).mean()
    return loss


def new_unet_pipeline(
    parts: dict[str, Any], denoiser: UNet2DConditionModel, data: Data
) -> ReferenceUNetPipeline:
    """Return the pipeline of `denoiser` and the shared text encoder, tokenizer and autoencoder."""
    # The stock pipeline gives its text encoder the mask of the padding only when told so here.
    parts["text_encoder"].config.use_attention_mask = True
    return ReferenceUNetPipeline(
        **parts,
        unet=denoiser,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
