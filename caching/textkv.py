"""Text key/value reuse: project the prompt once per run and branch instead of at every step.

Cross-attention computes k = W_k e and v = W_v e from the text e at every step and in every block,
and e never changes during a run. The same holds for the projections of e in front of the blocks.
Each is computed once and handed out again: the picture is the same to the bit. It saves little on
large pictures and short prompts and much on small pictures, single frames and long prompts; it does
nothing for models without cross-attention, whose text takes part in every block.

That an input is the same is seen by identity: the same memory, shape, strides and torch version
counter as before, with the tensor held so that its memory cannot be given to another. Constant is
what the pipeline hands to the denoiser beside the noisy picture and the time, and what was computed
from constants alone.

Nothing differs from a published method: this is common sense, known to every text decoder as a
KV cache.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import pydantic
import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from skipstep.caching.passes import Target
from skipstep.caching.spans.modules import kind_of

__all__ = ["TextKV", "identity", "reusable_modules"]

Identity = tuple[Any, ...]


def identity(x: Tensor) -> Identity | None:
    """Return what tells a tensor's content apart while it is held, or None if nothing can.

    A view of the same memory has the same identity; writing into it changes the identity of all.
    """
    if x.is_inference() or x.layout != torch.strided:
        return None
    return x.data_ptr(), tuple(x.shape), x.stride(), x.dtype, x.device, x._version


def reusable_modules(target: Target) -> Iterator[nn.Module]:
    """List the linear layers of all cross-attentions, and the modules in front of the blocks."""
    blocks = {"down_blocks", "mid_block", "up_blocks"}
    inside = {id(m) for stack in target.stacks for block in stack for m in block.modules()}
    for name, child in target.inner.named_children():
        for module in child.modules():
            is_lone = id(module) not in inside and name not in blocks
            has_weights = next(module.parameters(), None) is not None
            if is_lone and has_weights and not isinstance(module, nn.ModuleList):
                yield module
    for parent in target.inner.modules():
        for name, child in parent.named_children():
            if kind_of(name, child) == "cross_attention":
                yield from (m for m in child.modules() if isinstance(m, nn.Linear))


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TextKV:
    """Compute what depends on the prompt alone once per run and branch."""

    name: ClassVar[str] = "textkv"
    kind: ClassVar[str] = "constants"
    summary: ClassVar[str] = "Projects the prompt once per run, with the same picture to the bit."
    paper: ClassVar[str] = ""

    entries: Annotated[
        int,
        Field(ge=1, le=64, description="Different inputs remembered per layer: one per branch."),
    ] = 4

    def why_not(self, target: Target) -> str | None:
        """Return why this denoiser has nothing to reuse, or None."""
        if not any(
            kind_of(name, child) == "cross_attention"
            for parent in target.inner.modules()
            for name, child in parent.named_children()
        ):
            return (
                f"{target.class_name} has no cross-attention: its text takes part in every block "
                "and changes from step to step"
            )
        return None
