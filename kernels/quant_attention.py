"""Attention with quantised scores: SageAttention 1 and 2 (Zhang et al., ICLR 2025 and ICML 2025).

Scores are products of small integers, on which tensor cores are twice as fast as on 16 bits:

km = mean_j k_j;  k_j - km adds q.km to every score of a row, which softmax ignores    smooth K
q~ = q - qbar with qbar the mean of its block of rows; its scores qbar.(k - km) come
     back exactly as a bias                                                            smooth Q
x8 = round(x / s),  s = max|x| / 127 (int4: 7) over a group of rows
s_ij = (q8_i . k8_j) s_q s_k scale (+ bias),  p = exp(s - running max)
pv="fp8": o = sum_j e4m3(448 p_j) e4m3(v_j / s_v) s_v / 448,  s_v = max|v| / 448 per channel; each
     tile's product is added to an fp32 sum, as fp8 tensor cores keep 22 bits

Groups: "block" one scale per 128 query and 64 key rows; "thread" the rows that one thread of the
tensor-core instruction holds (8 scales per 32 query rows, 4 per 64 key rows); "token" one per row.
With `pv="native"` the second product stays in the type of v with fp32 sums: 16-bit sums overflow on
real models (SageAttention issue 93). int4 scores run on int8 units in exact arithmetic: the same
numbers, not the speed. On a CPU this is an emulation, tile by tile in the order of the lists, for
measuring quality; plain attention is faster there. Errors: docs/kernels.md. When it fails: channels
with large outliers in Q (use smooth_q), fp8 products of V (2 % error alone).
Differs from the authors' code: sums of the second product are fp32 everywhere; an all-zero group
has scale 1, where theirs divides by zero; inputs are never changed.
"""

import math
from dataclasses import dataclass
from typing import Literal, overload

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from skipstep.kernels.block_layout import BlockLists, all_blocks, blocks_of
from skipstep.kernels.block_sparse_attention import Layout, check_inputs
from skipstep.kernels.dispatch import backend_for, custom_op, or_torch, upcast_dot
from skipstep.kernels.kept_keys import keys_inside, valid_rows
from skipstep.kernels.tuning import LOG2_E, architecture, pick_for, unserved

__all__ = ["QuantQK", "quantize_qk", "quantized_attention"]

Groups = Literal["block", "thread", "token"]
GROUP_Q, GROUP_K = 128, 64
FP8_MAX = 448.0


@dataclass(frozen=True, eq=False)
class QuantQK:
    """Quantised queries and keys, one scale per row (rows of one group share its value).

    Args:
        q8: integers of the queries.
        q_scale: what one of them is worth.
        k8: integers of the keys.
        k_scale: what one of them is worth.
        km: the mean key that was taken off, 0 where it was not.
        bias: what smooth Q took off the scores, before the softmax scale; one row per block of
            GROUP_Q queries; None where it was not asked for.
    """

    q8: Int8[Tensor, "b h n d"]
    q_scale: Float[Tensor, "b h n"]
    k8: Int8[Tensor, "b hk m d"]
    k_scale: Float[Tensor, "b hk m"]
    km: Float[Tensor, "b hk 1 d"]
    bias: Float[Tensor, "b h ng m"] | None = None


def quantize_rows(
    x: Float[Tensor, "b h n d"], group: Tensor, highest: int
) -> tuple[Int8[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Round rows to integers up to `highest`; rows with one number in `group` share a scale."""
    b, h, n, _ = x.shape
    rows = x.abs().amax(-1)
    most = rows.new_zeros(b, h, int(n)).scatter_reduce(
        2, group.expand(b, h, n), rows, "amax", include_self=False
    )
    scale = most.gather(2, group.expand(b, h, n)) / highest
    scale = torch.where(scale > 0, scale, 1.0)
    return (x / scale[..., None]).round().clamp(-highest, highest).to(torch.int8), scale


def groups_of(n: int, groups: Groups, block: int, of_keys: bool, device: torch.device) -> Tensor:
    """Return a number per row, below n and equal for rows that share a scale."""
    row = torch.arange(n, device=device)
    first = row // block * block
    if groups == "token":
        return row
    if groups == "block":
        return first
    # What one thread of a 16-row tensor-core tile holds: SageAttention2, section 3.2.
    return first + row % 8 // 2 if of_keys else row // 32 * 32 + row % 8


def quantize_qk(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b hk m d"],
    *,
    bits: int = 8,
    smooth_k: bool = True,
    smooth_q: bool = False,
    groups: Groups = "block",
    inside: Bool[Tensor, "b m"] | None = None,
) -> QuantQK:
    """Quantise queries and keys; keys outside `inside` become 0 and move no scale or mean."""
    if bits not in (4, 8):
        raise ValueError(f"quantize_qk was given bits={bits}: 4 and 8 are possible")
    if groups not in ("block", "thread", "token"):
        raise ValueError(f"quantize_qk was given groups={groups!r}: block, thread or token")
    highest = 2 ** (bits - 1) - 1
    (n, d), m = q.shape[2:], k.shape[2]
    wide_q, wide_k = q.float(), k.float()
    if inside is not None:
        wide_k = torch.where(inside[:, None, :, None], wide_k, 0)
    km = torch.zeros_like(wide_k[:, :, :1])
    if smooth_k:
        count = m if inside is None else inside.sum(1)[:, None, None, None].clamp_min(1)
        km = wide_k.sum(2, keepdim=True) / count
        wide_k = wide_k - km
        if inside is not None:
            wide_k = torch.where(inside[:, None, :, None], wide_k, 0)
    bias = None
    if smooth_q:
        blocks = blocks_of(n, GROUP_Q)
        block = torch.arange(n, device=q.device) // GROUP_Q
        sums = wide_q.new_zeros(*q.shape[:2], blocks, d).index_add_(2, block, wide_q)
        first = torch.arange(blocks, device=q.device) * GROUP_Q
        qbar = sums / (n - first).clamp_max(GROUP_Q)[:, None]
        wide_q = wide_q - qbar[:, :, block]
        bias = qbar @ wide_k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT
    q8, q_scale = quantize_rows(wide_q, groups_of(n, groups, GROUP_Q, False, q.device), highest)
    k8, k_scale = quantize_rows(wide_k, groups_of(m, groups, GROUP_K, True, k.device), highest)
    return QuantQK(q8, q_scale, k8, k_scale, km, bias)


def quantize_v(
    v: Float[Tensor, "b hk m d"], inside: Bool[Tensor, "b m"] | None
) -> tuple[Float[Tensor, "b hk m d"], Float[Tensor, "b hk d"]]:
    """Round values to e4m3 with a scale per channel; keys lie side by side in memory."""
    wide = v.float() if inside is None else torch.where(inside[:, None, :, None], v.float(), 0)
    scale = wide.abs().amax(2) / FP8_MAX
    scale = torch.where(scale > 0, scale, 1.0)
    v8 = (wide / scale[:, :, None]).to(torch.float8_e4m3fn)
    return v8.mT.contiguous().mT, scale


def emulated_attention(
    quant: QuantQK,
    v: Float[Tensor, "b hk m d"],
    lists: BlockLists,
    held: Tensor,
    scale: float,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Walk all lists at once, one kept block per step, with the kernel's rounding; fp32 results.

    The sums of int8 products are below 2^24, so fp32 matrix products have them exactly.
    """
    (batch, heads, n, d), (kv_heads, m) = quant.q8.shape, quant.k8.shape[1:3]
    block_q, block_k, nq = lists.block_q, lists.block_k, lists.blocks_q
    q8 = in_blocks(quant.q8.float(), block_q)  # [b, h, nq, block_q, d]
    q_scale = in_blocks(quant.q_scale[..., None], block_q)
    k8 = in_blocks(quant.k8.float(), block_k)  # [b, hk, nk, block_k, d]
    k_scale = in_blocks(quant.k_scale[..., None], block_k)
    fp8 = v.dtype == torch.float8_e4m3fn
    values = in_blocks(v.float(), block_k)
    key = torch.arange(block_k, device=v.device)
    inside = (key < held[..., None].to(v.device))[:, None]  # [b, 1, nk, block_k]
    values = torch.where(inside[..., None], values, 0)
    b = torch.arange(batch, device=v.device)[:, None, None]
    h = torch.arange(heads, device=v.device)[:, None] // (heads // kv_heads)
    idx = lists.idx.expand(batch, heads, -1, -1).long()
    cnt = lists.cnt.expand(batch, heads, -1)
    highest = torch.full((batch, heads, nq, block_q, 1), -math.inf, device=v.device)
    total = torch.zeros_like(highest)
    acc = torch.zeros(batch, heads, nq, block_q, d, device=v.device)
    for i in range(int(cnt.max()) if cnt.numel() else 0):
        listed = i < cnt
        j = torch.where(listed, idx[..., i], 0)
        s = q8 @ k8[b, h, j].mT * q_scale * k_scale[b, h, j].mT
        if quant.bias is not None:
            rows = torch.arange(nq * block_q, device=v.device).clamp_max(n - 1) // GROUP_Q
            columns = (j[..., None] * block_k + key).clamp_max(m - 1)  # [b, h, nq, block_k]
            row = rows.view(nq, block_q)[None, None, :, :, None]
            head = torch.arange(heads, device=v.device)[:, None, None, None]
            s = s + quant.bias[b[..., None, None], head, row, columns[..., None, :]]
        seen = inside[b, 0, j]
        seen = (seen & listed[..., None])[..., None, :]
        s = torch.where(seen, s * (scale * LOG2_E), -math.inf)
        m_new = torch.maximum(highest, s.amax(-1, keepdim=True))
        m_safe = torch.where(m_new == -math.inf, 0, m_new)
        a, p = torch.exp2(highest - m_safe), torch.exp2(s - m_safe)
        total = total * a + p.sum(-1, keepdim=True)
        p = (p * FP8_MAX).to(v.dtype).float() if fp8 else p.to(v.dtype).float()
        acc = acc * a + p @ values[b, h, j]
        highest = m_new
    o = acc / torch.where(total == 0, 1, total)
    lse = (highest + torch.where(total == 0, 1, total).log2()) / LOG2_E
    return o.flatten(2, 3)[:, :, :n], lse.flatten(2)[:, :, :n]


def in_blocks(x: Float[Tensor, "b h n d"], block: int) -> Float[Tensor, "b h blocks block d"]:
    """Cut rows in blocks, the last one filled with zeros."""
    rows = x.shape[2]
    filled = torch.nn.functional.pad(x, (0, 0, 0, -rows % block))
    return filled.reshape(*x.shape[:2], -1, block, x.shape[3])


def _shapes(q8: Tensor, q_scale: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return q8.new_empty(q8.shape, dtype=torch.float32), torch.empty_like(q_scale)


@custom_op("quantized_attention", fake=_shapes)
def _attention(
    q8: Tensor,
    q_scale: Tensor,
    k8: Tensor,
    k_scale: Tensor,
    bias: Tensor | None,
    v: Tensor,
    idx: Tensor,
    cnt: Tensor,
    order: Tensor | None,
    kv_valid: Tensor | None,
    kv_lens: Tensor | None,
    block_q: int,
    block_k: int,
    blocks_k: int,
    scale: float,
    scale_per_block: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Compute on quantised [b, h, n, d] tensors; fp32 output, before the scales of fp8 values."""
    name, problem = "quantized_attention", unserved(q8)
    if v.dtype == torch.float8_e4m3fn and q8.is_cuda and architecture(q8.device) < 89:
        problem = "this GPU has no fp8 units; use pv='native'"
    chosen = backend_for(name, q8, k8, backend=backend, dtypes=(torch.int8,), unserved=problem)
    batch, heads = q8.shape[:2]

    def plain() -> tuple[Tensor, Tensor]:
        held = valid_rows(batch, k8.shape[2], blocks_k, block_k, kv_valid, kv_lens)
        no_mean = k_scale.new_zeros(*k8.shape[:2], 1, k8.shape[3])
        quant = QuantQK(q8, q_scale, k8, k_scale, no_mean, bias)
        lists = BlockLists(idx, cnt, blocks_k, block_q, block_k)
        o, lse = emulated_attention(quant, v, lists, held, scale)
        return o.contiguous(), lse.contiguous()

    def kernel() -> tuple[Tensor, Tensor]:
        from skipstep.kernels.quant_attention_triton import launch_quantized

        tiles = pick_for(name, q8, block_q, block_k)
        aligned = block_q % tiles.block_m == 0 and block_k % tiles.block_n == 0
        whole = GROUP_Q % tiles.block_m == 0 and GROUP_K % tiles.block_n == 0
        rows = idx.contiguous().expand(batch, heads, -1, -1)
        lists = rows, cnt.expand(batch, heads, -1), order, kv_valid, kv_lens
        return launch_quantized(
            *(q8, q_scale, k8, k_scale, bias, v, *lists),
            block_q=block_q,
            block_k=block_k,
            scale=scale,
            scale_per_block=scale_per_block and aligned and whole,
            tiles=tiles,
            upcast_dot=upcast_dot(chosen, v.dtype),
        )

    return plain() if chosen == "torch" else or_torch(name, q8.device, kernel, plain)


@overload
def quantized_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists | None = None,
    *,
    bits: int = 8,
    pv: Literal["native", "fp8"] = "native",
    groups: Groups = "block",
    smooth_k: bool = True,
    smooth_q: bool = False,
    scale: float | None = None,
    kv_lens: Tensor | None = None,
    return_lse: Literal[False] = False,
    layout: Layout = "BHND",
    backend: str | None = None,
) -> Tensor: ...
@overload
def quantized_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists | None = None,
    *,
    bits: int = 8,
    pv: Literal["native", "fp8"] = "native",
    groups: Groups = "block",
    smooth_k: bool = True,
    smooth_q: bool = False,
    scale: float | None = None,
    kv_lens: Tensor | None = None,
    return_lse: Literal[True],
    layout: Layout = "BHND",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def quantized_attention(
    q: Float[Tensor, "b _ _ d"],
    k: Float[Tensor, "b _ _ d"],
    v: Float[Tensor, "b _ _ d"],
    lists: BlockLists | None = None,
    *,
    bits: int = 8,
    pv: Literal["native", "fp8"] = "native",
    groups: Groups = "block",
    smooth_k: bool = True,
    smooth_q: bool = False,
    scale: float | None = None,
    kv_lens: Tensor | None = None,
    return_lse: bool = False,
    layout: Layout = "BHND",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Float[Tensor, "b h n"]]:
    """Attend with quantised scores, to the listed key blocks or to all keys.

    SageAttention is the default; SageAttention2 is bits=4 (or 8), pv="fp8", groups="thread",
    smooth_q=True. No gradient.

    Args:
        q: queries, [b, h, n, d] or as `layout` says.
        k: keys, [b, hk, m, d]; their heads divide those of q.
        v: values, shaped as k.
        lists: the kept key blocks; None: all.
        bits: of the integers of the scores, 8 or 4.
        pv: "native" multiplies values in their own type, "fp8" in e4m3.
        groups: which rows share a scale.
        smooth_k: take the mean key off first; exact, and the log-sum-exp is corrected for it.
        smooth_q: take the mean query of each block off too, and add its scores back exactly.
        scale: of the scores; None: 1 / sqrt(d).
        kv_lens: keys of each batch entry that count, the first ones; None: all m.
        return_lse: return (output, log-sum-exp [b, h, n]) instead, in natural log.
        layout: "BNHD" where heads follow tokens.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises ValueError where shapes, types, options or lists do not fit.

    >>> x = torch.randn(1, 1, 100, 32)
    >>> exact = torch.nn.functional.scaled_dot_product_attention(x, x, x)
    >>> bool((quantized_attention(x, x, x) - exact).abs().max() < 0.05)
    True
    """
    if pv not in ("native", "fp8"):
        raise ValueError(f"quantized_attention was given pv={pv!r}: 'native' or 'fp8'")
    if layout not in ("BHND", "BNHD"):
        raise ValueError(f"quantized_attention: layout {layout!r} is not 'BHND' or 'BNHD'")
    if layout == "BNHD":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    n, m = q.shape[2], k.shape[2]
    if lists is None:
        lists = all_blocks(n, m, device=q.device)
    check_inputs(q, k, v, lists, kv_lens)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    inside = None
    if lists.kv_valid is not None or kv_lens is not None:
        inside = keys_inside(lists, k.shape[0], m, kv_lens)
    quant = quantize_qk(
        q, k, bits=bits, smooth_k=smooth_k, smooth_q=smooth_q, groups=groups, inside=inside
    )
    values, v_scale = quantize_v(v, inside) if pv == "fp8" else (v, None)
    o: Tensor
    o, lse = _attention(
        quant.q8,
        quant.q_scale,
        quant.k8,
        quant.k_scale,
        quant.bias,
        values,
        lists.idx,
        lists.cnt,
        lists.order,
        lists.kv_valid,
        kv_lens,
        lists.block_q,
        lists.block_k,
        lists.blocks_k,
        scale,
        groups == "block",
        backend or "auto",
    )
    group = q.shape[1] // k.shape[1]
    if v_scale is not None:
        o = o * (v_scale / FP8_MAX).repeat_interleave(group, 1)[:, :, None]
    o = o.to(q.dtype)
    if layout == "BNHD":
        o = o.transpose(1, 2)
    if not return_lse:
        return o
    # Smooth K took q.km off every score of a row.
    taken = (q.float() @ quant.km.repeat_interleave(group, 1).mT)[..., 0]
    return o, lse + taken * scale
