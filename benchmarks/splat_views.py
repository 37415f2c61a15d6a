"""What do view plugins cost and save? Quality on held-out objects, and the time of fusion alone.

python -m benchmarks.splat_views --objects 10
PSNR in dB of 6 novel views at 64 pixels, mean over objects, and process time per object: all of 16
pictures around an object, the same pressed into anchors, the anchors alone, grouped attention. Then
the time in which the tokens of 128 views are fused, with all and pressed into 8 anchors.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.examples import HELD_OUT
from skipstep.pipelines.splat.lessons import psnr, render_targets
from skipstep.pipelines.splat.objects import DISTANCE, FOV, new_object, novel_cameras, picture
from skipstep.pipelines.splat.pipeline import load_reconstructor
from skipstep.plugins.views.base import plainly
from skipstep.plugins.views.lga import LongRangeGroups
from skipstep.plugins.views.zpressor import (
    ZPressor,
    compared_with,
    farthest_points,
    press,
    supports_of,
)

Views = tuple[Tensor, Tensor, Tensor]


def around(seed: int, views: int) -> Cameras:
    """Return cameras evenly around an object, at heights from -5 to 35 degrees."""
    generator = torch.Generator().manual_seed(seed)
    start = 360 * torch.rand(1, generator=generator)
    heights = -5 + 40 * torch.rand(views, generator=generator)
    azimuths = start + torch.arange(views) * (360 / views)
    return Cameras.around(azimuths, heights, radius=DISTANCE, fov=FOV, width=64)


def arms(model: Any, views: Views, centres: Tensor) -> dict[str, Callable[[], Any]]:
    """Return what is compared, by name."""
    anchors = farthest_points(centres, 8)

    def without_supports() -> Any:
        encoded = model.encode(*views, others=compared_with(centres, anchors))[anchors]
        return model.decode(encoded, model.fuse(encoded.tokens))

    def pressed(count: int) -> Callable[[], Any]:
        return lambda: ZPressor(anchors=count).reconstruct(model, *views)[0]

    few: Views = (views[0][:, ::4], views[1][:, ::4], views[2][:, ::4])
    return {
        "16 views": lambda: plainly(model, *views),
        **{f"16 views, zpressor {count}": pressed(count) for count in (4, 6, 8)},
        "16 views, zpressor 8 without supports' tokens": without_supports,
        "8 anchors alone": lambda: plainly(model, *(part[:, anchors] for part in views)),
        "16 views, lga": lambda: LongRangeGroups(every=1).reconstruct(model, *views)[0],
        "4 views": lambda: plainly(model, *few),
        "4 views, lga": lambda: LongRangeGroups(every=1).reconstruct(model, *few)[0],
    }


@torch.no_grad()
def quality(model: Any, objects: int) -> None:
    """Print one line per arm."""
    sums: dict[str, list[float]] = {}
    for seed in range(HELD_OUT, HELD_OUT + objects):
        cameras, novel, parts = around(seed, 16), novel_cameras(seed, views=6), new_object(seed)
        pictures, wanted = (picture(parts, each)[0].float() / 255 for each in (cameras, novel))
        views = pictures[None], cameras.w2c[None], cameras.K[None]
        for name, run in arms(model, views, cameras.centres).items():
            began = time.process_time()
            gaussians = run()
            seconds = time.process_time() - began
            images, _ = render_targets(gaussians, novel.w2c[None], novel.K[0])
            there = wanted[:, :3].permute(0, 2, 3, 1)
            decibels = sum(psnr(images[0, i], there[i]) for i in range(len(there))) / len(there)
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += decibels / objects
            total[1] += seconds / objects
    for name, (decibels, seconds) in sums.items():
        print(json.dumps({"arm": name, "dB": round(decibels, 2), "CPU s": round(seconds, 2)}))


@torch.no_grad()
def fusion(model: Any, views: int, rounds: int) -> None:
    """Print how long fusing the tokens of many views takes; the least of some rounds."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, views, 64, 128, generator=generator)
    centres = torch.nn.functional.normalize(torch.randn(views, 3, generator=generator), dim=-1)
    anchors = farthest_points(centres, 8)
    clusters = supports_of(centres, anchors)
    best = {"all": float("inf"), "zpressor 8": float("inf")}
    for _ in range(rounds):
        for name, run in (
            ("all", lambda: model.fuse(tokens)),
            ("zpressor 8", lambda: press(model.transformer_blocks, tokens, anchors, *clusters)),
        ):
            began = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - began)
    print(json.dumps({"views": views, **{name: round(s, 3) for name, s in best.items()}}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_reconstructor()
    quality(model, arguments.objects)
    fusion(model, 128, arguments.rounds)


if __name__ == "__main__":
    main()
