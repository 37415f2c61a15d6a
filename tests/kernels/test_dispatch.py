"""Dispatch: who runs, who may not and why, and what happens where a kernel does not compile."""

import warnings
from typing import Any

import pytest
import torch

from skipstep.kernels import dispatch
from skipstep.kernels.dispatch import backend_for, or_torch, upcast_dot

X = torch.zeros(2)


def test_a_cpu_gets_plain_torch_also_where_the_interpreter_is_at_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SKIPSTEP_KERNELS", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend_for("op", X) == "torch"
    assert backend_for("op", X, backend="auto") == "torch"
    assert backend_for("op", X, backend="interpret") == "interpret"


def test_the_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("SKIPSTEP_KERNELS", "interpret")
    assert backend_for("op", X) == "interpret"
    assert backend_for("op", X, backend="torch") == "torch"


@pytest.mark.parametrize(
    ("tensor", "options", "message"),
    [
        (X, {"backend": "cuda"}, r"argument backend is 'cuda': allowed are auto, triton"),
        (X, {"backend": "triton"}, "not on a CUDA device; use 'interpret'"),
        (X.double(), {"backend": "interpret"}, "takes .*, not torch.float64"),
        (X, {"backend": "interpret", "unserved": "it is odd"}, "cannot serve this call: it is odd"),
    ],
)
def test_what_cannot_be_served_is_said(
    tensor: torch.Tensor,
    options: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match=message):
        backend_for("op", tensor, **options)


def test_the_environment_is_named_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPSTEP_KERNELS", "fast")
    with pytest.raises(ValueError, match="op: SKIPSTEP_KERNELS is 'fast'"):
        backend_for("op", X)


def test_the_interpreter_must_be_chosen_before_kernels_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 before"):
        backend_for("op", X, backend="interpret")


def test_without_triton_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    assert backend_for("op", X) == "torch"
    with pytest.raises(ValueError, match=r'pip install "skipstep\[kernels\]"'):
        backend_for("op", X, backend="interpret")


def test_a_kernel_that_does_not_compile_warns_once_and_leaves_it_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from triton.runtime.errors import OutOfResources

    monkeypatch.setattr(dispatch, "_failed", {})
    tried: list[int] = []

    def kernel() -> str:
        tried.append(1)
        raise OutOfResources(300, 200, "shared memory")

    gpu = torch.device("cuda", 0)
    with pytest.warns(RuntimeWarning, match="op: the Triton kernel does not compile on cuda:0"):
        assert or_torch("op", gpu, kernel, lambda: "plain") == "plain"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert or_torch("op", gpu, kernel, lambda: "plain") == "plain"
    assert len(tried) == 1
    with pytest.raises(OutOfResources):
        or_torch("op", torch.device("cpu"), kernel, lambda: "plain")


def test_errors_of_another_kind_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_failed", {})

    def kernel() -> str:
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        or_torch("op", torch.device("cuda", 0), kernel, lambda: "plain")


def test_only_the_interpreter_widens_bf16() -> None:
    assert upcast_dot("interpret", torch.bfloat16)
    assert not upcast_dot("triton", torch.bfloat16)
    assert not upcast_dot("interpret", torch.float16)
