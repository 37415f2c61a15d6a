"""The reference denoiser (PixArt-alpha, Chen et al. 2023, arXiv:2310.00426) and its loss.

  x_t = (1 - t) x_0 + t eps,   t = sigmoid(n), n ~ N(0, 1)     (Esser et al. 2024, arXiv:2403.03206)
  L = |v(x_t, 1000 t, text) - (eps - x_0)|^2
Differs from the authors' code: 6.4 M parameters, MiniLM token embeddings instead of T5, no size
conditions.
"""

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["CONFIG", "DENOISER", "flow_loss", "new_denoiser", "new_scheduler"]

# The released weights; a retrained version takes a new name, since git keeps every file.
DENOISER = "denoiser-v2"
WIDTH = 192
HEAD = 64
CONFIG = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 10,
    "attention_head_dim": HEAD,
    "num_attention_heads": WIDTH // HEAD,
    "cross_attention_dim": WIDTH,
    "caption_channels": 384,
    "use_additional_conditions": False,
    "interpolation_scale": 1,
}


def new_denoiser() -> PixArtTransformer2DModel:
    """Return the untrained denoiser: it starts by predicting zero and ignoring the text."""
    model = PixArtTransformer2DModel(**CONFIG)
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
    model: PixArtTransformer2DModel,
    x_0: Float[Tensor, "b c h w"],
    text: Float[Tensor, "b s d"],
    mask: Int[Tensor, "b s"],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Return the mean squared error of the predicted flow at random times."""
    t = torch.sigmoid(torch.randn(len(x_0), generator=generator))
    eps = torch.randn(x_0.shape, generator=generator)
    x_t = torch.lerp(x_0, eps, t[:, None, None, None])
    dtype = model.dtype
    v = model(
        hidden_states=x_t.to(dtype),
        timestep=1000 * t,
        encoder_hidden_states=text.to(dtype),
        encoder_attention_mask=mask.to(dtype),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    loss: Tensor = (v.float() - (eps - x_0)).pow(2).mean()
    return loss
