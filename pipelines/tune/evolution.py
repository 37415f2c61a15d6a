"""NSGA-II over genomes of bits, with two losses to minimise: optuna's sampler around one function.

Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II". Crossover takes
each bit from either parent, mutation draws a bit anew with probability 1 / bits. A genome that was
seen is not run again, and the search ends when so many genomes, or no new ones, have come up.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from skipstep.plugins.errors import PluginError

__all__ = ["Genome", "check_search", "evolve"]

Genome = tuple[bool, ...]
Found = TypeVar("Found")

STALE = 5
"""So many generations without a new genome end the search."""


def check_search(what: str, *, trials: int, population: int, prompts: int) -> None:
    """Raise PluginError for a search that cannot run, or where optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise PluginError(f'{what} needs optuna: pip install "skipstep[tune]"') from error
    if trials < 1 or population < 2 or prompts < 1:
        raise PluginError(
            f"{what}: trials={trials}, population={population}, {prompts} prompts is not allowed: "
            "at least 1, 2 and 1"
        )


def evolve(
    names: Sequence[str],
    first: Sequence[Genome],
    run: Callable[[Genome], Found],
    losses: Callable[[Found], tuple[float, float]],
    *,
    trials: int,
    population: int,
    seed: int = 0,
) -> dict[Genome, Found]:
    """Return what `run` found for every genome that was tried, in order; `first` are tried first.

    Args:
        names: of the bits, each once.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.NSGAIISampler(population_size=population, seed=seed),
    )
    for genome in first:
        study.enqueue_trial(dict(zip(names, genome, strict=True)))
    tried: dict[Genome, Found] = {}
    in_vain = 0
    while len(tried) < trials and in_vain < STALE * population:
        trial = study.ask()
        genome = tuple(bool(trial.suggest_categorical(name, [False, True])) for name in names)
        in_vain = in_vain + 1 if genome in tried else 0
        if genome not in tried:
            tried[genome] = run(genome)
        study.tell(trial, losses(tried[genome]))
    return tried
