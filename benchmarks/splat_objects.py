"""How good is the shipped reconstructor on held-out procedural objects, with 2 to 6 pictures?

python -m benchmarks.splat_objects --objects 64 --views 2 3 4 5 6 --refine 0
PSNR in dB at 64 pixels, mean over novel views (those that no arm is given) and objects, beside the
nearest input picture copied. `--refine` adds steps of refinement on the input pictures. One picture
goes to the single-view model, beside the picture copied, blurred and copied, and white.
"""

import argparse
import json
import time

import torch
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.examples import HELD_OUT, Examples, draw_examples
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.pipeline import GaussianReconstructionPipeline, load_reconstructor

FIRST_NOVEL = 6


def psnr(images: Tensor, wanted: Tensor) -> float:
    """Return the mean PSNR of pictures [v, 3, height, width]."""
    off = (images.clamp(0, 1) - wanted).square().mean((1, 2, 3)).clamp_min(1e-10)
    return float(-10 * torch.log10(off).mean())


def rendered(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """Render as [v, 3, height, width]."""
    with torch.no_grad():
        return gaussians.render(cameras).rgb.permute(0, 3, 1, 2)


def straight(pictures: Tensor) -> Tensor:
    """Take the white out of pictures, as files with alpha have it."""
    alpha = pictures[:, 3:]
    rgb = (pictures[:, :3] - (1 - alpha)) / alpha.clamp_min(1e-3)
    return torch.cat([rgb.clamp(0, 1), alpha], 1)


def blur(pictures: Tensor) -> Tensor:
    """Return pictures blurred by 9 pixels."""
    padded = torch.nn.functional.pad(pictures, (4, 4, 4, 4), mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, 9, 1)


def measure(examples: Examples, views: int, refine_steps: int) -> dict[str, object]:
    """Return one row of the table."""
    name = "single-view" if views == 1 else "cost-volume"
    pipe = GaussianReconstructionPipeline(load_reconstructor(name))
    novel_ids = list(range(FIRST_NOVEL, examples.w2c.shape[1]))
    sums = {"novel": 0.0, "input": 0.0, "nearest picture": 0.0}
    if views == 1:
        sums |= {"blurred picture": 0.0, "white": 0.0}
    began = time.process_time()
    for example in range(len(examples)):
        pictures = examples.pictures[example].float() / 255
        inputs = examples.cameras(example, list(range(views)))
        novel = examples.cameras(example, novel_ids)
        wanted = pictures[FIRST_NOVEL:, :3]
        result = pipe(straight(pictures[:views]), inputs, refine_steps=refine_steps)
        sums["novel"] += psnr(rendered(result.gaussians, novel), wanted)
        sums["input"] += psnr(rendered(result.gaussians, inputs), pictures[:views, :3])
        nearest = torch.cdist(novel.centres, inputs.centres).argmin(1)
        sums["nearest picture"] += psnr(pictures[nearest, :3], wanted)
        if views == 1:
            blurred = blur(pictures[:1, :3]).expand_as(wanted)
            sums["blurred picture"] += psnr(blurred, wanted)
            sums["white"] += psnr(torch.ones_like(wanted), wanted)
    seconds = (time.process_time() - began) / len(examples)
    means = {name: round(total / len(examples), 2) for name, total in sums.items()}
    return {"pictures": views, "refine": refine_steps, **means, "CPU s": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--refine", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    examples = draw_examples(HELD_OUT, arguments.objects)
    for refine_steps in arguments.refine:
        for views in arguments.views:
            print(json.dumps(measure(examples, views, refine_steps)), flush=True)


if __name__ == "__main__":
    main()
