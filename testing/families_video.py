"""Tiny video transformers: Wan 2.1 and 2.2, CogVideoX, LTX-Video, HunyuanVideo, Mochi."""

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import LlamaConfig, LlamaModel

from skipstep.testing.tiny import Tiny, random_model, seeded
from skipstep.testing.tiny_models import clip_encoder, t5_encoder
from skipstep.testing.tiny_tokenizers import clip_tokenizer, qwen_tokenizer, t5_tokenizer

__all__ = ["cogvideox", "hunyuanvideo", "ltx", "mochi", "wan", "wan22"]


def wan_transformer(seed: int = 0) -> WanTransformer3DModel:
    """Build a four-block Wan transformer whose weights follow `seed`."""
    with seeded(seed):
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=256,
            ffn_dim=32,
            num_layers=4,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ).eval()


def wan_pipeline(second: WanTransformer3DModel | None, boundary_ratio: float | None) -> WanPipeline:
    """Build the Wan pipeline with one or two transformers."""
    vae = random_model(
        AutoencoderKLWan,
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return WanPipeline(
        transformer=wan_transformer(),
        transformer_2=second,
        boundary_ratio=boundary_ratio,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )


def wan() -> Tiny:
    """Build Wan 2.1: two denoiser calls per step, 5 frames of 32x32."""
    call = {
        "negative_prompt": "bad",
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "guidance_scale": 6.0,
        "max_sequence_length": 16,
    }
    return Tiny(wan_pipeline(None, None), call, denoiser="transformer", guidance="sequential")


def wan22() -> Tiny:
    """Build Wan 2.2: one transformer for the noisy steps, `transformer_2` for the rest."""
    call = {
        "negative_prompt": "bad",
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "guidance_scale": 6.0,
        "max_sequence_length": 16,
    }
    pipe = wan_pipeline(wan_transformer(seed=1), 0.875)
    return Tiny(pipe, call, denoiser="transformer", guidance="sequential")


def cogvideox() -> Tiny:
    """Build CogVideoX: joint blocks, velocity prediction with DDIM, 8 frames of 16x16."""
    transformer = random_model(
        CogVideoXTransformer3DModel,
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=4,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=16,
    )
    vae = random_model(
        AutoencoderKLCogVideoX,
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    pipe = CogVideoXPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=CogVideoXDDIMScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    call = {
        "height": 16,
        "width": 16,
        "num_frames": 8,
        "guidance_scale": 6.0,
        "max_sequence_length": 16,
    }
    return Tiny(pipe, call, denoiser="transformer", guidance="batched")


def ltx() -> Tiny:
    """Build LTX-Video: self and cross attention, 9 frames of 32x32."""
    transformer = random_model(
        LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=32,
        num_layers=4,
    )
    vae = random_model(
        AutoencoderKLLTXVideo,
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    vae.use_framewise_encoding = False
    vae.use_framewise_decoding = False
    pipe = LTXPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    call = {
        "negative_prompt": "bad",
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "guidance_scale": 3.0,
        "max_sequence_length": 16,
    }
    return Tiny(pipe, call, denoiser="transformer", guidance="batched")


def hunyuanvideo() -> Tiny:
    """Build HunyuanVideo: joint blocks, then fused blocks; guidance is an input of the network."""
    transformer = random_model(
        HunyuanVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    vae = random_model(
        AutoencoderKLHunyuanVideo,
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        layers_per_block=1,
        act_fn="silu",
        norm_num_groups=4,
        scaling_factor=0.476986,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
        mid_block_add_attention=True,
    )
    llama = LlamaConfig(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    pipe = HunyuanVideoPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=random_model(LlamaModel, llama),
        text_encoder_2=clip_encoder(hidden_size=8),
        tokenizer=qwen_tokenizer(),
        tokenizer_2=clip_tokenizer(),
    )
    call = {
        "prompt_template": {"template": "{}", "crop_start": 0},
        "height": 16,
        "width": 16,
        "num_frames": 5,
        "guidance_scale": 4.5,
        "max_sequence_length": 16,
    }
    return Tiny(pipe, call, denoiser="transformer", guidance="distilled")


def mochi() -> Tiny:
    """Build Mochi: joint blocks with a narrower text stream, 7 frames of 16x16."""
    transformer = random_model(
        MochiTransformer3DModel,
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=4,
        pooled_projection_dim=16,
        in_channels=12,
        out_channels=None,
        qk_norm="rms_norm",
        text_embed_dim=32,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=16,
    )
    vae = random_model(
        AutoencoderKLMochi,
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    pipe = MochiPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    call = {
        "height": 16,
        "width": 16,
        "num_frames": 7,
        "guidance_scale": 4.5,
        "max_sequence_length": 16,
    }
    return Tiny(pipe, call, denoiser="transformer", guidance="batched")
