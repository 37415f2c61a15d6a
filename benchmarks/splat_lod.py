"""How many Gaussians do levels of detail draw from afar, and how far is the picture off?

python -m benchmarks.splat_lod
The shell of benchmarks/splat.py in smooth colours, through one lens, from near and from ever
farther, so that it becomes small in the picture; dB are those of the pixels that it covers.
"""

import argparse
import json

import torch

from skipstep.benchmarks.splat import shell
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.lod import LevelsOfDetail

SIZE = 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--pixels", type=float, default=2.0, help="most pixels of a cell")
    parser.add_argument("--distances", type=float, nargs="+", default=[4, 20, 32])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    means, quats, scales, opacities, _ = shell(arguments.count)
    colours = 0.5 + 0.5 * torch.sin(6 * means)
    scene = Gaussians.from_colours(means, quats, scales, opacities, colours)
    for distance in arguments.distances:
        cameras = Cameras.orbit(2, elevation=20, radius=distance, width=SIZE)
        focal = float(cameras.K[0, 0, 0])
        levels = LevelsOfDetail.build(scene, focal=focal, levels=4, pixels=arguments.pixels)
        whole, few = scene.render(cameras), levels.render(cameras)
        covered = whole.alpha > 0.05
        off = (few.rgb - whole.rgb)[covered].square().mean()
        row = {
            "distance": distance,
            "pixels wide": round(1.4 * focal / distance),
            "drawn": len(levels.seen_from(cameras.centres[0])),
            "of": len(scene),
            "dB": round(float(-10 * torch.log10(off.clamp_min(1e-12))), 1),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
