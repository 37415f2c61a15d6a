"""Rolling memory: a chunk behind remembered ones is the whole sequence seen at once."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from skipstep.samplers.distill.causal import (
    Memory,
    Remembers,
    chunks_of,
    make_causal,
    remembering,
    roll_out,
)
from skipstep.samplers.distill.flow import PlainBridge
from skipstep.samplers.distill.networks import Flow
from skipstep.samplers.distill.plane_clips import ClipNet


def wan() -> WanTransformer3DModel:
    """Return a Wan transformer of one layer, where keys and values know of no other token."""
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=16,
    ).eval()


def asked(module: nn.Module, x: Tensor) -> Tensor:
    """Return the module's answer at t = 0."""
    t = torch.zeros(len(x))
    text = {} if isinstance(module, ClipNet) else {"encoder_hidden_states": torch.zeros(2, 3, 8)}
    answer = module(x, t, **text)
    v: Tensor = answer if isinstance(module, ClipNet) else answer[0]
    return v


@pytest.mark.parametrize("name", ["sequence", "wan"])
@torch.no_grad()
def test_the_last_chunk_behind_a_memory_is_the_end_of_the_whole(name: str) -> None:
    torch.manual_seed(1)
    module: nn.Module = ClipNet(depth=1) if name == "sequence" else wan()
    x = torch.randn(2, 6, 2) if name == "sequence" else torch.randn(2, 4, 6, 4, 4)
    axis = 1 if name == "sequence" else 2
    whole = asked(module, x)
    undo = make_causal(module)
    torch.testing.assert_close(asked(module, x), whole)
    memory = Memory(window=3)
    with remembering(module, memory):
        for chunk in chunks_of(x, 2):
            memory.writing = True
            last = asked(module, chunk)
            memory.frames += 2
    torch.testing.assert_close(last, whole.narrow(axis, 4, 2))
    assert not any(each.memory for each in module.modules() if isinstance(each, Remembers))
    undo()
    assert torch.equal(asked(module, x), whole)


@torch.no_grad()
def test_memory_is_the_same_however_long_the_sequence() -> None:
    memory = Memory(window=2, writing=True)
    for number in range(5):
        each = torch.full((1, 3, 4), float(number))
        keys, _ = memory.extended("layer", each, each)
    assert keys[0, :, 0].tolist() == [2.0] * 3 + [3.0] * 3 + [4.0] * 3
    assert [len(kept) for kept in memory.kept.values()] == [2]


def test_only_the_last_evaluation_of_a_chunk_has_a_gradient() -> None:
    torch.manual_seed(0)
    net = ClipNet()
    calls: list[bool] = []
    net.register_forward_hook(lambda module, args, out: calls.append(out.requires_grad))
    made = roll_out(
        Flow(net, PlainBridge()), torch.randn(2, 6, 2), (1.0, 0.6, 0.3, 0.0), {},
        chunk=3, window=2, leave_at=1,
    )  # fmt: skip
    assert calls == 2 * [False, True, False]
    made.sum().backward()  # type: ignore[no-untyped-call]
    assert net.enter.weight.grad is not None


def test_another_module_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no causal form here"):
        make_causal(nn.Linear(2, 2))
