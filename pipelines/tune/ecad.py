"""Evolve a plan of modules on real runs (ECAD): which modules to compute at which step.

"Evolutionary Caching to Accelerate Your Off-the-Shelf Diffusion Model", Aggarwal, Shrivastava,
Gwilliam 2025 (arXiv:2506.15682). The genome is S in {0, 1}^(T x B x C), the losses are work and
distance to the uncached pictures, and NSGA-II finds the front between them. The first generation is
what others do by rule: every N-th step (FORA), cross-attention frozen after a share of the run
(T-GATE), attention kinds at their own rhythms (PAB), and those with every tenth bit turned.

A trial is a run of all prompts, and the genome has hundreds of bits: this is for a model that will
run often. Judge the result on prompts it was not evolved on.

Differs from the authors' code: feature distance to the uncached pictures instead of ImageReward;
uniform instead of k-point crossover; NSGA-II is optuna's; what is computed in the first step is not
searched, it is everything.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skipstep.caching.ecad import ECAD
from skipstep.caching.spans.planned import ModulePlan, whole_plan
from skipstep.pipelines.compare.run import bare, silent
from skipstep.pipelines.progress import Progress
from skipstep.pipelines.tune.evolution import Genome, check_search, evolve
from skipstep.pipelines.tune.trial import Outcome, Trier
from skipstep.plugins.errors import Incompatible, PluginError
from skipstep.plugins.fingerprint import bound_call, fingerprint, of_the_call
from skipstep.plugins.profile import profile

__all__ = ["Evolved", "evolve_plan", "first_generation", "genome_of", "plan_of"]

Tried = tuple[ECAD, Outcome]


@dataclass(frozen=True)
class Evolved:
    """Every plan that was tried, with its outcome on the prompts."""

    tried: list[Tried]

    @property
    def front(self) -> list[Tried]:
        """Return what nothing beats in both work and feature distance, by rising work."""
        front: list[Tried] = []
        for each in sorted(self.tried, key=lambda pair: (pair[1].work, pair[1].distance)):
            if not front or each[1].distance < front[-1][1].distance:
                front.append(each)
        return front

    def best(self, fraction: float) -> Tried:
        """Return the closest plan of at most this share of the work; raises PluginError if none."""
        cheap = [pair for pair in self.tried if pair[1].work <= fraction]
        if not cheap:
            least = min(pair[1].work for pair in self.tried)
            raise PluginError(
                f"no plan does at most {fraction:.0%} of the work, the least is {least:.0%}: allow "
                "more, or evolve longer"
            )
        return min(cheap, key=lambda pair: pair[1].distance)


def genome_of(plan: ModulePlan) -> Genome:
    """Return the bits behind the first step: steps, then components, then blocks."""
    return tuple(bit == "1" for row in plan.compute[1:] for bits in row for bit in bits)


def plan_of(genome: Genome, whole: ModulePlan) -> ModulePlan:
    """Return the plan of these bits, for the steps, components and blocks of `whole`."""
    bits = iter(genome)
    rows = tuple(
        tuple("".join(str(int(next(bits))) for _ in range(whole.blocks)) for _ in whole.components)
        for _ in range(1, whole.steps)
    )
    return replace(whole, compute=(whole.compute[0], *rows))


def rule(whole: ModulePlan, computes: Callable[[int, str, int], bool]) -> Genome:
    """Return the genome of a rule that is given step, component and block."""
    return tuple(
        computes(step, component, block)
        for step in range(1, whole.steps)
        for component in whole.components
        for block in range(whole.blocks)
    )


def first_generation(whole: ModulePlan, population: int, seed: int) -> list[Genome]:
    """Return the rules' genomes, and turned copies of them up to `population`."""
    warm = max(1, round(0.15 * whole.steps))
    rhythm = {"attention": 2, "temporal_attention": 3, "cross_attention": 5, "feed_forward": 1}
    rules = [
        *(
            rule(whole, lambda i, c, b, n=n: i < warm or (i - warm + 1) % n == 0)  # type: ignore[misc]
            for n in (2, 3, 4)
        ),
        rule(whole, lambda i, c, b: c != "cross_attention" or i < 0.4 * whole.steps),
        rule(whole, lambda i, c, b: i < warm or i % rhythm[c] == 0),
        # Front and rear blocks in turn.
        rule(whole, lambda i, c, b: i < warm or (2 * b < whole.blocks) == (i % 2 == 0)),
    ]
    dice = random.Random(seed)
    turned = [
        tuple(bit != (dice.random() < 0.1) for bit in rules[number % len(rules)])
        for number in range(max(0, population - len(rules)))
    ]
    return list(dict.fromkeys([*rules, *turned]))


def evolve_plan(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    steps: int = 20,
    fraction: float | None = None,
    first: Iterable[ModulePlan] = (),
    trials: int = 200,
    population: int = 24,
    path: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **call: Any,
) -> Evolved:
    """Evolve plans for a pipeline; prompt i is made from seed + i.

    Args:
        fraction: share of the work that the plan saved at `path` may do; None is half.
        first: plans to begin with, besides the rules.
        path: where to save the closest plan of that work, for enable_plugin("ecad", plan=path).
        progress: called with the plans tried, the plans in all and what runs.
        call: goes to the pipeline: guidance_scale, height, width, ...

    Raises PluginError for unusable arguments and where optuna is not installed.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    check_search("evolve_plan", trials=trials, population=population, prompts=len(prompts))
    if steps < 2:
        raise PluginError(f"evolve_plan: steps={steps} is not allowed: must be 2 or more")
    denoisers = profile(pipe).denoisers
    if len(denoisers) != 1:
        raise Incompatible(
            f"evolve_plan: {type(pipe).__name__} has {len(denoisers)} denoisers, and a plan is for "
            "one: use skipstep.plan_cache"
        )
    try:
        whole = whole_plan(denoisers[0], steps)
    except ValueError as error:
        raise Incompatible(f"evolve_plan: {error}") from None
    made_for = fingerprint(pipe, steps=steps, **of_the_call(bound_call(pipe, call)))
    whole = replace(whole, fingerprint=made_for)
    trier = Trier(pipe, prompts, range(seed, seed + len(prompts)), steps, call)
    done: list[ECAD] = []

    def run(genome: Genome) -> Tried:
        done.append(ECAD(plan=plan_of(genome, whole)))
        if progress is not None:
            progress(len(done) - 1, trials, f"{sum(genome) / len(genome):.0%} of the modules")
        return done[-1], trier.run([done[-1]])

    names = [
        f"{step} {component} {block}"
        for step in range(1, steps)
        for component in whole.components
        for block in range(whole.blocks)
    ]
    begin = [genome_of(plan) for plan in first] + first_generation(whole, population, seed)
    with silent(pipe), bare(pipe):
        tried = evolve(
            names,
            begin,
            run,
            lambda pair: (pair[1].work, pair[1].distance),
            trials=trials,
            population=population,
            seed=seed,
        )
    found = Evolved(list(tried.values()))
    if path is not None:
        plan = found.best(0.5 if fraction is None else fraction)[0].plan
        assert plan is not None
        plan.save(path)
    return found
