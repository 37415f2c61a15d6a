"""The networks of a training run: copies of one denoiser, that share what is frozen.

With full weights every trained network is a copy. With LoRA (Hu et al. 2021, arXiv:2106.09685) the
copies share the base's tensors and differ in small factors B A only, so that student, average and
fake together take hardly more memory than the base.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipstep.samplers.distill.flow import Bridge, Condition

__all__ = ["Flow", "add_lora", "average_towards", "copied", "difference", "trained_parameters"]

ADAPTER = "student"


@dataclass(frozen=True)
class Flow:
    """A module seen as a flow through its bridge."""

    module: nn.Module
    bridge: Bridge

    def __call__(
        self,
        x: Float[Tensor, " b *size"],
        t: Float[Tensor, " b"],
        condition: Condition,
        s: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b *size"]:
        """Return the module's v."""
        return self.bridge.velocity(self.module, x, t, condition, s)


def copied(module: nn.Module, *, lora_rank: int) -> nn.Module:
    """Return a copy whose trained parameters are its own: all of them, or new LoRA factors."""
    if lora_rank == 0:
        return copy.deepcopy(module).requires_grad_(True)
    shared = copy.deepcopy(module, {id(p): p for p in module.parameters()})
    return add_lora(shared, lora_rank)


def add_lora(module: nn.Module, rank: int) -> nn.Module:
    """Put LoRA factors beside every linear layer inside a list of blocks; the rest is frozen."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ImportError('LoRA needs peft: pip install "skipstep[distill]"') from None

    blocks = tuple(f"{name}." for name, m in module.named_modules() if isinstance(m, nn.ModuleList))
    inside = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and name.startswith(blocks)
    ]
    if not inside:
        raise ValueError(
            f"{type(module).__name__} has no linear layer inside a list of blocks: train full "
            "weights (lora_rank=0)"
        )
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=inside)
    with_factors: nn.Module = inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    return with_factors


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def average_towards(average: nn.Module, student: nn.Module, share: float) -> None:
    """Move the running mean by `share` of the way to the student."""
    ours, theirs = (
        [p.data for p in trained_parameters(each).values()] for each in (average, student)
    )
    torch._foreach_lerp_(ours, theirs, share)


def difference(trained: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """Return what the trained module adds to the base, fp16, by the base's parameter names.

    With LoRA a weight is `name.lora_A` and `name.lora_B`, whose product is added. Parameters of an
    adapter, which the base has not, are whole.
    """
    found: dict[str, Tensor] = {}
    own = dict(base.named_parameters())
    for name, value in trained_parameters(trained).items():
        if name in own:
            found[name] = (value - own[name]).detach().half().contiguous()
        elif ".lora_" not in name:
            found[name] = value.detach().half().contiguous()
        else:
            layer, _, factor = name.removesuffix(f".{ADAPTER}.weight").rpartition(".")
            found[f"{layer}.weight.{factor}"] = value.detach().half().contiguous()
    return found
