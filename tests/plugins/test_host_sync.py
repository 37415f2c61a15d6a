"""A static cache never waits for the device: it reads no tensor's value on the host."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from skipstep.testing import run, tiny_pipeline

torch.set_num_threads(1)

READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}
METHODS = ("tolist", "numpy", "cpu")


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Count the operations that a device would have to finish its queue for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in READS
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    """Count reads in the block, those that never reach the dispatcher too."""
    reads = Reads()
    with monkeypatch.context() as patch, reads:
        for name in METHODS:
            original = getattr(torch.Tensor, name)

            def counting(self: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
                reads.count += 1
                return original(self, *args, **kwargs)

            patch.setattr(torch.Tensor, name, counting)
        yield reads


RHYTHM: dict[str, Any] = {"interval": 2, "warmup_steps": 2, "final_steps": 0}


@pytest.mark.parametrize(
    ("family", "name", "options"),
    [
        *(
            (family, name, RHYTHM)
            for family in ("pixart", "flux", "sd3")
            for name in ("abcache", "fora", "taylorseer", "hicache", "foca", "fastercache")
        ),
        ("pixart", "abcache", RHYTHM | {"cache_dtype": "bfloat16"}),
        ("pixart", "deltadit", RHYTHM | {"kept_blocks": 1}),
        ("pixart", "pab", {"warmup_steps": 2}),
        ("pixart", "tgate", {"warmup_steps": 2}),
        ("sd15", "deepcache", {"interval": 2}),
        ("pixart", "textkv", {}),
    ],
)
def test_a_static_cache_reads_no_value_on_the_host(
    family: str, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_pipeline(family)
    run(tiny, steps=6)
    with counted(monkeypatch) as plain:
        run(tiny, steps=6)
    handle = tiny.pipe.enable_plugin(name, **options)
    run(tiny, steps=6)  # what is learned once per shape, and FLOPs, may look
    with counted(monkeypatch) as cached:
        run(tiny, steps=6)
    assert name == "textkv" or handle.report().fraction < 1
    tiny.pipe.disable_plugins()
    assert cached.count <= plain.count


def test_an_adaptive_gate_is_seen_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_pipeline("pixart")
    with counted(monkeypatch) as plain:
        run(tiny, steps=6)
    tiny.pipe.enable_plugin("easycache", threshold=0.1)
    with counted(monkeypatch) as cached:
        run(tiny, steps=6)
    tiny.pipe.disable_plugins()
    assert cached.count > plain.count
