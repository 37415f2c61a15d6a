"""What does a squeezed object cost in bytes and lose in dB? On held-out procedural objects.

python -m benchmarks.splat_codec --objects 16 --steps 0.05 0.1 0.15 0.25
Four pictures of an object are reconstructed as they are, and from the squeezed file; novel views at
64 pixels are judged against the truth, and the second reconstruction against the first. Then the
reconstruction itself is squeezed: rendered from four sides, and made anew of what the file holds.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from skipstep.benchmarks.splat_objects import FIRST_NOVEL, psnr, rendered, straight
from skipstep.pipelines.splat.examples import HELD_OUT, draw_examples
from skipstep.pipelines.splat.pipeline import GaussianReconstructionPipeline, load_reconstructor
from skipstep.pipelines.splat.squeeze import read_squeezed, seen_from, write_squeezed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=16)
    parser.add_argument("--steps", type=float, nargs="+", default=[0.05, 0.1, 0.15, 0.25])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    examples = draw_examples(HELD_OUT, arguments.objects)
    pipe = GaussianReconstructionPipeline(load_reconstructor())
    novel_ids = list(range(FIRST_NOVEL, examples.w2c.shape[1]))
    sums: dict[str, dict[str, float]] = {}

    def add(name: str, **figures: float) -> None:
        row = sums.setdefault(name, dict.fromkeys(figures, 0.0))
        for figure, value in figures.items():
            row[figure] += value / len(examples)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "object.squeezed"
        for example in range(len(examples)):
            pictures = straight(examples.pictures[example].float() / 255)
            inputs, novel = (
                examples.cameras(example, views) for views in (list(range(4)), novel_ids)
            )
            wanted = examples.pictures[example, FIRST_NOVEL:, :3].float() / 255
            scene = pipe(pictures[:4], inputs).gaussians
            shown = rendered(scene, novel)
            for ending in (".ply", ".spz"):
                path = scene.save(Path(folder) / f"object{ending}")
                add(ending, bytes=path.stat().st_size, truth=psnr(shown, wanted))
            around = seen_from(scene)
            for step in arguments.steps:
                for source, views in (("pictures", (pictures[:4], inputs)), ("scene", around)):
                    write_squeezed(file, *views, step=step)
                    again = rendered(pipe(*read_squeezed(file)).gaussians, novel)
                    figures = {"truth": psnr(again, wanted), "plain": psnr(again, shown)}
                    add(f"{source}, step {step}", bytes=file.stat().st_size, **figures)
    for name, row in sums.items():
        print(json.dumps({"file": name, **{key: round(value, 2) for key, value in row.items()}}))


if __name__ == "__main__":
    main()
