"""Load the reference model: a small text-to-image pipeline that ships with the package.

Everything is a stock diffusers or transformers class. Weights and configurations are read from
package data, only safetensors and JSON, never the network.
"""

import json
from importlib import resources
from typing import Any, TypeVar, cast

import torch
from diffusers import AutoencoderTiny, PixArtAlphaPipeline, PixArtTransformer2DModel
from safetensors.torch import load_file

from skipstep.pipelines.reference.denoiser import DENOISER, new_scheduler
from skipstep.pipelines.reference.text import MAX_TOKENS, load_text_encoder, load_tokenizer

__all__ = ["ReferencePipeline", "load_model", "load_reference"]

Model = TypeVar("Model", AutoencoderTiny, PixArtTransformer2DModel)


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


def load_model(kind: type[Model], name: str, dtype: torch.dtype) -> Model:
    """Build a diffusers model from `weights/{name}.json` and fill it from its safetensors file."""
    weights = resources.files("skipstep.pipelines").joinpath("reference/weights")
    config = json.loads(weights.joinpath(f"{name}.json").read_text(encoding="utf-8"))
    with resources.as_file(weights.joinpath(f"{name}.safetensors")) as path:
        state = load_file(path)
    model = kind.from_config(config)
    model.load_state_dict({key: value.float() for key, value in state.items()})
    # diffusers' own `to` warns of modules kept in float32 even where a model names none.
    return cast(Model, torch.nn.Module.to(model, dtype).eval())


def load_reference(dtype: torch.dtype = torch.float32) -> ReferencePipeline:
    """Load the reference text-to-image pipeline on the CPU, in seconds and without a network.

    It draws 180 emoji-like things in the styles "flat", "3d" and "noto" on white or on one of 11
    named colours, at 128 pixels: `load_reference()("a pizza, 3d style, on a blue
    background").images[0]`. It is a test object for acceleration methods, not a general image
    generator; `docs/reference/model-card.md` has the measured limits.
    """
    pipeline = ReferencePipeline(
        tokenizer=load_tokenizer(),
        text_encoder=load_text_encoder(dtype),
        vae=load_model(AutoencoderTiny, "autoencoder-v1", dtype),
        transformer=load_model(PixArtTransformer2DModel, DENOISER, dtype),
        scheduler=new_scheduler(),
    )
    return pipeline
