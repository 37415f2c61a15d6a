"""What a pipeline is made of, found from its structure: no pipeline or model is known by name.

A denoiser is a component whose forward takes a timestep. A UNet has `down_blocks` and `up_blocks`;
a DiT has at least one direct child list of two or more equal blocks that contain linear layers.
Refiners and ControlNets are neither.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from skipstep.plugins.run import TIMESTEP_NAMES
from skipstep.plugins.seam import Seam

__all__ = ["Denoiser", "Profile", "profile"]

Kind = Literal["dit", "unet", "other"]


@dataclass(frozen=True)
class Denoiser:
    """Describe one denoiser; `module` is what the pipeline calls, `inner` what it is without
    torch.compile around it.
    """

    name: str
    module: nn.Module
    inner: nn.Module
    kind: Kind
    stacks: tuple[tuple[nn.Module, ...], ...]
    is_video: bool
    is_compiled: bool
    has_compiled_blocks: bool
    is_parallel: bool
    is_quantised: bool
    is_meta: bool
    native_cache: bool
    module_count: int

    @property
    def class_name(self) -> str:
        return type(self.inner).__name__

    def is_current(self, pipe: Any) -> bool:
        """Say whether the pipeline still has this denoiser, in the state described here."""
        now = _states(self.module, self.inner)
        is_same = getattr(pipe, self.name, None) is self.module
        return is_same and all(getattr(self, name) == state for name, state in now.items())


@dataclass(frozen=True)
class Profile:
    """Describe a pipeline: its class name, its denoisers, and the components that turn pictures
    and cameras into a scene, in component order.
    """

    pipeline: str
    denoisers: tuple[Denoiser, ...]
    reconstructors: tuple[tuple[str, nn.Module], ...] = ()

    def why_not_at_all(self) -> str | None:
        """Return why no plugin of a denoiser can work here, in words, or None."""
        if not self.denoisers and self.reconstructors:
            return (
                f"{self.pipeline} makes its result in one forward pass, so there are no steps to "
                "skip, sample or thin out; plugins of kind views can work here (zpressor, lga)"
            )
        if not self.denoisers:
            return f"{self.pipeline} has no denoiser (a module whose forward takes a timestep)"
        for denoiser in self.denoisers:
            if denoiser.is_meta:
                return (
                    f"{denoiser.name} ({denoiser.class_name}) still has meta tensors, so it cannot "
                    "run: "
                    "load its weights first (from_pretrained, or to_empty and load_state_dict)"
                )
        return None


def profile(pipe: Any) -> Profile:
    """Inspect a pipeline; costs one walk over its modules and changes nothing."""
    found, reconstructors = [], []
    for name, component in pipe.components.items():
        if not isinstance(component, nn.Module):
            continue
        if _takes_cameras(component):
            reconstructors.append((name, component))
        inner = getattr(component, "_orig_mod", component)
        if _takes_timestep(inner) and not _is_controlnet(name, inner):
            found.append(_describe(name, component, inner))
    return Profile(type(pipe).__name__, tuple(found), tuple(reconstructors))


def _takes_cameras(module: nn.Module) -> bool:
    """Say whether a module reconstructs: it takes pictures and their intrinsics."""
    return {"pictures", "K"} <= set(inspect.signature(type(module).forward).parameters)


def _takes_timestep(module: nn.Module) -> bool:
    return not set(TIMESTEP_NAMES).isdisjoint(inspect.signature(type(module).forward).parameters)


def _is_controlnet(name: str, module: nn.Module) -> bool:
    """Several ControlNets may stand behind one module, so parts of parts count."""
    parts = (part for path, _ in module.named_modules() for part in path.split("."))
    return name.startswith("controlnet") or any(part.startswith("controlnet_") for part in parts)


def _describe(name: str, module: nn.Module, inner: nn.Module) -> Denoiser:
    stacks = () if _is_unet(inner) else _stacks(inner)
    kind: Kind = "unet" if _is_unet(inner) else "dit" if stacks else "other"
    return Denoiser(
        name=name,
        module=module,
        inner=inner,
        kind=kind,
        stacks=stacks,
        is_video=any(isinstance(m, nn.Conv3d) or "3D" in type(m).__name__ for m in inner.modules()),
        is_quantised=getattr(inner, "hf_quantizer", None) is not None,
        is_meta=_is_meta(inner),
        **_states(module, inner),
    )


def _states(module: nn.Module, inner: nn.Module) -> dict[str, Any]:
    """Return what the user may change at any time; a LoRA puts modules around the ones we know."""
    parts = list(inner.modules())[1:]
    return {
        "module_count": len(parts),
        "is_compiled": module is not inner or _is_compiled(inner),
        "has_compiled_blocks": any(_is_compiled(part) for part in parts),
        "is_parallel": getattr(inner, "_parallel_config", None) is not None,
        "native_cache": bool(getattr(inner, "is_cache_enabled", False)),
    }


def _is_unet(module: nn.Module) -> bool:
    return hasattr(module, "down_blocks") and hasattr(module, "up_blocks")


def _stacks(module: nn.Module) -> tuple[tuple[nn.Module, ...], ...]:
    return tuple(
        tuple(child)
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList)
        and len(child) >= 2
        and len({type(block) for block in child}) == 1
        and any(isinstance(m, nn.Linear) for m in child[0].modules())
        and "refiner" not in name
    )


def _is_compiled(module: nn.Module) -> bool:
    slot = getattr(module, "_compiled_call_impl", None)
    return (
        getattr(slot, "previous", None) is not None if isinstance(slot, Seam) else slot is not None
    )


def _is_meta(module: nn.Module) -> bool:
    offloaded = any(hasattr(m, "_hf_hook") for m in module.modules())
    return not offloaded and any(p.device == torch.device("meta") for p in module.parameters())


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the forward's positional parameters, without self."""
    return tuple(inspect.signature(type(module).forward).parameters)[1:]
