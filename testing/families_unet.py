"""Tiny UNet pipelines: Stable Diffusion 1.5, the same with a ControlNet, and SDXL."""

from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from skipstep.testing.tiny import Tiny, random_model, seeded
from skipstep.testing.tiny_models import clip_encoder, clip_projection_encoder, image_autoencoder
from skipstep.testing.tiny_tokenizers import clip_tokenizer

__all__ = ["sd15", "sd15_controlnet", "sdxl"]

DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")


def small_unet(**config: Any) -> UNet2DConditionModel:
    """Build a three-level UNet on four latent channels."""
    return random_model(
        UNet2DConditionModel,
        sample_size=32,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(4, 8, 8),
        down_block_types=DOWN_BLOCKS,
        up_block_types=UP_BLOCKS,
        **config,
    )


def sd15_components() -> dict[str, Any]:
    """Build what both Stable Diffusion 1.5 pipelines share."""
    return {
        "unet": small_unet(cross_attention_dim=32, norm_num_groups=2),
        "vae": image_autoencoder(4, (8, 16)),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        "text_encoder": clip_encoder(),
        "tokenizer": clip_tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def sd15() -> Tiny:
    """Build Stable Diffusion 1.5: a UNet with cross attention, 64x64 pixels."""
    pipe = StableDiffusionPipeline(**sd15_components())
    call = {"height": 64, "width": 64, "guidance_scale": 5.0}
    return Tiny(pipe, call, denoiser="unet", guidance="batched")


def sd15_controlnet() -> Tiny:
    """Build Stable Diffusion 1.5 with a ControlNet that sees a fixed random picture."""
    controlnet = random_model(
        ControlNetModel,
        in_channels=4,
        conditioning_channels=3,
        layers_per_block=1,
        block_out_channels=(4, 8, 8),
        down_block_types=DOWN_BLOCKS,
        cross_attention_dim=32,
        norm_num_groups=2,
        conditioning_embedding_out_channels=(2, 4),
    )
    pipe = StableDiffusionControlNetPipeline(controlnet=controlnet, **sd15_components())
    with seeded():
        picture = torch.rand(1, 3, 64, 64)
    call = {"image": picture, "height": 64, "width": 64, "guidance_scale": 5.0}
    return Tiny(pipe, call, denoiser="unet", guidance="batched")


def sdxl() -> Tiny:
    """Build SDXL: two text encoders and size conditioning, 64x64 pixels."""
    unet = small_unet(
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=1,
    )
    pipe = StableDiffusionXLPipeline(
        unet=unet,
        vae=image_autoencoder(4, (8, 16)),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        text_encoder=clip_encoder(),
        text_encoder_2=clip_projection_encoder(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
    )
    call = {"height": 64, "width": 64, "guidance_scale": 5.0}
    return Tiny(pipe, call, denoiser="unet", guidance="batched")
