"""Examine an installation: versions, devices, extras, the seam, the plugins, the weights."""

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Literal

__all__ = ["Finding", "examine"]

CORE = (
    "skipstep",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "pydantic",
    "safetensors",
    "torchmetrics",
)
WEIGHTS = ("text", "features", "autoencoder", "denoiser", "alignment")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. "absent" is fine until you need it; "broken" is not."""

    what: str
    state: Literal["ok", "absent", "broken"]
    detail: str


def examine() -> Iterator[Finding]:
    """Look at everything in turn, cheapest first; nothing is downloaded and no model is run."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()}")
    for name in CORE:
        yield version(name, needed=True)
    yield from devices()
    yield from extras()
    yield seam()
    yield catalogue()
    yield reference()


def version(name: str, *, needed: bool) -> Finding:
    """Look up the version of an installed distribution."""
    try:
        return Finding(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        if name == "skipstep":
            return Finding(name, "absent", "used from its sources: pip install -e . in its folder")
        return Finding(name, "broken" if needed else "absent", f"pip install {name}")


def devices() -> Iterator[Finding]:
    """Look at what torch can compute on."""
    import torch

    yield Finding("cpu", "ok", f"{torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Finding("cuda", "absent", "torch sees no CUDA GPU: pipelines run on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        memory = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        yield Finding(f"cuda:{index}", "ok", f"{torch.cuda.get_device_name(index)}, {memory}")


def extras() -> Iterator[Finding]:
    """Look at the optional dependencies that the package declares, one finding an extra."""
    try:
        declared = metadata.requires("skipstep") or []
    except metadata.PackageNotFoundError:
        return
    wanted: dict[str, list[str]] = {}
    for requirement in declared:
        match = re.match(r"([\w.-]+).*extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if match is not None:
            wanted.setdefault(match[2], []).append(match[1])
    for extra, names in wanted.items():
        found = [version(name, needed=False) for name in names]
        missing = [finding.what for finding in found if finding.state != "ok"]
        if missing:
            cure = f'pip install "skipstep[{extra}]" (missing: {", ".join(missing)})'
            yield Finding(f"extra {extra}", "absent", cure)
        else:
            have = ", ".join(f"{finding.what} {finding.detail}" for finding in found)
            yield Finding(f"extra {extra}", "ok", have)


def seam() -> Finding:
    """Test that torch's module call still behaves as the plugins' way in expects."""
    from skipstep.plugins.seam import call_slot_works

    if call_slot_works():
        return Finding("seam", "ok", "torch's call slot works as expected")
    return Finding(
        "seam",
        "absent",
        "torch's call slot has changed: plugins wrap forward() instead; enable them after offload "
        "and disable them before copying a pipeline",
    )


def catalogue() -> Finding:
    """Import every plugin of the catalogue."""
    from skipstep.plugins import catalog
    from skipstep.plugins.errors import PluginError

    names, broken = catalog.names(), []
    for name in names:
        try:
            catalog.load(name)
        except PluginError as error:
            broken.append(str(error))
    if broken:
        return Finding("plugins", "broken", "; ".join(broken))
    return Finding("plugins", "ok", f"{len(names)}: {', '.join(names)}")


def reference() -> Finding:
    """Look for the weights of the reference model; loading them checks their content."""
    folder = resources.files("skipstep.pipelines").joinpath("reference/weights")
    missing = [name for name in WEIGHTS if not folder.joinpath(f"{name}-v1.safetensors").is_file()]
    if missing:
        return Finding(
            "reference model",
            "broken",
            f"weights missing: {', '.join(missing)}; reinstall skipstep with its package data",
        )
    size = sum(len(folder.joinpath(f"{name}-v1.safetensors").read_bytes()) for name in WEIGHTS)
    return Finding("reference model", "ok", f"{size / 2**20:.0f} MiB of weights")
