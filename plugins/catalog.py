"""The catalogue of plugins: names, and where the class of each name lives.

One table of our own, joined with the entry points of group `skipstep.plugins` that other packages
declare, both in the form "package.module:Class". Nothing is imported before a plugin is asked for.
"""

import dataclasses
import functools
import importlib
import re
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from skipstep.plugins.errors import PluginError, UnknownPlugin
from skipstep.plugins.spelling import suggest

__all__ = ["BUILTIN", "GROUP", "Entry", "check_class", "entries", "load", "names"]

GROUP = "skipstep.plugins"

BUILTIN: dict[str, str] = {
    "abcache": "skipstep.caching.abcache:ABCache",
    "accelerated_ddpm": "skipstep.samplers.solvers.accelerated_ddpm:AcceleratedDDPM",
    "adacache": "skipstep.caching.adacache:AdaCache",
    "asa": "skipstep.plugins.attention.methods.asa:ASA",
    "block_sparse": "skipstep.plugins.attention.block_sparse:BlockSparse",
    "cache": "skipstep.caching.product:Cache",
    "calibrated": "skipstep.samplers.solvers.calibrated:Calibrated",
    "cfgcache": "skipstep.caching.cfgcache:CFGCache",
    "clusca": "skipstep.caching.clusca:ClusCa",
    "contrast": "skipstep.plugins.contrast:Contrast",
    "dbcache": "skipstep.caching.dbcache:DBCache",
    "deepcache": "skipstep.caching.deepcache:DeepCache",
    "deltadit": "skipstep.caching.deltadit:DeltaDiT",
    "dicache": "skipstep.caching.dicache:DiCache",
    "draft": "skipstep.plugins.attention.methods.draft:Draft",
    "duca": "skipstep.caching.duca:DuCa",
    "easycache": "skipstep.caching.easycache:EasyCache",
    "ecad": "skipstep.caching.ecad:ECAD",
    "evit": "skipstep.plugins.tokens.evit:EViT",
    "fastercache": "skipstep.caching.fastercache:FasterCache",
    "fbcache": "skipstep.caching.fbcache:FBCache",
    "few_step": "skipstep.plugins.few_step:FewStep",
    "flexprefill": "skipstep.plugins.attention.methods.flexprefill:FlexPrefill",
    "foca": "skipstep.caching.foca:FoCa",
    "foresight": "skipstep.caching.foresight:Foresight",
    "fora": "skipstep.caching.fora:FORA",
    "freqca": "skipstep.caching.freqca:FreqCa",
    "hicache": "skipstep.caching.hicache:HiCache",
    "hicachepp": "skipstep.caching.hicachepp:HiCachePP",
    "hip": "skipstep.plugins.attention.methods.hip:HiP",
    "lga": "skipstep.plugins.views.lga:LongRangeGroups",
    "magcache": "skipstep.caching.magcache:MagCache",
    "minference": "skipstep.plugins.attention.methods.minference:MInference",
    "mminference": "skipstep.plugins.attention.methods.grid_permutation:GridPermutation",
    "nabla": "skipstep.plugins.attention.methods.nabla:Nabla",
    "pab": "skipstep.caching.pab:PAB",
    "quantized": "skipstep.plugins.attention.methods.quantized:Quantized",
    "radial": "skipstep.plugins.attention.methods.radial:Radial",
    "recycled": "skipstep.plugins.attention.methods.recycled:Recycled",
    "scheduler": "skipstep.samplers.scheduler:Scheduler",
    "seacache": "skipstep.caching.seacache:SeaCache",
    "solver": "skipstep.samplers.solvers.solver:Solver",
    "sparge": "skipstep.plugins.attention.methods.sparge:Sparge",
    "spatten": "skipstep.plugins.tokens.spatten:SpAtten",
    "speca": "skipstep.caching.speca:SpeCa",
    "spectrum": "skipstep.caching.spectrum:Spectrum",
    "sta": "skipstep.plugins.attention.methods.sta:SlidingTile",
    "svg1": "skipstep.plugins.attention.methods.svg1:SVG1",
    "svg2": "skipstep.plugins.attention.methods.svg2:SVG2",
    "taylorseer": "skipstep.caching.taylorseer:TaylorSeer",
    "teacache": "skipstep.caching.teacache:TeaCache",
    "textkv": "skipstep.caching.textkv:TextKV",
    "tgate": "skipstep.caching.tgate:TGate",
    "toca": "skipstep.caching.toca:ToCa",
    "tome": "skipstep.plugins.tokens.tome:ToMe",
    "vsa": "skipstep.plugins.attention.methods.vsa:VSA",
    "xattention": "skipstep.plugins.attention.methods.xattention:XAttention",
    "zipvl": "skipstep.plugins.tokens.zipvl:ZipVL",
    "zpressor": "skipstep.plugins.views.zpressor:ZPressor",
}

NAME = re.compile(r"[a-z][a-z0-9_]*")
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
ROOT = Path(__file__).resolve().parents[1]
CLASS_TEXTS = ("name", "kind", "summary", "paper")


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue: a name, where its class is, and the distribution that says so."""

    name: str
    target: str
    owner: str


@functools.lru_cache(maxsize=1)
def third_party_entries(path: tuple[str, ...]) -> tuple[Entry, ...]:
    """List what distributions on `path` declare; warn about each declaration that is broken.

    Reading the metadata of a hundred distributions takes tens of milliseconds, so it is kept.
    """
    found = []
    seen = set()
    for distribution in metadata.distributions(path=list(path)):
        owner = distribution.name
        key = re.sub(r"[-_.]+", "-", owner or "").lower()
        if not owner or key in seen:
            continue  # the first one on sys.path is the one that Python imports
        seen.add(key)
        try:
            points = distribution.entry_points.select(group=GROUP)
        # Someone else's metadata can be broken in any way, and must not take our plugins down.
        except Exception as error:
            warn(owner, f"its entry points cannot be read ({error})")
            continue
        for point in points:
            if not NAME.fullmatch(point.name):
                warn(owner, f"plugin {point.name!r}: a name is lower-case letters, digits and _")
            elif not TARGET.fullmatch(point.value.replace(" ", "")):
                warn(owner, f"plugin {point.name!r}: {point.value!r} is not 'module:Class'")
            else:
                found.append(Entry(point.name, point.value.replace(" ", ""), owner))
    return tuple(found)


def warn(owner: str, problem: str) -> None:
    """Tell about a distribution that declares a plugin wrongly."""
    warnings.warn(
        f"distribution {owner!r} declares skipstep plugins wrongly and they are left out: "
        f"{problem}. Update or uninstall {owner}",
        stacklevel=2,
    )


def entries() -> dict[str, list[Entry]]:
    """List the catalogue by name without importing a plugin; a name that two owners use has two."""
    table: dict[str, list[Entry]] = {}
    ours = [Entry(name, target, "skipstep") for name, target in BUILTIN.items()]
    for entry in (*ours, *third_party_entries(tuple(sys.path))):
        owners = table.setdefault(entry.name, [])
        if entry not in owners:
            owners.append(entry)
    return table


def names() -> list[str]:
    """List the names of all plugins in alphabetical order; no plugin is imported."""
    return sorted(entries())


def load(name: str) -> type[Any]:
    """Import and check the class of a plugin.

    Raises:
        UnknownPlugin: if no plugin has this name.
        PluginError: if two distributions use the name, or if the class does not load.
    """
    table = entries()
    if name not in table:
        third_party_entries.cache_clear()  # it may have been installed since
        table = entries()
    if name not in table:
        raise UnknownPlugin(unknown_plugin(name, list(table)))
    first, *others = table[name]
    if others:
        owners = " and ".join(repr(entry.owner) for entry in table[name])
        raise PluginError(
            f"plugin {name!r} is declared by {owners}: a name has one owner. Uninstall one of "
            f"them, or pass an options object: {first.target.replace(':', '.')}(...)"
        )
    module, _, attribute = first.target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    # Importing someone's module runs someone's code, which can raise anything.
    except Exception as error:
        cure = "This is a fault of skipstep" if first.owner == "skipstep" else "Update or uninstall"
        raise PluginError(
            f"plugin {name!r} of distribution {first.owner!r} does not load from {first.target}: "
            f"{type(error).__name__}: {error}. {cure}"
            + ("" if first.owner == "skipstep" else f" {first.owner}")
        ) from error
    plugin = check_class(found)
    if plugin.name != name:
        raise PluginError(
            f"plugin {name!r} of distribution {first.owner!r}: {first.target} calls itself "
            f"{plugin.name!r}. Its class variable `name` and its entry point must agree"
        )
    return plugin


def unknown_plugin(name: str, known: list[str]) -> str:
    """Write the message about a name that no plugin has."""
    choice = suggest(name, known)
    hint = f": did you mean {choice!r}?" if choice else ""
    return f"unknown plugin {name!r}{hint} ({len(known)} available: pipe.list_plugins())"


def check_class(found: object) -> type[Any]:
    """Return a class of plugins, or say what it lacks.

    Raises:
        PluginError: if it is no frozen pydantic dataclass, lacks one of the class variables name,
            kind, summary and paper, or was imported a second time under another name.
    """
    from pydantic.dataclasses import is_pydantic_dataclass

    if not isinstance(found, type):
        raise PluginError(f"{found!r} is not a class: a plugin is a frozen pydantic dataclass")
    where = f"{found.__module__}.{found.__qualname__}"
    check_module(found.__module__, where)
    parameters = getattr(found, "__dataclass_params__", None)
    if not is_pydantic_dataclass(found) or not (parameters and parameters.frozen):
        raise PluginError(
            f"{where} is not a frozen pydantic dataclass: decorate it with "
            "@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, "
            'config=ConfigDict(extra="forbid"))'
        )
    fields = {field.name for field in dataclasses.fields(found)}
    for text in CLASS_TEXTS:
        if text in fields or not isinstance(getattr(found, text, None), str):
            raise PluginError(
                f"{where} has no class variable {text!r}: add `{text}: ClassVar[str] = ...` "
                f"(a plugin has {', '.join(CLASS_TEXTS)})"
            )
    if not NAME.fullmatch(found.name):  # type: ignore[attr-defined]
        raise PluginError(
            f"{where} is named {found.name!r}: "  # type: ignore[attr-defined]
            "a name is lower-case letters, digits and _"
        )
    return found


def check_module(module: str, where: str) -> None:
    """Refuse a class of ours that was imported from the repository root instead of `skipstep`.

    Python would then hold two classes of the same name, and an object of one is none of the other.
    """
    file = getattr(sys.modules.get(module), "__file__", None)
    package = module.partition(".")[0]
    if package == "skipstep" or not file or package == "tests":
        return
    if Path(file).resolve().is_relative_to(ROOT / package):
        raise PluginError(
            f"{where} was imported under a second name: its name is skipstep.{where}. Is the "
            "repository root on sys.path? Import from skipstep instead"
        )
