"""Change a picture with a prompt, skipping work: plugins serve image-to-image pipelines too.

    python examples/image_to_image.py MODEL photo.png "a watercolour of it" out.png

MODEL is a folder or a hub id of any text-to-image model that diffusers has an image-to-image
pipeline for. The run takes strength x steps steps, and the report counts those.
"""

import sys
from typing import Any

import torch
from PIL import Image

import skipstep  # noqa: F401  # gives pipelines their verbs


def restyle(
    pipe: Any, picture: Image.Image, prompt: str, *, strength: float = 0.6, **call: Any
) -> tuple[Image.Image, Any]:
    """Return the changed picture and the report of what was skipped."""
    with pipe.plugins("fbcache"):
        noise = torch.Generator("cpu").manual_seed(0)
        result = pipe(prompt, image=picture, strength=strength, generator=noise, **call)
        return result.images[0], pipe.plugin_report()


def main() -> None:
    from diffusers import AutoPipelineForImage2Image

    model, source, prompt, target = sys.argv[1:5]
    pipe = AutoPipelineForImage2Image.from_pretrained(model, use_safetensors=True)
    picture, report = restyle(pipe, Image.open(source).convert("RGB"), prompt)
    picture.save(target)
    print(report)


if __name__ == "__main__":
    main()
