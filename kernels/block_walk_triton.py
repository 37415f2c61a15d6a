"""What Triton kernels over block lists share: whose list a program walks, which keys count, and the
online softmax.

Pointers may be absent (None), which a kernel knows when it is compiled. Strides come as tuples, in
the order of the axes.
"""

from typing import no_type_check

import triton
import triton.language as tl

__all__ = ["dot", "finished", "key_mask", "keys_end", "list_of", "load_rows", "online_softmax"]
__all__ += ["program_of"]


@triton.jit
@no_type_check
def dot(a, b, UPCAST_DOT: tl.constexpr, PRECISION: tl.constexpr):
    if UPCAST_DOT:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
@no_type_check
def program_of(p_order, LISTS, H: tl.constexpr, PARTS: tl.constexpr):
    # Which part of which list, of which batch entry and head: parts of a list are neighbours.
    pid = tl.program_id(0)
    list_id = pid // PARTS
    if p_order is not None:
        list_id = tl.load(p_order + list_id)
    i = (list_id % LISTS).to(tl.int64)
    b = (list_id // LISTS // H).to(tl.int64)
    h = (list_id // LISTS % H).to(tl.int64)
    return pid % PARTS, i, b, h


@triton.jit
@no_type_check
def list_of(p_idx, p_cnt, s_idx, s_cnt, b, h, i):
    # Where a list begins, and how long it is.
    count = tl.load(p_cnt + b * s_cnt[0] + h * s_cnt[1] + i * s_cnt[2])
    return p_idx + b * s_idx[0] + h * s_idx[1] + i * s_idx[2], count


@triton.jit
@no_type_check
def load_rows(p_x, s_x, rows, o_d, mask):
    return tl.load(p_x + rows[:, None] * s_x[2] + o_d[None, :] * s_x[3], mask=mask, other=0.0)


@triton.jit
@no_type_check
def keys_end(p_lens, b, M):
    end = M
    if p_lens is not None:
        end = tl.minimum(end, tl.load(p_lens + b).to(tl.int32))
    return end


@triton.jit
@no_type_check
def key_mask(o_k, j, end, p_valid, BLOCK_K: tl.constexpr, EVEN: tl.constexpr):
    # Which of the rows o_k of key block j are keys; EVEN: all rows of all blocks are.
    mask = o_k < BLOCK_K
    if not EVEN:
        mask = mask & (j.to(tl.int64) * BLOCK_K + o_k < end)
        if p_valid is not None:
            mask = mask & (o_k < tl.load(p_valid + j))
    return mask


@triton.jit
@no_type_check
def online_softmax(s, b_m, b_l):
    # m' = max(m, rowmax s),  p = 2^(s - m'),  a = 2^(m - m'),  l' = l * a + rowsum p
    m_new = tl.maximum(b_m, tl.max(s, 1))
    # A row that has seen no key keeps m = -inf, and -inf minus -inf is no number.
    m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    a = tl.exp2(b_m - m_safe)
    p = tl.exp2(s - m_safe[:, None])
    return p, a, m_new, b_l * a + tl.sum(p, 1)


@triton.jit
@no_type_check
def finished(b_acc, b_m, b_l):
    # o = acc / l,  lse = (m + log2 l) ln 2;  0 and -inf where no key was seen
    l_safe = tl.where(b_l == 0.0, 1.0, b_l)
    return b_acc / l_safe[:, None], (b_m + tl.log2(l_safe)) * 0.6931471805599453
