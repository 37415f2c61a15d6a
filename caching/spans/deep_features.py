"""The deep features of a UNet (DeepCache, Ma et al. 2024, arXiv:2312.00858), at the granularity of
its blocks.

On a skip the first down-block and the last up-block run; the last up-block receives from below what
was stored: U_hat = forecast(U), U = output of the last but one up-block. The blocks in between hand
on zeros of the right shape, which nothing reads, so U is all that is held.

Differs from the authors' code: the branch is always the shallowest whole block (their branch id
picks a layer in it).
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field
from torch import nn

from skipstep.caching.base import Gate, Span, front_of
from skipstep.caching.passes import Pass, Place, Target
from skipstep.caching.tree import map_tensors, tensors_in

__all__ = ["DeepFeatures"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DeepFeatures(Span):
    """Cache what the outermost up-block of a UNet receives from below."""

    type: Annotated[Literal["deep_features"], Field(description="Tag of this span.")] = (
        "deep_features"
    )

    def why_not(self, target: Target, gate: Gate[Any]) -> str | None:
        """Return why this denoiser has no deep features, or None."""
        if target.kind != "unet":
            return f"{target.class_name} is not a UNet; use span 'residual' or 'output'"
        if gate.looks_at == "modulated" or front_of(gate) > 1:
            return (
                f"gate {gate.type!r} needs a chain of transformer blocks, and "
                f"{target.class_name} has none"
            )
        if len(_inner_blocks(target)) < 2:
            return f"{target.class_name} has a single level, so it has no deep features"
        return None

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return the first down-block and everything below it, in execution order."""
        inner = _inner_blocks(target)
        lead = [(target.inner.get_submodule("down_blocks.0"), Place(0, 0, False, True))]
        return lead + [
            (block, Place(0, j + 1, j == len(inner) - 1)) for j, block in enumerate(inner)
        ]

    def full_work(self, target: Target) -> float:
        """Count the blocks that can be skipped, the lead block included."""
        return float(len(_inner_blocks(target)) + 1)

    def visit(
        self,
        place: Place,
        pass_: Pass,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run or replay one block."""
        if place.is_watched:
            if pass_.lead is not None:
                return pass_.lead
            output = pass_.run(call_next, args, kwargs)
            if pass_.watches_first_block:
                signal = tensors_in(output)[0]
                if pass_.mode == "probe":
                    pass_.decide_on(signal, output)
                pass_.signal = signal
            return output
        if pass_.mode == "skip":
            pass_.spare(place)
            return self._replay(place, pass_)
        output = pass_.run(call_next, args, kwargs)
        pass_.remember_shape(place, output)
        if place.is_last:
            feature = tensors_in(output)[0]
            pass_.keep("deep", feature)
            pass_.feature = feature
        return output

    def _replay(self, place: Place, pass_: Pass) -> Any:
        if not place.is_last:
            return pass_.placeholder(place)
        values = iter([pass_.guess("deep")])
        return map_tensors(pass_.placeholder(place), lambda empty: next(values, empty))


def _inner_blocks(target: Target) -> list[nn.Module]:
    """Return the blocks between the first down-block and the last up-block, in execution order."""
    children = dict(target.inner.named_children())
    down, up = list(children["down_blocks"].children()), list(children["up_blocks"].children())
    middle = [children["mid_block"]] if isinstance(children.get("mid_block"), nn.Module) else []
    return [*down[1:], *middle, *up[:-1]]
