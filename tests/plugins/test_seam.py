"""The seam: outermost of everything, invisible to copies, gone without a trace."""

import copy
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook as AccelerateHook
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from skipstep.plugins.seam import (
    CallSlotSeam,
    ForwardSeam,
    call_slot_works,
    find_seam,
    seam_of,
)
from skipstep.testing import run, tiny_pipeline


class Add(nn.Module):
    """Add one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.amount


X = torch.zeros(1)


def log_wrap(log: list[str], word: str) -> Callable[..., Any]:
    """Return a wrap that writes `word` down on the way in."""

    def wrap(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        log.append(word)
        return call_next(*args, **kwargs)

    return wrap


@pytest.fixture
def forward_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend that torch no longer consults the call slot."""
    monkeypatch.setattr("skipstep.plugins.seam.SLOT", "_no_such_slot")
    monkeypatch.setattr(nn.Module, "_no_such_slot", None, raising=False)
    call_slot_works.cache_clear()
    yield
    monkeypatch.undo()
    call_slot_works.cache_clear()


def test_torch_still_has_the_call_slot() -> None:
    assert call_slot_works()


def test_it_is_outside_torch_hooks() -> None:
    log: list[str] = []
    module = Add()
    seam_of(module).add(log, log_wrap(log, "seam"), 0)
    module.register_forward_pre_hook(lambda *_: log.append("hook"))
    module(X)
    assert log == ["seam", "hook"]


@pytest.mark.parametrize("first", ["seam", "hook"])
def test_it_is_outside_accelerate_hooks_in_both_orders(first: str) -> None:
    log: list[str] = []
    module = Add()

    class Hook(AccelerateHook):  # type: ignore[misc]
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            log.append("hook")
            return args, kwargs

    if first == "seam":
        seam_of(module).add(log, log_wrap(log, "seam"), 0)
    add_hook_to_module(module, Hook())
    if first == "hook":
        seam_of(module).add(log, log_wrap(log, "seam"), 0)
    module(X)
    assert log == ["seam", "hook"]
    remove_hook_from_module(module)
    module(X)
    assert log == ["seam", "hook", "seam"]


@pytest.mark.parametrize("first", ["seam", "hook"])
def test_it_is_outside_diffusers_hooks_in_both_orders(first: str) -> None:
    log: list[str] = []
    module = Add()

    class Hook(ModelHook):  # type: ignore[misc]
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            log.append("hook")
            return args, kwargs

    if first == "seam":
        seam_of(module).add(log, log_wrap(log, "seam"), 0)
    HookRegistry.check_if_exists_or_initialize(module).register_hook(Hook(), "toy")
    if first == "hook":
        seam_of(module).add(log, log_wrap(log, "seam"), 0)
    module(X)
    assert log == ["seam", "hook"]


def test_the_smallest_order_is_outermost_whoever_came_first() -> None:
    log: list[str] = []
    module, seam = Add(), None
    for word, order in (("c", 30), ("a", 10), ("b", 20)):
        seam = seam_of(module)
        seam.add(word, log_wrap(log, word), order)
    module(X)
    assert log == ["a", "b", "c"]


def test_two_owners_share_one_seam_and_leave_one_by_one() -> None:
    log: list[str] = []
    module = Add()
    before = dict(vars(module))
    seam = seam_of(module)
    seam.add("first", log_wrap(log, "first"), 1)
    assert seam_of(module) is seam
    seam.add("second", log_wrap(log, "second"), 2)
    seam.remove("first")
    module(X)
    assert log == ["second"]
    seam.remove("second")
    assert vars(module) == before
    assert find_seam(module) is None


def test_it_heals_over_a_compile_and_leaves_the_module_compiled() -> None:
    log: list[str] = []
    module = Add()
    seam = seam_of(module)
    seam.add(log, log_wrap(log, "seam"), 0)
    module.compile(backend="eager")
    compiled: Any = module._compiled_call_impl
    assert module(X) == 1 and log == []
    seam.heal()
    assert module(X) == 1 and log == ["seam"]
    seam.remove(log)
    assert module._compiled_call_impl is compiled


def test_a_second_owner_after_a_compile_joins_the_seam_instead_of_wrapping_it() -> None:
    log: list[str] = []
    module = Add()
    first = seam_of(module)
    first.add("first", log_wrap(log, "first"), 1)
    module.compile(backend="eager")
    second = seam_of(module)
    second.add("second", log_wrap(log, "second"), 2)
    first.heal()
    second.heal()
    assert module(X) == 1
    assert log == ["first", "second"]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_copies_and_pickles_are_clean_and_use_their_own_weights(copied: Any) -> None:
    log: list[str] = []
    module = Add()
    seam_of(module).add(log, log_wrap(log, "seam"), 0)
    twin = copied(module)
    assert find_seam(twin) is None
    twin.amount = nn.Parameter(torch.full((1,), 5.0))
    assert twin(X) == 5 and log == []
    assert module(X) == 1 and log == ["seam"]


def test_the_state_dict_does_not_see_it() -> None:
    module = Add()
    seam_of(module).add("owner", log_wrap([], ""), 0)
    assert list(module.state_dict()) == ["amount"]


def test_what_someone_put_over_the_seam_stays_after_the_seam_left() -> None:
    module = Add()
    seam = seam_of(module)
    seam.add("owner", log_wrap([], ""), 0)
    inner: Any = module._compiled_call_impl
    module._compiled_call_impl = lambda x: inner(x) * 3
    seam.remove("owner")
    assert module(X) == 3


@pytest.mark.usefixtures("forward_only")
def test_without_the_call_slot_forward_is_wrapped_and_a_warning_says_what_to_mind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log: list[str] = []
    module = Add()
    before = dict(vars(module))
    with caplog.at_level(logging.WARNING):
        seam = seam_of(module)
    assert isinstance(seam, ForwardSeam)
    assert "no longer consults nn.Module._no_such_slot as skipstep expects" in caplog.text
    assert "Enable plugins after offload, and disable them before copying" in caplog.text
    seam.add("owner", log_wrap(log, "seam"), 0)
    assert module(X) == 1 and log == ["seam"]
    seam.remove("owner")
    assert vars(module) == before


@pytest.mark.usefixtures("forward_only")
@pytest.mark.parametrize("name", ["easycache", "fbcache", "fora"])
def test_caches_work_and_leave_no_trace_without_the_call_slot(name: str) -> None:
    tiny = tiny_pipeline("flux")
    plain = run(tiny, steps=6)
    before = [dict(vars(module)) for module in tiny.pipe.transformer.modules()]
    tiny.pipe.enable_plugin(name)
    first = run(tiny, steps=6)
    assert isinstance(find_seam(tiny.pipe.transformer), ForwardSeam)
    assert tiny.pipe.plugin_report().total == 6
    assert torch.equal(first, run(tiny, steps=6))
    tiny.pipe.disable_plugins()
    assert [dict(vars(module)) for module in tiny.pipe.transformer.modules()] == before
    assert torch.equal(run(tiny, steps=6), plain)


@pytest.mark.parametrize("name", ["easycache", "fbcache", "fora"])
def test_both_seams_give_the_same_picture(name: str, request: pytest.FixtureRequest) -> None:
    tiny = tiny_pipeline("flux")
    tiny.pipe.enable_plugin(name)
    assert isinstance(find_seam(tiny.pipe.transformer), CallSlotSeam)
    by_slot = run(tiny, steps=6)
    tiny.pipe.disable_plugins()
    request.getfixturevalue("forward_only")
    tiny.pipe.enable_plugin(name)
    assert torch.equal(run(tiny, steps=6), by_slot)
