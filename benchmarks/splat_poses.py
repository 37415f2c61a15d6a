"""How well are cameras found that were not given? On held-out procedural objects.

python -m benchmarks.splat_poses --objects 16
Two rows. `search`: 4 pictures around an object in any order, cameras by `search_cameras`; errors of
the rotation against the first camera, and novel views of the reconstruction with those cameras
beside that with the true ones. `points`: the pose of a view from the single-view model's points of
another at most 60 degrees away, by Procrustes and by perspective-n-point; the pixels that see the
same point are the true ones, so that the row measures the network's points and the solver alone.
"""

import argparse
import json

import torch
from torch import Tensor

from skipstep.pipelines.splat.camera_search import search_cameras
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.cost_volume import pixel_rays
from skipstep.pipelines.splat.examples import HELD_OUT, SIZE, Examples, draw_examples
from skipstep.pipelines.splat.lessons import psnr, render_targets
from skipstep.pipelines.splat.pipeline import load_reconstructor
from skipstep.pipelines.splat.pose_solver import perspective_n_point, procrustes, rotation_angle

F = torch.nn.functional
NOVEL = slice(4, 12)


def summary(errors: list[float]) -> dict[str, float]:
    """Return the median and the share below 15 and 30 degrees."""
    found = torch.tensor(errors)
    shares = {
        f"below {limit}": round(float((found < limit).float().mean()), 2) for limit in (15, 30)
    }
    return {"median degrees": round(float(found.median()), 1), **shares, "of": len(errors)}


@torch.no_grad()
def search(examples: Examples) -> None:
    """Print the row of the search."""
    single, several = load_reconstructor("single-view"), load_reconstructor()
    errors: list[float] = []
    sums = {"found": 0.0, "true": 0.0, "canonical": 0.0}
    for example in range(len(examples)):
        order = torch.randperm(4, generator=torch.Generator().manual_seed(example))
        pictures = examples.pictures[example, order].float() / 255
        true = examples.w2c[example, order]
        found = search_cameras(pictures, single, several)
        # Both worlds agree where the first camera stands.
        into_true = torch.linalg.inv(true[0]) @ found.w2c[0]
        ours = found.w2c @ torch.linalg.inv(into_true)
        relative, wanted = (w2c @ torch.linalg.inv(w2c[0]) for w2c in (ours, true))
        errors += [rotation_angle(relative[v, :3, :3], wanted[v, :3, :3]) for v in range(1, 4)]
        canonical = Cameras.orbit(4, elevation=15, radius=2.2, fov=49.1, width=SIZE)
        guess = canonical.w2c @ torch.linalg.inv(torch.linalg.inv(true[0]) @ canonical.w2c[0])
        truth = (examples.pictures[example, NOVEL, :3].float() / 255).permute(0, 2, 3, 1)
        for name, w2c in (("found", ours), ("true", true), ("canonical", guess)):
            # The reconstructor wants its world upright: that of the cameras as they were found.
            turn = {"found": into_true, "true": torch.eye(4)}.get(
                name, torch.linalg.inv(true[0]) @ canonical.w2c[0]
            )
            gaussians = several(pictures[None], (w2c @ turn)[None], found.K[None])
            targets = examples.w2c[example, NOVEL] @ turn
            images, _ = render_targets(gaussians, targets[None], examples.K)
            decibels = [psnr(images[0, i], truth[i]) for i in range(len(truth))]
            sums[name] += sum(decibels) / len(decibels) / len(examples)
    figures = {f"{name} dB": round(value, 2) for name, value in sums.items()}
    print(json.dumps({"arm": "search", **summary(errors), **figures}), flush=True)


@torch.no_grad()
def points(examples: Examples) -> None:
    """Print the row of the solvers."""
    single = load_reconstructor("single-view")
    by: dict[str, list[float]] = {"procrustes": [], "pnp": []}
    size = SIZE // 2
    for example in range(len(examples)):
        pictures = examples.pictures[example].float() / 255
        K = examples.K.expand(len(pictures), 3, 3)
        z = single(pictures, K).z[:, 0]  # [v, size, size]
        K = examples.K / examples.K.new_tensor([[2.0], [2.0], [1.0]])
        truth = F.avg_pool2d(examples.depths[example].float() * pictures[:, 3], 2)
        truth = truth / F.avg_pool2d(pictures[:, 3], 2).clamp_min(1e-6)
        solid = F.avg_pool2d(pictures[:, 3], 2) > 0.9
        still = torch.eye(4).expand(1, 1, 4, 4)
        d = pixel_rays(still, K[None, None], size, size)[1][0, 0]
        for one in range(4):
            for other in range(4, 12):
                pose = examples.w2c[example, other] @ torch.linalg.inv(examples.w2c[example, one])
                if rotation_angle(pose[:3, :3], torch.eye(3)) > 60:
                    continue
                found = matches(d, truth[one], truth[other], solid[one], solid[other], pose, K)
                if int(found[0].sum()) < 30:
                    continue
                chosen, pixels = found
                known = (d * z[one][..., None])[chosen]
                row, column = (pixels[chosen] - 0.5).round().long().unbind(-1)[::-1]
                rays, weights = d[row, column], torch.ones(len(known))
                R, _, _ = procrustes(known, rays * z[other][row, column][:, None], weights)
                by["procrustes"].append(rotation_angle(R, pose[:3, :3]))
                solved = perspective_n_point(known, rays, weights, start=R)
                by["pnp"].append(rotation_angle(solved[:3, :3], pose[:3, :3]))
    for name, errors in by.items():
        print(json.dumps({"arm": f"points, {name}", **summary(errors)}), flush=True)


def matches(
    d: Tensor, z: Tensor, there: Tensor, solid: Tensor, solid_there: Tensor, pose: Tensor, K: Tensor
) -> tuple[Tensor, Tensor]:
    """Return which pixels of one view another one sees as well, and at which of its pixels."""
    at = (d * z[..., None]) @ pose[:3, :3].T + pose[:3, 3]
    pixels = (at @ K.T)[..., :2] / at[..., 2:].clamp_min(1e-6)
    size = len(z)
    inside = ((pixels > 0) & (pixels < size)).all(-1)
    column, row = pixels.clamp(0, size - 1).floor().long().unbind(-1)
    same = (there[row, column] - at[..., 2]).abs() < 0.03
    return solid & inside & solid_there[row, column] & same, pixels.clamp(0.5, size - 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    examples = draw_examples(HELD_OUT, arguments.objects)
    points(examples)
    search(examples)


if __name__ == "__main__":
    main()
