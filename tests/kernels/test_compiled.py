"""Ops in a fresh process, which does not check annotations: no side effect, no graph break."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import torch
import torch._dynamo

before = torch._dynamo.config.suppress_errors, torch._dynamo.config.recompile_limit
modules = set(sys.modules)
from skipstep.kernels.block_layout import all_blocks, from_topk, from_topp, longest_first, union
from skipstep.kernels.block_sparse_attention import block_sparse_attention
from skipstep.kernels.quant_attention import quantized_attention

added = {name.split(".")[0] for name in set(sys.modules) - modules}
assert "triton" not in added, added
assert before == (torch._dynamo.config.suppress_errors, torch._dynamo.config.recompile_limit)
assert not torch.cuda.is_initialized()

torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 2, 200, 32).unbind()

def scores(q, k):
    return (q[:, :, ::64].float() @ k[:, :, ::32].float().mT).softmax(-1)

def sparse(q, k, v):
    lists = from_topk(scores(q, k), 3, block_q=64, block_k=32)
    more = union(lists, from_topp(scores(q, k), 0.5, block_q=64, block_k=32))
    lens = torch.tensor([180])
    o, lse = block_sparse_attention(
        2 * q, k, v, longest_first(more, 1, 2), kv_lens=lens, return_lse=True
    )
    return o * lse[..., None]

def quantised(q, k, v):
    return quantized_attention(2 * q, k, v, smooth_q=True)

def quantised_lists(q, k, v):
    lists = from_topk(scores(q, k), 3, block_q=64, block_k=32)
    return quantized_attention(q, k, v, lists, pv="fp8", groups="thread", return_lse=True)[0]

def gradient(q, k, v):
    return block_sparse_attention(q, k, v, all_blocks(200, 200)).square().sum()

for function in (sparse, quantised, quantised_lists):
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), function(q, k, v))
inputs = [x.requires_grad_() for x in (q, k, v)]
compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(
    torch.autograd.grad(compiled(q, k, v), inputs), torch.autograd.grad(gradient(q, k, v), inputs)
)
print("no break")
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("compiled")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_imports_change_nothing_and_calls_are_one_graph(printed: str) -> None:
    assert printed.endswith("no break\n"), printed
