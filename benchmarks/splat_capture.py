"""How good is a scene from posed photographs after some seconds, on views that were left out?

python -m benchmarks.splat_capture FOLDER --views 32 --seconds 240 --arm swept
Arms: `swept` is `reconstruct_scene` (plane sweep, then refinement); `random` is plain 3DGS from as
many Gaussians at random places in the views' frusta, refined for the same process time; `stream`
is `StreamingReconstructor`, view by view in their order, `--steps` of refinement after each;
`pressed` keeps `--anchors` of the views as places of Gaussians; `coherent` is for few views.
`--within A B` takes the photographs from A to B alone, so that few views stand close together.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from skipstep.pipelines.splat.capture import Capture, read_capture
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.plane_sweep import depth_range
from skipstep.pipelines.splat.scene import fit, mean_colour, reconstruct_scene
from skipstep.pipelines.splat.stream import StreamingReconstructor

ARMS = ("swept", "random", "stream", "pressed", "coherent")


def random_start(capture: Capture, count: int) -> Gaussians:
    """Scatter Gaussians over the frusta of the views, evenly in 1 / depth."""
    generator = torch.Generator().manual_seed(0)
    near, far = depth_range(capture.cameras)
    draws = torch.rand(count, 3, generator=generator)
    z = 1 / (1 / near + (1 / far - 1 / near) * draws[:, 2])
    rays = capture.cameras.rays()
    view = torch.randint(len(capture), (count,), generator=generator)
    y = (draws[:, 0] * capture.cameras.height).long()
    x = (draws[:, 1] * capture.cameras.width).long()
    means = capture.cameras.centres[view] + rays[view, y, x] * z[:, None]
    size = 2 * z / capture.cameras.K[0, 0, 0]
    return Gaussians.from_colours(
        means,
        torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        size[:, None].repeat(1, 3),
        torch.full((count,), 0.1),
        torch.rand(count, 3, generator=generator),
    )


def streamed(capture: Capture, steps: int) -> Gaussians:
    """Add the views one by one."""
    near, far = depth_range(capture.cameras)
    stream = StreamingReconstructor(near=near, far=far, steps=steps)
    for view in range(len(capture)):
        counts = stream.add(capture[[view]])
        total = 0 if stream.scene is None else len(stream.scene)
        print(
            f"view {view}: {counts}, {total:,} Gaussians, {time.process_time():.0f} s", flush=True
        )
    if stream.scene is None:
        raise ValueError("a stream of one view shows no depth: give more --views")
    return stream.scene


@torch.no_grad()
def left_out_psnr(gaussians: Gaussians, inputs: Capture, left_out: Capture) -> float:
    """Return the mean PSNR on the left-out views."""
    total = 0.0
    for view in range(len(left_out)):
        image = gaussians.render(left_out.cameras[view], background=mean_colour(inputs)).rgb[0]
        wanted = left_out.pictures[view, :3].permute(1, 2, 0)
        total -= 10 * float(torch.log10((image.clamp(0, 1) - wanted).square().mean()))
    return total / len(left_out)


def spz_bytes(gaussians: Gaussians) -> int:
    """Return the size of the scene as .spz."""
    with tempfile.TemporaryDirectory() as folder:
        return gaussians.save(Path(folder) / "scene.spz").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--views", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--arm", choices=ARMS, default="swept")
    parser.add_argument("--count", type=int, default=45_000, help="Gaussians of arm random")
    parser.add_argument("--steps", type=int, default=8, help="steps per view of arm stream")
    parser.add_argument("--anchors", type=int, default=16, help="views kept by arm pressed")
    parser.add_argument("--coherent", type=float, default=0.2, help="strength of arm coherent")
    parser.add_argument("--within", type=int, nargs=2, help="first and last photograph")
    parser.add_argument("--every", type=int, default=6, help="of those left out, judge each n-th")
    parser.add_argument("--width", type=int, help="width that pictures are shrunk to")
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    capture = read_capture(arguments.folder, width=arguments.width)
    if arguments.within:
        capture = capture[arguments.within[0] : arguments.within[1] + 1]
    n = len(capture)
    chosen = [round(i * (n - 1) / (arguments.views - 1)) for i in range(arguments.views)]
    rest = [i for i in range(n) if i not in chosen][:: arguments.every]
    inputs, left_out = capture[chosen], capture[rest]
    began = time.process_time()
    if arguments.arm == "swept":
        result = reconstruct_scene(inputs, seconds=arguments.seconds, tell=print)
    elif arguments.arm == "pressed":
        result = reconstruct_scene(
            inputs, seconds=arguments.seconds, anchors=arguments.anchors, tell=print
        )
    elif arguments.arm == "coherent":
        result = reconstruct_scene(
            inputs, seconds=arguments.seconds, coherent=arguments.coherent, tell=print
        )
    elif arguments.arm == "stream":
        result = streamed(inputs, arguments.steps)
    else:
        start = random_start(inputs, arguments.count)
        result = fit(start, inputs, seconds=arguments.seconds, tell=print)
    row = {
        "arm": arguments.arm,
        "views": len(inputs),
        "left out": len(left_out),
        "cpu seconds": round(time.process_time() - began),
        "Gaussians": len(result),
        "spz bytes": spz_bytes(result),
        "left-out PSNR": round(left_out_psnr(result, inputs, left_out), 2),
    }
    print(json.dumps(row))
    if arguments.save:
        result.save(arguments.save)


if __name__ == "__main__":
    main()
