"""One sparse attention call, from the tokens as the model has them to its output in their order.

1. the picture's tokens are put in the method's order, with the text behind them;
2. the method chooses pairs of blocks, and may order the tokens of every head anew;
3. text, and one block per row, are kept whatever the method says;
4. the kernel attends along the lists; what it left out may be made up for (`delta`, pooled keys);
5. the tokens go back to where they were.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skipstep.kernels.block_layout import all_blocks, from_bool
from skipstep.kernels.block_pool import block_mean
from skipstep.kernels.block_sparse_attention import block_sparse_attention, merge
from skipstep.kernels.delta import delta_correct
from skipstep.kernels.permute import gather_tokens, inverse_order
from skipstep.kernels.quant_attention import quantized_attention
from skipstep.plugins.attention.layout import Layout
from skipstep.plugins.attention.methods.base import Choice, Scene, SparseAttention

__all__ = ["Outcome", "attend_sparsely", "break_even", "fewest_tokens"]

BREAK_EVEN = {
    ("cuda", True): 0.75,
    ("cuda", False): 0.75,
    ("cpu", False): 0.64,
    ("cpu", True): 0.55,
}
"""(device, is half precision) -> density from which on dense attention is as fast.

The CPU's are for 128 rows, a little below what docs/kernels.md measures; half precision with bf16
units, where dense attention gains most. The GPU's are an estimate until one is measured.
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one call: its output, or None where every sample had better be dense.

    `mask` is the map of kept blocks after step 3; `density` and `mass` are on the device, so that
    nothing waits for them; `mass` is None where no rows were probed. `is_for_now` says that the
    method wanted this one call to be dense.
    """

    output: Float[Tensor, "b h n d"] | None
    mask: Bool[Tensor, "#b #h nq nk"]
    density: Float[Tensor, ""]
    mass: Float[Tensor, ""] | None
    is_for_now: bool = False


def break_even(x: Tensor) -> float:
    """Return the density from which on dense attention is as fast on this device."""
    return BREAK_EVEN.get((x.device.type, x.dtype.itemsize < 4), 0.75)


def fewest_tokens(x: Tensor) -> int:
    """Return the number of tokens below which dense attention is faster at any density."""
    return 1024 if x.device.type == "cpu" else 4096


def attend_sparsely(
    method: SparseAttention,
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g n d"],
    v: Float[Tensor, "b g n d"],
    layout: Layout,
    *,
    scale: float | None = None,
    step: int = 0,
    memory: dict[str, Any] | None = None,
    kv_lens: Int[Tensor, " b"] | None = None,
) -> Outcome:
    """Attend with a method's choice of blocks.

    Args:
        layout: how the n tokens lie.
        scale: of the logits; None is 1/sqrt(d).
        step: number of this step in the run.
        memory: what the method noted at this layer and branch; a fresh one where None.
        kv_lens: tokens of each sample that count, the first ones with text behind the picture.
    """
    memory = {} if memory is None else memory
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    order, places = slots(method, layout, q.device, text_last=kv_lens is not None)
    if order is not None:
        q, k, v = (gather_tokens(x, order) for x in (q, k, v))
    keep, mass = method.budget()
    scene = Scene(
        q=q,
        k=k,
        v=v,
        grid=layout.grid,
        places=places,
        block_q=method.block_q,
        block_k=method.block_k,
        scale=scale,
        step=step,
        keep=keep,
        mass=mass,
        memory=memory.setdefault("method", {}),
    )
    choice = method.choose(scene)
    if choice.is_dense_now:
        return Outcome(None, choice.mask, choice.mask.float().mean(), None, is_for_now=True)
    if choice.q_order is not None:
        q = gather_tokens(q, choice.q_order)
    if choice.k_order is not None:
        k, v = gather_tokens(k, choice.k_order), gather_tokens(v, choice.k_order)
    mask = completed(choice.mask, scene, method.keep_text)
    if not method.force:
        is_dense, count = dense_samples(mask, q, memory)
        if count == len(is_dense):
            return Outcome(None, mask, mask.float().mean(), None)
        if count:
            mask = mask | is_dense[:, None, None, None]
    lists = from_bool(mask, block_q=method.block_q, block_k=method.block_k)
    probed = kept_mass(q, k, mask, scene, method.probe_rows, kv_lens)
    if method.bits is None:
        output, lse = block_sparse_attention(
            q, k, v, lists, scale=scale, kv_lens=kv_lens, return_lse=True
        )
    else:
        output, lse = quantized_attention(
            q, k, v, lists, bits=method.bits, scale=scale, kv_lens=kv_lens, return_lse=True
        )
    output = made_up(method, choice, output, lse, q, k, v, scene, kv_lens)
    if choice.q_order is not None:
        output = gather_tokens(output, inverse_order(choice.q_order, output.shape[2]))
    if order is not None:
        output = gather_tokens(output, inverse_order(order, output.shape[2]))
    return Outcome(output, mask, lists.density(), probed)


def slots(
    method: SparseAttention, layout: Layout, device: torch.device, text_last: bool
) -> tuple[Int[Tensor, " n"] | None, Int[Tensor, " n"]]:
    """Return which token lies in each slot (None: the i-th in slot i), and which place of the
    picture's raster that is (-1: text).
    """
    text = torch.full((layout.text,), -1, dtype=torch.long, device=device)
    picture = method.order(layout.grid, device)
    raster = torch.arange(layout.picture, device=device)
    if picture is None and not (method.moves_tokens or text_last):
        return None, torch.cat([text, raster] if layout.text_first else [raster, text])
    picture = raster if picture is None else picture.to(device)
    first = layout.text if layout.text_first else 0
    start = 0 if layout.text_first else layout.picture
    behind = torch.arange(start, start + layout.text, device=device)
    return torch.cat([picture + first, behind]), torch.cat([picture, text])


def completed(
    mask: Bool[Tensor, "#b #h nq nk"], scene: Scene, keep_text: bool
) -> Bool[Tensor, "#b #h nq nk"]:
    """Keep the rows and columns of text, and the nearest block of a row that has none."""
    if keep_text:
        mask = mask | scene.text_blocks(scene.block_k)
        mask = mask | scene.text_blocks(scene.block_q)[:, None]
    rows = torch.arange(scene.nq, device=mask.device)
    nearest = (rows * scene.block_q // scene.block_k).clamp_max(scene.nk - 1)
    diagonal = torch.zeros(scene.nq, scene.nk, dtype=torch.bool, device=mask.device)
    diagonal[rows, nearest] = True
    return mask | (diagonal & ~mask.any(-1, keepdim=True))


def dense_samples(
    mask: Bool[Tensor, "#b #h nq nk"], q: Float[Tensor, "b h n d"], memory: dict[str, Any]
) -> tuple[Bool[Tensor, " b"], int]:
    """Say which samples had better be dense, and how many these are; decided at a layer's first
    sparse step of a run, which alone waits for the device.
    """
    known: tuple[Tensor, int] | None = memory.get("is_dense")
    if known is None or known[0].shape != q.shape[:1]:
        is_dense = (mask.float().mean((1, 2, 3)) >= break_even(q)).expand(q.shape[0])
        known = memory["is_dense"] = is_dense, int(is_dense.sum())
    return known


def made_up(
    method: SparseAttention,
    choice: Choice,
    output: Tensor,
    lse: Float[Tensor, "b h n"],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scene: Scene,
    kv_lens: Int[Tensor, " b"] | None,
) -> Float[Tensor, "b h n d"]:
    """Make up for what was left out: by pooled keys, then by differences at every n-th query."""
    if choice.is_pooled:
        pooled, pooled_lse = pooled_attention(q, k, v, scene, kv_lens)
        output, _ = merge((output, lse), (pooled, pooled_lse))
    if method.delta:
        shifted = delta_correct(
            output, q, k, v, stride=method.delta, scale=scene.scale, kv_lens=kv_lens
        )
        is_exact = scene.is_text[:, None] & method.keep_text
        output = output.where(is_exact, shifted)
    return output


def pooled_attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    scene: Scene,
    kv_lens: Int[Tensor, " b"] | None,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Attend to the means of all key blocks, each of which counts as often as a block has tokens.

    The last block with tokens counts as a full one.
    """
    block, n = scene.block_k, q.shape[2]
    blocks, share = None, k.new_ones(())
    if kv_lens is not None:
        first = torch.arange(scene.nk, device=k.device) * block
        held = (kv_lens[:, None] - first).clamp(1, block)
        whole = (n - first).clamp_max(block)
        inside = torch.arange(n, device=k.device) < kv_lens[:, None]
        share = (whole / held)[:, None, :, None]
        k, v = (x.masked_fill(~inside[:, None, :, None], 0) for x in (k, v))
        blocks = (kv_lens + block - 1) // block
    k_mean, v_mean = ((block_mean(x, block) * share).to(x.dtype) for x in (k, v))
    everything = all_blocks(n, scene.nk, block_q=scene.block_q, block_k=block, device=q.device)
    pooled, lse = block_sparse_attention(
        q, k_mean, v_mean, everything, scale=scene.scale, kv_lens=blocks, return_lse=True
    )
    return pooled, lse + math.log(block)


def kept_mass(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h n d"],
    mask: Bool[Tensor, "#b #h nq nk"],
    scene: Scene,
    rows: int,
    kv_lens: Int[Tensor, " b"] | None,
) -> Float[Tensor, ""] | None:
    """Measure the share of the true attention that evenly spaced queries find in their blocks."""
    if not rows:
        return None
    n = q.shape[2]
    chosen = torch.linspace(0, n - 1, min(rows, n), device=q.device).long()
    logits = (q[:, :, chosen] @ k.mT).float() * scene.scale
    if kv_lens is not None:
        is_out = torch.arange(n, device=q.device) >= kv_lens.to(q.device)[:, None]
        logits = logits.masked_fill(is_out[:, None, None], float("-inf"))
    kept = mask[:, :, chosen // scene.block_q].repeat_interleave(scene.block_k, dim=-1)[..., :n]
    return logits.softmax(-1).where(kept, 0).sum(-1).mean()
