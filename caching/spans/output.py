"""The whole denoiser output as the skipped part: nothing inside the model runs on a skip.

v_hat = forecast of v, or with `delta` of v - x, to which the current input x is added (EasyCache,
arXiv:2507.02860). Where v and x differ in shape (learned variances, conditioning channels) v itself
is forecast and the report says so.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field
from torch import nn

from skipstep.caching.base import Gate, Span, decides_inside
from skipstep.caching.passes import Pass, Target

__all__ = ["Output", "WholeCall", "first_block_refusal"]


class WholeCall(Span):
    """A span of the denoiser's whole call: it wraps nothing inside the model."""

    def why_not(self, target: Target, gate: Gate[Any]) -> str | None:
        """Return why the output cannot be cached under this gate, or None."""
        return first_block_refusal(gate) if decides_inside(gate) else None

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return no place inside the model."""
        return []

    def full_work(self, target: Target) -> float:
        """Count the blocks of an uncached call; a model without stacks counts as one."""
        return float(sum(len(stack) for stack in target.stacks)) or 1.0

    def visit(
        self,
        place: Any,
        pass_: Pass,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run the call: this span wraps nothing inside the model."""
        return call_next(*args, **kwargs)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Output(WholeCall):
    """Cache what the denoiser returns."""

    type: Annotated[Literal["output"], Field(description="Tag of this span.")] = "output"
    delta: Annotated[
        bool, Field(description="Cache output minus input instead of the output itself.")
    ] = False


def first_block_refusal(gate: Gate[Any]) -> str:
    """Say why a gate that looks at the first block cannot stand in front of the whole output."""
    return (
        f"gate {gate.type!r} decides in or behind the first block, which the output span skips: "
        "use span 'residual', or a gate that looks at the input ('easycache') or the step "
        "('interval')"
    )
