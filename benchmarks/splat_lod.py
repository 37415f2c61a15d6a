"""How many Gaussians do levels of detail draw from afar, and how right is the picture?

python -m benchmarks.splat_lod
The shell of benchmarks/splat.py in smooth colours, through one lens, from near and from ever
farther, so that it becomes small in the picture. The truth is a picture of four times the size,
averaged; dB are those of the pixels that it covers. Drawn at the size of the picture, small splats
grow to a pixel each, and the whole set becomes too fat.
"""

import argparse
import json

import torch
from torch import Tensor

from skipstep.benchmarks.splat import shell
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.lod import LevelsOfDetail

SIZE = 256


def pooled(maps: Tensor) -> Tensor:
    """Average 4 x 4 pixels."""
    return torch.nn.functional.avg_pool2d(maps.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--pixels", type=float, default=2.0, help="most pixels of a cell")
    parser.add_argument("--distances", type=float, nargs="+", default=[20, 32, 60])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    means, quats, scales, opacities, _ = shell(arguments.count)
    colours = 0.5 + 0.5 * torch.sin(6 * means)
    scene = Gaussians.from_colours(means, quats, scales, opacities, colours)
    for distance in arguments.distances:
        cameras = Cameras.orbit(1, elevation=20, radius=distance, width=SIZE)
        focal = float(cameras.K[0, 0, 0])
        levels = LevelsOfDetail.build(scene, focal=focal, levels=4, pixels=arguments.pixels)
        large = scene.render(cameras.resized(4 * SIZE, 4 * SIZE))
        wanted, alpha = pooled(large.rgb), pooled(large.alpha[..., None])
        covered = alpha[..., 0] > 0.05

        def psnr(rgb: Tensor, wanted: Tensor = wanted, covered: Tensor = covered) -> float:
            off = (rgb - wanted)[covered].square().mean()
            return round(float(-10 * torch.log10(off)), 1)

        row = {
            "distance": distance,
            "pixels wide": round(1.4 * focal / distance),
            "drawn": len(levels.seen_from(cameras.centres[0])),
            "of": len(scene),
            "levels dB": psnr(levels.render(cameras).rgb),
            "all dB": psnr(scene.render(cameras).rgb),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
