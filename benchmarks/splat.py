"""What the renderer costs on one CPU thread: forward, and forward with backward.

python -m benchmarks.splat --rounds 5
Scenes are flat splats on a sphere, all visible, about as large as they are far apart. The arms are
run in turn in every round and the least process time is kept. "dense" is every splat at every pixel
in plain torch, the definition that the renderer is tested against.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor

from skipstep.kernels.gs_project import project_gaussians
from skipstep.kernels.gs_raster import rasterize_gaussians, rasterize_gaussians_ref
from skipstep.pipelines.splat.cameras import Cameras


def shell(n: int) -> list[Tensor]:
    """Return means, quats, scales, opacities and colours."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    means = directions * (0.6 + 0.15 * torch.rand(n, 1, generator=generator))
    spread = torch.exp(0.4 * torch.randn(n, 3, generator=generator))
    scales = 1.2 * (4 * torch.pi * 0.45 / n) ** 0.5 * spread * torch.tensor([1.0, 1.0, 0.3])
    quats = torch.randn(n, 4, generator=generator)
    opacities = 0.3 + 0.69 * torch.rand(n, generator=generator)
    return [means, quats, scales, opacities, torch.rand(n, 3, generator=generator)]


def arms(n: int, size: int, with_dense: bool) -> dict[str, Callable[[], None]]:
    """Return what is timed, by name."""
    values, cameras = shell(n), Cameras.orbit(1, elevation=20, radius=2.0, width=size)
    leaves = [value.clone().requires_grad_() for value in values]

    def draw(rasterize: Callable[..., tuple[Tensor, Tensor]], scene: list[Tensor]) -> Tensor:
        means, quats, scales, opacities, colours = scene
        projected = project_gaussians(
            means, quats, scales, cameras.w2c, cameras.K, width=size, height=size
        )
        image, alpha = rasterize(
            *projected, opacities[None], colours[None], width=size, height=size
        )
        return image.sum() + alpha.sum()

    def forward(rasterize: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                draw(rasterize, values)

        return run

    def both() -> None:
        torch.autograd.backward(draw(rasterize_gaussians, leaves))

    chosen = {"forward": forward(rasterize_gaussians), "forward + backward": both}
    return {**chosen, "dense forward": forward(rasterize_gaussians_ref)} if with_dense else chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size, n in ((64, 4096), (256, 100_000)):
        candidates = arms(n, size, with_dense=n <= 4096)
        least = dict.fromkeys(candidates, float("inf"))
        for _ in range(arguments.rounds):
            for name, run in candidates.items():
                began = time.process_time()
                run()
                least[name] = min(least[name], time.process_time() - began)
        milliseconds = {name: round(1e3 * seconds, 1) for name, seconds in least.items()}
        print(json.dumps({"pixels": size, "splats": n, "CPU ms": milliseconds}))
    print(json.dumps({"torch": torch.__version__, "machine": platform.machine(), "threads": 1}))


if __name__ == "__main__":
    main()
