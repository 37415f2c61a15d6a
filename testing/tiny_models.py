"""Text encoders and the plain image autoencoder that several tiny pipelines share."""

from typing import Any

from diffusers import AutoencoderKL
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from skipstep.testing.tiny import random_model

__all__ = ["clip_encoder", "clip_projection_encoder", "image_autoencoder", "t5_encoder"]


def clip_config(hidden_size: int) -> CLIPTextConfig:
    """Describe a two-layer CLIP text encoder."""
    return CLIPTextConfig(
        vocab_size=1000,
        hidden_size=hidden_size,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_act="gelu",
        projection_dim=32,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def clip_encoder(hidden_size: int = 32) -> CLIPTextModel:
    """Build a CLIP text encoder."""
    return random_model(CLIPTextModel, clip_config(hidden_size))


def clip_projection_encoder() -> CLIPTextModelWithProjection:
    """Build a CLIP text encoder with a projected pooled output of 32 numbers."""
    return random_model(CLIPTextModelWithProjection, clip_config(32))


def t5_encoder() -> T5EncoderModel:
    """Build a T5 encoder 32 channels wide."""
    config = T5Config(
        vocab_size=128,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
    )
    return random_model(T5EncoderModel, config)


def image_autoencoder(
    latent_channels: int, channels: tuple[int, ...] = (4,), **config: Any
) -> AutoencoderKL:
    """Build an image autoencoder that halves the size once per entry of `channels` but one."""
    return random_model(
        AutoencoderKL,
        sample_size=32,
        in_channels=3,
        out_channels=3,
        latent_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        norm_num_groups=1,
        scaling_factor=1.5035,
        shift_factor=0.0609,
        **config,
    )
