"""Make a clip, skipping work: a video pipeline takes the same plugins as one of pictures.

    python examples/video.py MODEL "a paper boat in the rain" out.webp

MODEL is a folder or a hub id of any text-to-video model of diffusers; out.mp4 needs PyAV
(pip install "skipstep[video]").
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import skipstep  # noqa: F401  # gives pipelines their verbs
from skipstep.pipelines.clip_files import FRAMES_PER_SECOND, save_clip
from skipstep.pipelines.pictures import read_pictures, to_bytes


def film(pipe: Any, prompt: str, target: Path, **call: Any) -> Any:
    """Write a clip that knows how it was made, and return the report of what was skipped."""
    with pipe.plugins("abcache"):
        noise = torch.Generator("cpu").manual_seed(0)
        result = pipe(prompt=prompt, generator=noise, output_type="np", **call)
        report = pipe.plugin_report()
    frames = np.stack(to_bytes(read_pictures(result).transpose(0, 1)))
    made = {"prompt": prompt, "seed": 0, "plugins": ["abcache"], "fraction": report.fraction}
    save_clip(frames, target, made, rate=FRAMES_PER_SECOND)
    return report


def main() -> None:
    from diffusers import DiffusionPipeline

    model, prompt, target = sys.argv[1:4]
    pipe = DiffusionPipeline.from_pretrained(model, use_safetensors=True)
    print(film(pipe, prompt, Path(target)))


if __name__ == "__main__":
    main()
