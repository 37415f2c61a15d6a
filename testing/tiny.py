"""What a tiny pipeline is: the object, the call that runs it, and what a test needs to know."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

__all__ = ["Guidance", "Tiny", "random_model", "seeded"]

Guidance = Literal["batched", "sequential", "distilled"]
Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True)
class Tiny:
    """Hold a small randomly initialised pipeline and the arguments that run it.

    `denoiser` is the attribute that holds the denoising network. `guidance` says how the two halves
    of classifier-free guidance reach it: "batched" (one call with twice the rows), "sequential"
    (two calls per step) or "distilled" (one call, the guidance scale is an input).
    `prompt_argument` is the argument that says what to make; `prompts` are different values for it.
    """

    pipe: Any
    call: dict[str, Any]
    denoiser: str
    guidance: Guidance
    prompt_argument: str = "prompt"
    prompts: tuple[Any, ...] = ("a red fox", "two birds", "city", "an old clock")


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Start random numbers from `seed` in the block; leave the caller's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def random_model(model: type[Module], *args: Any, **config: Any) -> Module:
    """Build a module with weights that depend on its configuration alone, in evaluation mode."""
    with seeded():
        return model(*args, **config).eval()
