"""Clips in the plane: points that go round the ring, one way or the other, with an exact teacher.

A clip is six points, each an eighth of a turn after the last, one way or the other. A student that
makes it three by three has to look back to go on where it was, and its own errors come back to it.
The teacher sees the clip as a whole and is exact: clips are a mixture of 16 Gaussians in twelve
dimensions.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipstep.samplers.distill.catalog import load_recipe
from skipstep.samplers.distill.causal import Remembers
from skipstep.samplers.distill.flow import PlainBridge
from skipstep.samplers.distill.networks import Flow
from skipstep.samplers.distill.plane import Mixture, sliced_wasserstein
from skipstep.samplers.distill.plane_suite import JUDGED, Case, Proof
from skipstep.samplers.distill.protocol import Batch
from skipstep.samplers.distill.trainer import Trainer, Training
from skipstep.samplers.distill.walk import shifted_nodes, walk

__all__ = ["CASES", "ClipNet", "ClipSource", "clips", "learned_clips", "prove"]

FRAMES = 6
LEARNED, UPDATES = 250, 250
CASES = (
    Case(
        "self_forcing",
        {"steps": 1, "chunk": 3, "window": 1, "fake_updates": 2, "forced_updates": 100},
        1,
        3.7,
        rate=1e-3,
    ),
)


def clips() -> Mixture:
    """Return eight starts, each with two ways to go."""
    start = torch.arange(8)[:, None, None] * (2 * math.pi / 8)
    way = torch.tensor([1.0, -1.0])[:, None] * torch.arange(FRAMES) * (2 * math.pi / 8)
    angle = (start + way).flatten(0, 1)  # [16, frames]
    return Mixture(math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], -1), 0.15)


class Look(Remembers):
    """Self-attention over points, with memory."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.enter, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b f c"]) -> Float[Tensor, "b f c"]:
        """Return what each point finds."""
        q, k, v = self.enter(x).chunk(3, -1)
        if self.memory is not None:
            k, v = self.memory.extended(self, k, v)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (q, k, v))
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.leave(found.transpose(1, 2).flatten(2))
        return out


class ClipNet(Remembers):
    """A small transformer v(x, t) over the points of a clip."""

    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", 2.0 ** torch.arange(5) * math.pi / 2)
        self.enter, self.time = nn.Linear(2, width), nn.Linear(10, width)
        self.places = nn.Parameter(0.1 * torch.randn(FRAMES, width))
        self.looks = nn.ModuleList(Look(width) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(),
                nn.Linear(2 * width, width),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Float[Tensor, "b f 2"], t: Float[Tensor, " b"]) -> Float[Tensor, "b f 2"]:
        """Return v of the points, which come after those that are remembered."""
        before = 0 if self.memory is None else self.memory.frames
        angles = t[:, None] * self.frequencies
        level = self.time(torch.cat([angles.sin(), angles.cos()], 1))[:, None]
        h = self.enter(x) + level + self.places[before : before + x.shape[1]]
        for look, block in zip(self.looks, self.blocks, strict=True):
            h = h + look(h)
            h = h + block(h + level)
        v: Tensor = self.leave(h)
        return v


class ClipSource:
    """Draw noise and clips."""

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return a batch."""
        noise = torch.randn(size, FRAMES, 2, generator=generator)
        return Batch(noise=noise, data=clips().sample(size, generator))


def learned_clips(iterations: int = LEARNED) -> nn.Module:
    """Return a small network that has learned the exact flow of whole clips."""
    torch.manual_seed(0)
    settings = Training(iterations=iterations, batch=128, rate=3e-3, average=0.98)
    return Trainer(
        load_recipe("guidance"), ClipNet(), ClipSource(), settings, teacher=clips()
    ).run()


def prove(case: Case, start: nn.Module, iterations: int = UPDATES) -> Proof:
    """Train a causal student; measure its clips and the exact flow's Euler steps."""
    mixture, recipe = clips(), load_recipe(case.recipe, case.options)
    settings = Training(
        iterations=iterations, batch=128, rate=case.rate, fake_rate=2e-3, average=0.95
    )
    student = Trainer(recipe, start, ClipSource(), settings, teacher=mixture).run()
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(JUDGED, FRAMES, 2, generator=generator)
    data = mixture.sample(JUDGED, generator)
    with torch.no_grad():
        made = recipe.sample(Flow(student, PlainBridge()), noise, case.steps, {}, generator)
        plain = walk(mixture, noise, shifted_nodes(case.steps), {})
    return Proof(case, sliced_wasserstein(made, data), sliced_wasserstein(plain, data))
