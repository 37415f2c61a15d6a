"""SpeedUpNet's adapter in a pipeline: guidance's two halves become one pass.

A pipeline that guides gives its denoiser two halves of rows, without and with the prompt. Here half
of them go in, with both prompts' tokens one after the other, and the answer is given to both
halves: guidance of any scale between two equal answers is that answer. So a call's negative prompt
arrives as always, and no pipeline is known by name.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from skipstep.plugins.errors import Incompatible
from skipstep.plugins.fingerprint import bound_call, of_the_call
from skipstep.plugins.profile import Denoiser, parameters_of
from skipstep.plugins.run import Run
from skipstep.samplers.distill.flow import TOKENS
from skipstep.samplers.distill.speedup import with_speedup

__all__ = ["attach_speedup"]

OUTSIDE_ALL = -1
LOOKED = "speedup: halves were looked at"


def attach_speedup(site: Any, denoiser: Denoiser, tensors: dict[str, Tensor]) -> None:
    """Put the adapter of these tensors on during every run, and join the halves around it.

    Raises Incompatible where the tensors are another model's.
    """
    layers, names = _Layers(denoiser, tensors), parameters_of(denoiser.inner)

    def begin(run: Run) -> None:
        guidance = of_the_call(bound_call(run.pipe, run.arguments)).get("guidance")
        if guidance is not None and guidance <= 1:
            raise Incompatible(
                f"few_step: guidance_scale={guidance:g} keeps the pipeline from reading the "
                "negative prompt, which this student needs: leave it out. Any value over 1 gives "
                "the same picture, in one pass a step"
            )
        layers.put_on()

    def ask(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        run = site.run()
        if run is None:
            return call_next(*args, **kwargs)
        named = dict(zip(names, args, strict=False)) | kwargs
        rows = len(named[names[0]])
        if LOOKED not in run.state:
            run.state[LOOKED] = True
            _look(denoiser, named[names[0]])
        return twice(call_next(**one_pass(named, rows)), rows // 2)

    site.on_begin(begin)
    site.on_end(lambda run: layers.take_off())
    site.wrap(denoiser.module, ask, OUTSIDE_ALL)


def _look(denoiser: Denoiser, sample: Tensor) -> None:
    """Raise Incompatible where the rows are not guidance's two halves."""
    if len(sample) % 2 == 0 and torch.equal(*sample.chunk(2)):
        return
    raise Incompatible(
        f"few_step: {denoiser.name} is not given guidance's two halves in one batch, which this "
        "student joins; distill a student of another recipe for this pipeline (skipstep distill)"
    )


def one_pass(named: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return a call's arguments for the conditional half, with the tokens of both.

    >>> found = one_pass({"encoder_hidden_states": torch.tensor([[[1.0]], [[2.0]]])}, 2)
    >>> found["encoder_hidden_states"].tolist()
    [[[2.0], [1.0]]]
    """
    half = rows // 2
    both = {
        name: torch.cat([value[half:], value[:half]], 1)
        for name, value in named.items()
        if name in TOKENS and isinstance(value, Tensor)
    }
    conditional: dict[str, Any] = _mapped(
        named, lambda value: value[half:] if value.ndim and len(value) == rows else value
    )
    return conditional | both


def twice(answer: Any, rows: int) -> Any:
    """Return a denoiser's answer with each row for both halves."""
    return _mapped(
        answer,
        lambda value: torch.cat([value, value]) if value.ndim and len(value) == rows else value,
    )


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return type(value)(**{name: _mapped(each, function) for name, each in value.items()})
    if isinstance(value, tuple | list):
        return type(value)(_mapped(each, function) for each in value)
    return value


class _Layers:
    """The cross-attention layers, their own processors and the adapter's."""

    def __init__(self, denoiser: Denoiser, tensors: dict[str, Tensor]) -> None:
        try:
            adapters = with_speedup(denoiser.inner)
        except ValueError as error:
            raise Incompatible(f"few_step: {error}") from None
        wanted = {
            f"{layer}.processor.{name}"
            for layer, adapter in adapters.items()
            for name in adapter.state_dict()
        }
        if wanted != set(tensors):
            odd = sorted(wanted ^ set(tensors))
            raise Incompatible(
                f"few_step: the adapter does not fit {denoiser.class_name}: {odd[0]} (and "
                f"{len(odd) - 1} more) is in only one of them"
            )
        for layer, adapter in adapters.items():
            begin = f"{layer}.processor."
            adapter.load_state_dict({name: tensors[begin + name] for name in adapter.state_dict()})
        self.pairs: list[tuple[Any, nn.Module]] = [
            (denoiser.inner.get_submodule(layer), adapter.requires_grad_(False))
            for layer, adapter in adapters.items()
        ]
        self.own: list[Any] = []

    def put_on(self) -> None:
        """Give every layer the adapter, where its weights are now."""
        for layer, adapter in self.pairs:
            self.own.append(layer.processor)
            layer.set_processor(adapter.to(layer.to_k.weight))

    def take_off(self) -> None:
        """Give every layer its own processor back."""
        for (layer, _), own in zip(self.pairs, self.own, strict=False):
            layer.set_processor(own)
        self.own = []
