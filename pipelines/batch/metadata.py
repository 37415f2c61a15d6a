"""What is written into a picture's file: all that is needed to make it again.

Nothing in it depends on the time or the machine's load, so equal pictures are equal files.
`parameters` is the text that galleries and other tools show, in the form that the Stable Diffusion
web UIs write; `skipstep` is the same as JSON (`skipstep show`).
"""

import json
import sys
from importlib import metadata
from typing import Any

import torch

from skipstep.pipelines.batch.rows import Row

__all__ = ["describe_row", "origin_of", "parameters"]

VERSION = 1


def origin_of(pipe: Any, model: str) -> dict[str, str]:
    """Return what is the same for all pictures of a pipeline."""
    return {
        "pipeline": type(pipe).__name__,
        "model": model,
        # The root package is above this layer, but it is our parent and so loaded already.
        "skipstep": sys.modules["skipstep"].__version__,
        "torch": torch.__version__,
        "diffusers": metadata.version("diffusers"),
    }


def describe_row(
    row: Row, origin: dict[str, str], *, batch_size: int, fraction: float, plugins: str
) -> dict[str, Any]:
    """Return what a picture was made from; a field that was left to the pipeline is left out."""
    given = {
        "negative_prompt": row.negative,
        "width": row.width,
        "height": row.height,
        "num_frames": row.frames,
        "guidance_scale": row.guidance,
    }
    return {
        "version": VERSION,
        "id": row.id,
        "prompt": row.prompt,
        "seed": row.seed,
        "num_inference_steps": row.steps,
        **{name: value for name, value in given.items() if value is not None},
        "plugins": json.loads(plugins),
        "batch_size": batch_size,
        "fraction": round(fraction, 6),
        **origin,
    }


def parameters(described: dict[str, Any]) -> str:
    """Write the description as a text of three lines: prompt, negative prompt, settings."""
    lines = [described["prompt"]]
    if "negative_prompt" in described:
        lines.append(f"Negative prompt: {described['negative_prompt']}")
    settings = {
        "Steps": described["num_inference_steps"],
        "CFG scale": described.get("guidance_scale"),
        "Seed": described["seed"],
        "Size": f"{described['width']}x{described['height']}" if "width" in described else None,
        "Model": described["model"] or described["pipeline"],
        "Version": f"skipstep {described['skipstep']}",
    }
    told = [f"{name}: {value}" for name, value in settings.items() if value is not None]
    return "\n".join([*lines, ", ".join(told)])
