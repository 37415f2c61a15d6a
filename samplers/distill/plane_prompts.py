"""The plane with prompts: guidance and negative prompts, with an exact teacher.

A prompt names two neighbouring modes of the ring by two tokens; the empty prompt names none. The
guided flow is exact (`Guided` around the mixture), but where it ends has no closed form, so
students of guidance are judged by its fine walk. Anchored paths are judged by what the prompt
means, which strong guidance drives past. Points are compared together with their prompts, so that a
point at another prompt's modes is an error.
"""

import math

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from skipstep.samplers.distill.anchor import anchored_path
from skipstep.samplers.distill.catalog import load_recipe
from skipstep.samplers.distill.flow import Condition, Guided, PlainBridge, with_negative
from skipstep.samplers.distill.networks import Flow
from skipstep.samplers.distill.paths import PathSource, teacher_path
from skipstep.samplers.distill.plane import PlaneNet, ring, sliced_wasserstein
from skipstep.samplers.distill.plane_suite import JUDGED, Case, Proof
from skipstep.samplers.distill.protocol import Batch
from skipstep.samplers.distill.trainer import Trainer, Training
from skipstep.samplers.distill.walk import shifted_nodes, walk

__all__ = ["CASES", "SCALE", "TokenNet", "learned_prompts", "prove"]

SCALE = 3.0
PATHS = 2048
LEARNED, UPDATES = 350, 150
CASES = (
    Case("speedup", {"steps": 1, "teacher_steps": 8}, 1, 12.9),
    Case("reflow", {}, 1, 8.3, guidance=SCALE),
    Case("reflow", {}, 1, 30.0, guidance=SCALE, anchor=20),
)

TOKENS: Float[Tensor, "8 2 8"] = (
    8.0 * torch.eye(8)[torch.stack([torch.arange(8), (torch.arange(8) + 1) % 8], 1)]
)
EMPTY: Condition = {"encoder_hidden_states": torch.zeros(1, 2, 8)}


class TokenNet(PlaneNet):
    """A `PlaneNet` whose blocks look at a prompt's tokens."""

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__(width, depth)
        self.looks = nn.ModuleList(
            Attention(query_dim=width, cross_attention_dim=8, heads=2, dim_head=width // 2)
            for _ in range(depth)
        )

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b 2"],
        t: Float[Tensor, " b"],
        encoder_hidden_states: Float[Tensor, "b s 8"],
    ) -> Float[Tensor, "b 2"]:
        """Return v."""
        level = self.level(t, t)
        h = self.enter(x)
        for block, shift, look in zip(self.blocks, self.shifts, self.looks, strict=True):
            h = h + look(h[:, None], encoder_hidden_states)[:, 0]
            h = h + block(nn.functional.silu(h + shift(level)))
        v: Tensor = self.leave(nn.functional.silu(h))
        return v


class PromptSource:
    """Draw noise, points and prompts; one prompt of nine is empty where `with_empty`."""

    def __init__(self, *, with_empty: bool = False) -> None:
        self.tokens = TOKENS
        if with_empty:
            self.tokens = torch.cat([TOKENS, EMPTY["encoder_hidden_states"]])

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return a batch."""
        rows = torch.randint(len(self.tokens), (size,), generator=generator)
        noise = torch.randn(size, 2, generator=generator)
        condition = {"encoder_hidden_states": self.tokens[rows]}
        return Batch(
            noise=noise, condition=condition, empty=EMPTY, data=ring().sample(size, generator)
        )


def learned_prompts(iterations: int = LEARNED) -> nn.Module:
    """Return a small network that has learned the exact flow of every prompt."""
    torch.manual_seed(0)
    settings = Training(iterations=iterations, batch=256, rate=3e-3, average=0.99)
    source = PromptSource(with_empty=True)
    return Trainer(load_recipe("guidance"), TokenNet(), source, settings, teacher=ring()).run()


def prove(case: Case, start: nn.Module, iterations: int = UPDATES) -> Proof:
    """Train a student by the case's recipe; measure it and the guided teacher's Euler steps."""
    mixture = ring()
    recipe = load_recipe(case.recipe, case.options)
    teacher = Guided(mixture, SCALE, EMPTY)
    settings = Training(iterations=iterations, batch=256, rate=case.rate, average=0.98)
    source = PromptSource() if "path" not in recipe.needs else guided_paths(case)
    student = Trainer(recipe, start, source, settings, teacher=teacher).run()
    generator = torch.Generator().manual_seed(7)
    rows, others = torch.randint(8, (2, JUDGED), generator=generator)
    noise = torch.randn(2, JUDGED, 2, generator=generator)
    condition: Condition = {"encoder_hidden_states": TOKENS[rows]}
    if case.recipe == "speedup":
        condition = with_negative(condition, {"encoder_hidden_states": TOKENS[others]})
        nodes = shifted_nodes(64)
        with torch.no_grad():
            wanted = teacher_path(teacher, noise[1], nodes, condition)[:, -1]
    else:
        wanted = mixture.sample(JUDGED, generator, TOKENS[rows])
    with torch.no_grad():
        made = recipe.sample(Flow(student, PlainBridge()), noise[0], case.steps, condition)
        plain = walk(teacher, noise[0], shifted_nodes(case.steps), condition)
    told = torch.cat([directions(rows), directions(others)], 1)
    distances = [
        sliced_wasserstein(torch.cat([each, told], 1), torch.cat([wanted, told], 1))
        for each in (made, plain)
    ]
    return Proof(case, *distances)


def guided_paths(case: Case) -> PathSource:
    """Return guided paths of the exact flow, at their anchors where the case says so."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(8, (PATHS,), generator=generator)
    noise = torch.randn(PATHS, 2, generator=generator)
    condition, times = {"encoder_hidden_states": TOKENS[rows]}, shifted_nodes(16)
    if case.anchor:
        path = anchored_path(
            ring(), noise, times, condition, EMPTY, scale=SCALE, updates=case.anchor, rate=0.3
        )
    else:
        path = teacher_path(Guided(ring(), SCALE, EMPTY), noise, times, condition)
    ends = path[:, [0, -1]]
    return PathSource(ends, (1.0, 0.0), rows, {"encoder_hidden_states": TOKENS}, EMPTY)


def directions(rows: Tensor) -> Float[Tensor, "n 2"]:
    """Return where on the circle each prompt is."""
    angle = (rows + 0.5) * (2 * math.pi / 8)
    return torch.stack([angle.cos(), angle.sin()], 1)
