"""Sparse attention methods at equal density, on the real attention inputs of the reference model.

    python -m benchmarks.sparsity                     prints the table
    python -m benchmarks.sparsity --model picture256 --size 256 --block 8 --pictures 8
    python -m benchmarks.sparsity --model video --size 64 --block 8 --pictures 8
    python -m benchmarks.sparsity --picture docs/attention-masks.png

Queries, keys and values of all layers are taken from a run of the reference model. Every method is
asked for the share at which its mean density over all calls comes nearest to the target, whatever
its own rounding, and judged by |o - o_dense|^2 / |o_dense|^2 over all of them. "exact" knows the
true attention of every block and keeps the best of every row, in raster order or on a curve;
"random" keeps any. Methods about time take part where the model makes clips. Nothing is timed.

With `--pictures` so many prompts are drawn with every method at the share that was found, too, and
compared with what dense attention draws from the same seeds. Five of the 20 steps are dense for all
of them, the one included at which a method looks up its masks.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pydantic
import torch
from PIL import Image, ImageDraw
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.block_scores import antidiagonal_scores
from skipstep.kernels.permute import gilbert_order
from skipstep.pipelines.compare.run import describe_machine
from skipstep.pipelines.reference import load_reference
from skipstep.pipelines.reference.prompts import prompts_of
from skipstep.pipelines.reference.recipe import find_recipe, load_recipe
from skipstep.pipelines.tune.trial import Trier
from skipstep.plugins.attention.block_sparse import METHODS
from skipstep.plugins.attention.layout import Layout
from skipstep.plugins.attention.methods.base import Choice, Grid, Scene, SparseAttention
from skipstep.plugins.attention.methods.selection import top_share
from skipstep.plugins.attention.reach import listening, points_in, standing_in
from skipstep.plugins.attention.sparse_call import attend_sparsely

STEPS = 20
TAKEN = (4, 8, 12, 16)
"""Steps whose attention is taken; the first is what recycled masks are looked up at, so it is
judged for none.
"""
SEARCHES = 9
DENSE_STEPS = 5
SIDE, GAP, LINE = 160, 14, 14
FROZEN = pydantic.dataclasses.dataclass(
    frozen=True, kw_only=True, config=ConfigDict(extra="forbid")
)


@dataclass(frozen=True)
class Taken:
    """One attention call of the model, and what dense attention makes of it."""

    step: int
    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    dense: Tensor


class Recorder:
    """Keep what self-attention is called with, and let the model attend as it does."""

    def __init__(self, layers: int) -> None:
        self.layers, self.calls = layers, 0
        self.taken: list[Taken] = []

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float | None,
        is_plain: bool,
        dense: Callable[[], Tensor],
    ) -> Tensor:
        """Keep one call, if its step is one to take."""
        step, layer = divmod(self.calls, self.layers)
        self.calls += 1
        output = dense()
        if step in TAKEN:
            self.taken.append(Taken(step, layer, q, k, v, output))
        return output


@FROZEN
class Exact(SparseAttention):
    """Know the attention of every block: the bound of all methods that keep a share of a row."""

    name: ClassVar[str] = "exact"
    summary: ClassVar[str] = "Keeps the blocks with the most true attention."

    def choose(self, scene: Scene) -> Choice:
        """Return the best blocks of every row."""
        return best_blocks(scene)


@FROZEN
class ExactOnCurve(SparseAttention):
    """The same with blocks along a space-filling curve instead of rows of the picture."""

    name: ClassVar[str] = "exact, curve"
    summary: ClassVar[str] = "Keeps the blocks with the most true attention, on a curve."

    def order(self, grid: Grid, device: torch.device) -> Tensor:
        """Return the tokens along the curve."""
        return gilbert_order(*grid, device=device)

    def choose(self, scene: Scene) -> Choice:
        """Return the best blocks of every row."""
        return best_blocks(scene)


def best_blocks(scene: Scene) -> Choice:
    """Return the blocks with the most attention, all of it computed."""
    mass = antidiagonal_scores(
        scene.q,
        scene.k,
        stride=1,
        block_q=scene.block_q,
        block_k=scene.block_k,
        scale=scene.scale,
    )
    return Choice(top_share(mass, scene.keep or 1.0))


@FROZEN
class Random(SparseAttention):
    """Keep blocks at random: what any method has to beat."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "Keeps blocks at random."
    seed: Annotated[int, Field(description="Of the blocks that are kept.")] = 0

    def choose(self, scene: Scene) -> Choice:
        """Return random blocks of every row."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = *scene.q.shape[:2], scene.nq, scene.nk
        return Choice(top_share(torch.rand(shape, generator=generator), scene.keep or 1.0))


def take(pipe: Any, size: int, prompts: list[str]) -> tuple[list[Taken], Layout]:
    """Run the reference model and return its attention calls; `size` is the picture's side."""
    points, _ = points_in(pipe.transformer)
    recorder = Recorder(len(points))
    with standing_in(points), listening(recorder):
        latents: Tensor = pipe(
            prompts,
            num_inference_steps=STEPS,
            height=size,
            width=size,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
            output_type="latent",
            return_dict=False,
        )[0]
    frames = latents.shape[2] if latents.ndim == 5 else 1
    side = round((recorder.taken[0].q.shape[2] // frames) ** 0.5)
    return recorder.taken, Layout((frames, side, side))


def spread(known: list[str], count: int) -> list[str]:
    """Return so many of the known prompts, evenly spaced.

    >>> spread(["a", "b", "c", "d"], 2)
    ['a', 'c']
    """
    return known[:: max(1, len(known) // max(count, 1))][:count]


def decibels(trier: Trier, found: SparseAttention) -> float:
    """Return the mean PSNR of pictures drawn with a method to those drawn densely."""
    # What looks its masks up at a dense step of its own has one of the dense steps there.
    looks_up = "interval" in {field.name for field in fields(found)}
    dense = DENSE_STEPS - 1 if looks_up else DENSE_STEPS
    return trier.run([replace(found, dense_steps=dense, dense_layers=0)]).psnr


def options_of(name: str, block: int, tokens: int) -> dict[str, Any]:
    """Return the options that make a method's tiles one block, and its estimate about as cheap as
    in its paper: a part of the attention, not all of it.
    """
    side = int(block**0.5)
    tile = (1, side, block // side)
    few = max(1, tokens // 16)
    own: dict[str, dict[str, Any]] = {
        "asa": {"samples": max(1, block // 4)},
        "draft": {"tile": tile},
        "flexprefill": {"rows": few},
        "minference": {"rows": few},
        "mminference": {"rows": few},
        "nabla": {"tile": tile, "window": (1, 1, 1)},
        "recycled": {"interval": 100},
        "sta": {"tile": tile},
        "svg2": {"q_clusters": 16, "k_clusters": 16},
        "vsa": {"tile": tile},
        "xattention": {"stride": 4},
    }
    shared = {"block_q": block, "block_k": block, "force": True, "dense_steps": 0}
    return shared | own.get(name, {})


Make = Callable[[float, int], SparseAttention]


def methods(block: int, tokens: int, frames: int = 1) -> dict[str, Make]:
    """Return every method that pictures or clips can have, as a function of share and delta."""

    def make(cls: type[SparseAttention]) -> Make:
        chosen = options_of(cls.name, block, tokens)
        return lambda keep, delta: cls(keep=keep, delta=delta, **chosen)

    served = [cls for cls in METHODS.values() if frames > 1 or not cls.needs_frames]
    every: list[type[SparseAttention]] = [Exact, ExactOnCurve, *served, Random]
    return {cls.name: make(cls) for cls in every}


def judge(found: SparseAttention, taken: list[Taken], layout: Layout) -> dict[str, float]:
    """Return mean density, mean kept mass and relative squared error of a method."""
    lost = whole = 0.0
    densities, masses = [], []
    memories: dict[int, dict[str, Any]] = {}
    for call in taken:
        memory = memories.setdefault(call.layer, {})
        outcome = attend_sparsely(
            found, call.q, call.k, call.v, layout, step=call.step, memory=memory
        )
        if call.step == TAKEN[0]:
            continue
        if outcome.output is None or outcome.mass is None:
            raise RuntimeError(f"{found.name} stayed dense at step {call.step}")
        lost += float((outcome.output - call.dense).square().sum())
        whole += float(call.dense.square().sum())
        densities.append(float(outcome.density))
        masses.append(float(outcome.mass))
    count = len(densities)
    return {"density": sum(densities) / count, "mass": sum(masses) / count, "error": lost / whole}


def at_density(
    make: Make, target: float, delta: int, taken: list[Taken], layout: Layout
) -> dict[str, float]:
    """Return the figures of a method at the share whose density is nearest to the target."""
    low, high = 0.0, 1.0
    best: dict[str, float] | None = None
    for _ in range(SEARCHES):
        keep = (low + high) / 2
        found = judge(make(keep, delta), taken, layout) | {"keep": keep}
        if best is None or abs(found["density"] - target) < abs(best["density"] - target):
            best = found
        if abs(found["density"] - target) < 0.002:
            break
        low, high = (low, keep) if found["density"] > target else (keep, high)
    if best is None:
        raise RuntimeError("no share was tried")
    return best


def table(measured: dict[str, Any], targets: list[float], delta: int) -> str:
    """Write the figures as a table, the smallest error at the first target first."""
    head = ["method"]
    for target in targets:
        head += [
            f"density (asked {target:.0%})",
            "attention kept",
            "error",
            f"error, delta={delta}",
        ]
        head += ["pictures"] * any("psnr" in rows[str(target)] for rows in measured.values())
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in sorted(measured, key=lambda name: measured[name][str(targets[0])]["error"]):
        cells = [name if name not in METHODS else f"`{name}`"]
        for target in targets:
            row = measured[name][str(target)]
            cells += [f"{row['density']:.1%}", f"{row['mass']:.1%}"]
            cells += [f"{row['error']:.4f}", f"{row['error_delta']:.4f}"]
            if "pictures" in head:
                cells.append(f"{row['psnr']:.1f} dB" if "psnr" in row else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(taken: list[Taken], layout: Layout, block: int, keep: float) -> Image.Image:
    """Draw the true attention of one head and, beside it, what every method keeps of it.

    The call is one in the middle of the model, at the last step that was taken; the head, the one
    whose attention is least even. Every map is in the order of its method.
    """
    layers = 1 + max(call.layer for call in taken)
    chosen = [call for call in taken if call.layer == layers // 2]
    q, k = chosen[-1].q[:1], chosen[-1].k[:1]
    p = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
    head = int((p * p.clamp_min(1e-30).log()).sum((-1, -2)).argmax())
    count = layout.picture // block
    true = p[0, head].view(count, block, count, block).sum((1, 3)) / block
    panels = [("attention", true / true.max())]
    for name, make in methods(block, layout.picture, layout.grid[0]).items():
        memory: dict[str, Any] = {}
        for call in chosen:
            mask = attend_sparsely(
                make(keep, 0), call.q, call.k, call.v, layout, step=call.step, memory=memory
            ).mask
        mask = mask.expand(*q.shape[:2], -1, -1) if mask.shape[0] == 1 else mask
        panels.append((f"{name} {mask[0, head].float().mean():.0%}", mask[0, head].float()))
    cell, columns = max(1, SIDE // count), 4
    size = count * cell
    rows = -(-len(panels) // columns)
    step_x, step_y = size + GAP, size + GAP + LINE
    sheet = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, values) in enumerate(panels):
        x, y = GAP + i % columns * step_x, GAP + i // columns * step_y
        draw.text((x, y), title, fill="black")
        shade = (255 - 205 * values.sqrt()).byte().repeat_interleave(cell, 0)
        shade = shade.repeat_interleave(cell, 1)
        sheet.paste(Image.fromarray(shade.numpy()).convert("RGB"), (x, y + LINE))
        draw.rectangle((x - 1, y + LINE - 1, x + size, y + LINE + size), outline="grey")
    return sheet


def main() -> None:
    """Take, judge, and print the table or draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="picture", help="the reference model's name")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures, in pixels")
    parser.add_argument("--block", type=int, default=4, help="tokens of a block")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--delta", type=int, default=4, help="stride of the delta correction")
    parser.add_argument("--pictures", type=int, default=0, help="prompts to draw; 0: none")
    parser.add_argument("--methods", nargs="+", help="of these names alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="draw the masks instead")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipe = load_reference(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    data = load_recipe(find_recipe(arguments.model)).data
    known = [each["prompt"] for each in prompts_of(data)]
    taken, layout = take(pipe, arguments.size, spread(known, arguments.prompts))
    if arguments.picture:
        picture(taken, layout, arguments.block, min(arguments.densities)).save(arguments.picture)
        return
    measured: dict[str, Any] = {}
    call = {"height": arguments.size, "width": arguments.size}
    trier = Trier(pipe, spread(known, arguments.pictures), range(arguments.pictures), STEPS, call)
    for name, make in methods(arguments.block, layout.picture, layout.grid[0]).items():
        if arguments.methods and name not in arguments.methods:
            continue
        rows = {}
        for target in arguments.densities:
            row = at_density(make, target, 0, taken, layout)
            repaired = judge(make(row["keep"], arguments.delta), taken, layout)
            rows[str(target)] = row | {"error_delta": repaired["error"]}
            if arguments.pictures and name in METHODS:
                rows[str(target)]["psnr"] = decibels(trier, make(row["keep"], 0))
        measured[name] = rows
        print(name, rows, flush=True)
    print(describe_machine(pipe))
    print(
        f"{layout.picture} tokens, blocks of {arguments.block}, {arguments.prompts} prompts, "
        f"steps {TAKEN[1:]} of {STEPS}, {len(taken)} calls"
    )
    print(table(measured, arguments.densities, arguments.delta))
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
