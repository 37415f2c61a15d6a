"""Contrast guidance: away from the untuned model, towards the tuned one.

  v = v_base + w (v_tuned - v_base)                                                             (1)
v_tuned is the denoiser with the LoRA adapters that are active, v_base without them. With an adapter
that was tuned by rewards this is reinforcement learning guidance (Jin et al. 2025, RLG,
arXiv:2508.21016): w > 1 goes further than the tuning did, w < 1 takes some of it back, and the
samples follow the geometric mean p_base^(1 - w) p_tuned^w at every noise level. Each step costs
twice; the same algebra with a worse model as the base is autoguidance.
Both halves of classifier-free guidance are contrasted before they are joined, which is the same,
because both are linear. Differs from the authors' code: no steps are left out at the start.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.plugins.profile import Denoiser, Profile

__all__ = ["Contrast", "contrasted"]

OUTSIDE_ALL = -1


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Contrast:
    """Go further in the direction that active LoRA adapters point to."""

    name: ClassVar[str] = "contrast"
    kind: ClassVar[str] = "guidance"
    summary: ClassVar[str] = "Goes further than a LoRA does (RLG); every step costs twice."
    paper: ClassVar[str] = "Reinforcement Learning Guidance (2508.21016)"

    scale: Annotated[
        float, Field(ge=0, le=10, description="w: 0 is the base, 1 the tuned model")
    ] = 1.6

    def why_not(self, profile: Profile) -> str | None:
        """Return that there is nothing to contrast with, or None."""
        if any(has_adapters(denoiser) for denoiser in profile.denoisers):
            return None
        return (
            "no LoRA adapter is loaded, and the contrast is between the model with and without "
            "one: load it first (load_lora_weights), and do not fuse it"
        )

    def attach(self, site: Any) -> None:
        """Ask every denoiser that has adapters twice."""
        for denoiser in site.profile.denoisers:
            if has_adapters(denoiser):
                ask = functools.partial(self._ask, site, denoiser.inner)
                site.wrap(denoiser.module, ask, OUTSIDE_ALL)

    def _ask(
        self, site: Any, inner: Any, call_next: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if site.run() is None:
            return call_next(*args, **kwargs)
        tuned = call_next(*args, **kwargs)
        inner.disable_adapters()
        try:
            base = call_next(*args, **kwargs)
        finally:
            inner.enable_adapters()
        return contrasted(base, tuned, self.scale)


def has_adapters(denoiser: Denoiser) -> bool:
    """Tell whether a denoiser carries LoRA adapters that can be switched."""
    return bool(getattr(denoiser.inner, "_hf_peft_config_loaded", False))


def contrasted(base: Any, tuned: Any, scale: float) -> Any:
    """Return (1) of two answers of a denoiser: tensors, tuples of them or diffusers' outputs.

    >>> import torch
    >>> contrasted((torch.tensor(1.0),), (torch.tensor(2.0),), 1.5)
    (tensor(2.5000),)
    """
    if isinstance(tuned, Tensor):
        return base + scale * (tuned - base)
    if isinstance(tuned, tuple | list):
        pairs = zip(base, tuned, strict=True)
        return type(tuned)(contrasted(b, t, scale) for b, t in pairs)
    if isinstance(tuned, dict):
        return type(tuned)(**{name: contrasted(base[name], tuned[name], scale) for name in tuned})
    return tuned
