"""Tiny image transformers, from Flux to DiT, one function per family."""

from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxAutoBlocks,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from skipstep.testing.tiny import Tiny, random_model
from skipstep.testing.tiny_models import (
    clip_encoder,
    clip_projection_encoder,
    image_autoencoder,
    t5_encoder,
)
from skipstep.testing.tiny_tokenizers import clip_tokenizer, qwen_tokenizer, t5_tokenizer

__all__ = [
    "auraflow",
    "chroma",
    "dit",
    "flux",
    "flux2klein",
    "flux_modular",
    "pixart",
    "qwenimage",
    "sd3",
    "zimage",
]

NO_QUANT_CONVOLUTIONS: dict[str, Any] = {"use_quant_conv": False, "use_post_quant_conv": False}


def flux_components() -> dict[str, Any]:
    """Build the parts of Flux: two joint blocks, two fused blocks, four packed latent channels."""
    transformer = random_model(
        FluxTransformer2DModel,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return {
        "transformer": transformer,
        "vae": image_autoencoder(1, **NO_QUANT_CONVOLUTIONS),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "text_encoder": clip_encoder(),
        "text_encoder_2": t5_encoder(),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": t5_tokenizer(),
    }


def flux() -> Tiny:
    """Build Flux.1: joint blocks, then fused blocks; guidance is an input of the network."""
    call = {"height": 32, "width": 32, "guidance_scale": 3.5, "max_sequence_length": 16}
    return Tiny(
        FluxPipeline(**flux_components()), call, denoiser="transformer", guidance="distilled"
    )


def flux_modular() -> Tiny:
    """Build Flux.1 from diffusers' stock modular blocks with the parts of `flux`."""
    blocks = FluxAutoBlocks()
    # ModularPipeline.set_progress_bar_config reaches outer blocks only; the loop is an inner one.
    loop = blocks.sub_blocks["denoise"].sub_blocks["denoise"]
    loop.set_progress_bar_config(disable=True)
    pipe = blocks.init_pipeline()
    pipe.update_components(**flux_components())
    call = {
        "height": 32,
        "width": 32,
        "guidance_scale": 3.5,
        "max_sequence_length": 16,
        "output": "images",
    }
    return Tiny(pipe, call, denoiser="transformer", guidance="distilled")


def flux2klein() -> Tiny:
    """Build Flux.2 Klein: Flux.2 blocks, a Qwen3 text encoder, two denoiser calls per step."""
    transformer = random_model(
        Flux2Transformer2DModel,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=256,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = random_model(
        AutoencoderKLFlux2,
        sample_size=32,
        in_channels=3,
        out_channels=3,
        latent_channels=1,
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        norm_num_groups=1,
        **NO_QUANT_CONVOLUTIONS,
    )
    pipe = Flux2KleinPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=random_model(Qwen3ForCausalLM, qwen3_config()),
        tokenizer=qwen_tokenizer(),
    )
    call = {
        "height": 32,
        "width": 32,
        "guidance_scale": 4.0,
        "max_sequence_length": 64,
        "text_encoder_out_layers": (1,),
    }
    return Tiny(pipe, call, denoiser="transformer", guidance="sequential")


def chroma() -> Tiny:
    """Build Chroma: Flux blocks modulated by a small approximator network."""
    transformer = random_model(
        ChromaTransformer2DModel,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    pipe = ChromaPipeline(
        transformer=transformer,
        vae=image_autoencoder(1, **NO_QUANT_CONVOLUTIONS),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    call = {
        "negative_prompt": "bad",
        "height": 32,
        "width": 32,
        "guidance_scale": 5.0,
        "max_sequence_length": 16,
    }
    return Tiny(pipe, call, denoiser="transformer", guidance="sequential")


def sd3() -> Tiny:
    """Build Stable Diffusion 3: four joint blocks, three text encoders."""
    transformer = random_model(
        SD3Transformer2DModel,
        sample_size=32,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        vae=image_autoencoder(4, **NO_QUANT_CONVOLUTIONS),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=clip_projection_encoder(),
        text_encoder_2=clip_projection_encoder(),
        text_encoder_3=t5_encoder(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
    )
    call = {"height": 32, "width": 32, "guidance_scale": 5.0, "max_sequence_length": 16}
    return Tiny(pipe, call, denoiser="transformer", guidance="batched")


def auraflow() -> Tiny:
    """Build AuraFlow: two joint blocks, then two fused blocks."""
    transformer = random_model(
        AuraFlowTransformer2DModel,
        sample_size=32,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pos_embed_max_size=256,
    )
    pipe = AuraFlowPipeline(
        transformer=transformer,
        vae=image_autoencoder(4, (8, 16)),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    call = {"height": 64, "width": 64, "guidance_scale": 5.0, "max_sequence_length": 16}
    return Tiny(pipe, call, denoiser="transformer", guidance="batched")


def pixart() -> Tiny:
    """Build PixArt-alpha: self and cross attention, noise prediction with DPM-Solver++."""
    transformer = random_model(
        PixArtTransformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=3,
        cross_attention_dim=24,
        caption_channels=32,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    pipe = PixArtAlphaPipeline(
        transformer=transformer,
        vae=image_autoencoder(4),
        scheduler=DPMSolverMultistepScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    call = {
        "height": 32,
        "width": 32,
        "guidance_scale": 5.0,
        "use_resolution_binning": False,
        "clean_caption": False,
        "max_sequence_length": 16,
    }
    return Tiny(pipe, call, denoiser="transformer", guidance="batched")


def qwenimage() -> Tiny:
    """Build Qwen-Image: joint blocks, two denoiser calls per step with prompts of unequal length.

    The chat template costs many byte tokens: with a `max_sequence_length` of 16 both prompts would
    be cut to the same text, so it is 256.
    """
    transformer = random_model(
        QwenImageTransformer2DModel,
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    vae = random_model(
        AutoencoderKLQwenImage,
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    text_config = {
        "vocab_size": 400,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": rope,
        "rope_theta": 1e6,
    }
    vision_config = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    text_encoder = random_model(
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig(text_config=text_config, vision_config=vision_config),
    )
    pipe = QwenImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=text_encoder,
        tokenizer=qwen_tokenizer(),
    )
    call = {
        "negative_prompt": "bad",
        "height": 32,
        "width": 32,
        "true_cfg_scale": 3.0,
        "max_sequence_length": 256,
    }
    return Tiny(pipe, call, denoiser="transformer", guidance="sequential")


def zimage() -> Tiny:
    """Build Z-Image: one stream of text and image tokens; the network takes a list of samples."""
    transformer = random_model(
        ZImageTransformer2DModel,
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        norm_eps=1e-5,
        qk_norm=True,
        cap_feat_dim=16,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    # diffusers creates both tokens with torch.empty: unset, they are whatever the memory held.
    with torch.no_grad():
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    pipe = ZImagePipeline(
        transformer=transformer,
        vae=image_autoencoder(16, (8, 16)),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=random_model(Qwen3Model, qwen3_config()),
        tokenizer=qwen_tokenizer(),
    )
    call = {
        "negative_prompt": "bad",
        "height": 32,
        "width": 32,
        "guidance_scale": 3.0,
        "max_sequence_length": 64,
    }
    return Tiny(pipe, call, denoiser="transformer", guidance="batched")


def dit() -> Tiny:
    """Build DiT: told what to make by class numbers, not by text."""
    transformer = random_model(
        DiTTransformer2DModel,
        sample_size=16,
        patch_size=4,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    pipe = DiTPipeline(transformer=transformer, vae=image_autoencoder(4), scheduler=DDIMScheduler())
    return Tiny(
        pipe,
        # DiTPipeline knows the output types "pil" and "np" only.
        {"guidance_scale": 4.0, "output_type": "np"},
        denoiser="transformer",
        guidance="batched",
        prompt_argument="class_labels",
        prompts=(1, 207, 360, 985),
    )


def qwen3_config() -> Qwen3Config:
    """Describe a two-layer Qwen3 language model."""
    return Qwen3Config(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
