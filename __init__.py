"""skipstep: the same picture for less work, on any diffusers pipeline.

import skipstep                                    # adds the verbs to every pipeline
pipe = skipstep.load_reference()
pipe.enable_plugin("easycache", threshold=0.08)
image = pipe("a pizza, 3d style, on a blue background").images[0]
print(pipe.plugin_report())
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from skipstep.plugins.verbs import install as _install

if TYPE_CHECKING:
    from skipstep.pipelines.compare.comparison import Comparison
    from skipstep.pipelines.tune.tuning import Tuning
    from skipstep.plugins.lifecycle import Handle
    from skipstep.samplers.search.sampler import Found

__version__ = "0.1.0"

_LAZY = {
    "ABCache": "skipstep.caching.abcache",
    "AdaCache": "skipstep.caching.adacache",
    "Calibrated": "skipstep.samplers.solvers.calibrated",
    "Cache": "skipstep.caching.product",
    "ClusCa": "skipstep.caching.clusca",
    "DBCache": "skipstep.caching.dbcache",
    "DeepCache": "skipstep.caching.deepcache",
    "DiCache": "skipstep.caching.dicache",
    "ECAD": "skipstep.caching.ecad",
    "EasyCache": "skipstep.caching.easycache",
    "FBCache": "skipstep.caching.fbcache",
    "FORA": "skipstep.caching.fora",
    "FasterCache": "skipstep.caching.fastercache",
    "FoCa": "skipstep.caching.foca",
    "Foresight": "skipstep.caching.foresight",
    "FreqCa": "skipstep.caching.freqca",
    "HiCache": "skipstep.caching.hicache",
    "HiCachePP": "skipstep.caching.hicachepp",
    "MagCache": "skipstep.caching.magcache",
    "Spectrum": "skipstep.caching.spectrum",
    "PAB": "skipstep.caching.pab",
    "SeaCache": "skipstep.caching.seacache",
    "SpeCa": "skipstep.caching.speca",
    "TaylorSeer": "skipstep.caching.taylorseer",
    "TGate": "skipstep.caching.tgate",
    "TeaCache": "skipstep.caching.teacache",
    "ToCa": "skipstep.caching.toca",
    "Scheduler": "skipstep.samplers.scheduler",
    "Solver": "skipstep.samplers.solvers.solver",
    "ExponentialAdamsScheduler": "skipstep.samplers.solvers.scheduler",
    "PluginError": "skipstep.plugins.errors",
    "Report": "skipstep.plugins.report",
    "autotune": "skipstep.pipelines.tune.autotune",
    "calibrate_magcache": "skipstep.pipelines.tune.calibrate",
    "calibrate_quantized": "skipstep.pipelines.tune.calibrate",
    "calibrate_solver": "skipstep.pipelines.tune.calibrate_solver",
    "calibrate_teacache": "skipstep.pipelines.tune.calibrate",
    "compare": "skipstep.pipelines.compare.run",
    "evolve_plan": "skipstep.pipelines.tune.ecad",
    "load_reference": "skipstep.pipelines.reference",
    "plan_cache": "skipstep.pipelines.tune.plan",
    "search": "skipstep.pipelines.search",
}

__all__ = ["__version__", "enable", *_LAZY]


def enable(pipe: Any, plugin: Any, *, replace: bool = False, **options: Any) -> "Handle":
    """Switch a plugin on: the typed twin of `pipe.enable_plugin`, as a function."""
    from skipstep.plugins.verbs import enable_plugin

    return enable_plugin(pipe, plugin, replace=replace, **options)


def _compare(self: Any, prompts: Sequence[Any], arms: Any = None, **options: Any) -> "Comparison":
    """Run every arm and the uncached pipeline on the same prompts and seeds: `skipstep.compare`."""
    from skipstep.pipelines.compare.run import compare

    return compare(self, prompts, arms, **options)


def _autotune(self: Any, prompts: Sequence[Any] | None = None, **options: Any) -> "Tuning":
    """Find and enable the recipe that meets a target: `skipstep.autotune`."""
    from skipstep.pipelines.tune.autotune import autotune

    return autotune(self, prompts, **options)


def _search(self: Any, prompt: Any, **options: Any) -> "Found":
    """Make several pictures of one prompt and return the best first: `skipstep.search`."""
    from skipstep.pipelines.search import search

    return search(self, prompt, **options)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'skipstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


_install(autotune=_autotune, compare=_compare, search=_search)
