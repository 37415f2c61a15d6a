"""The table of tiny pipelines and the one way to run them.

Every family is the real diffusers pipeline class with a few thousand random weights: nothing is
downloaded, and a run of four steps takes a fraction of a second on one thread. They prove
exactness, counts and coverage. They prove nothing about quality: random weights amplify small
errors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skipstep.testing import families_image, families_unet, families_video
from skipstep.testing.tiny import Tiny

__all__ = ["EXTRA_FAMILIES", "FAMILIES", "run", "tiny_pipeline"]

BUILDERS: dict[str, Callable[[], Tiny]] = {
    "flux": families_image.flux,
    "flux2klein": families_image.flux2klein,
    "chroma": families_image.chroma,
    "sd3": families_image.sd3,
    "auraflow": families_image.auraflow,
    "pixart": families_image.pixart,
    "qwenimage": families_image.qwenimage,
    "zimage": families_image.zimage,
    "dit": families_image.dit,
    "sd15": families_unet.sd15,
    "sdxl": families_unet.sdxl,
    "wan": families_video.wan,
    "cogvideox": families_video.cogvideox,
    "ltx": families_video.ltx,
    "hunyuanvideo": families_video.hunyuanvideo,
    "mochi": families_video.mochi,
    "flux_modular": families_image.flux_modular,
}
EXTRA_BUILDERS: dict[str, Callable[[], Tiny]] = {
    "wan22": families_video.wan22,
    "sd15_controlnet": families_unet.sd15_controlnet,
}

FAMILIES: tuple[str, ...] = tuple(BUILDERS)
EXTRA_FAMILIES: tuple[str, ...] = tuple(EXTRA_BUILDERS)


def tiny_pipeline(family: str) -> Tiny:
    """Build one of `FAMILIES` or `EXTRA_FAMILIES`; the weights are the same every time.

    Raises:
        ValueError: if there is no such family.
    """
    builders = BUILDERS | EXTRA_BUILDERS
    if family not in builders:
        raise ValueError(f"unknown family {family!r}: choose one of {', '.join(builders)}")
    tiny = builders[family]()
    tiny.pipe.set_progress_bar_config(disable=True)
    return tiny


def run(tiny: Tiny, steps: int = 4, seed: int = 0, batch: int = 1, **over: Any) -> Tensor:
    """Run a tiny pipeline on the CPU and return its pictures or videos as float32.

    Sample `i` of a batch has its own generator, seeded `seed + i`, and its own prompt, the one
    with that number: it is the task of the single run with seed `seed + i`. In every family the
    two agree up to rounding. Arguments in `over` replace those of the call.

    Returns:
        [batch, channels, height, width], or [batch, frames, channels, height, width] for a video.
    """
    seeds = range(seed, seed + batch)
    call: dict[str, Any] = {
        tiny.prompt_argument: [tiny.prompts[number % len(tiny.prompts)] for number in seeds],
        "generator": [torch.Generator().manual_seed(number) for number in seeds],
        "num_inference_steps": steps,
        "output_type": "pt",
        **tiny.call,
        **over,
    }
    if isinstance(call.get("negative_prompt"), str):
        # Most pipelines repeat one negative prompt for a batch; ZImagePipeline does not.
        call["negative_prompt"] = [call["negative_prompt"]] * batch
    with torch.no_grad():
        output = tiny.pipe(**call)
    pictures = output if isinstance(output, Tensor) else output[0]
    if call["output_type"] == "np":
        pictures = torch.from_numpy(pictures).movedim(-1, -3)
    return pictures.float()
