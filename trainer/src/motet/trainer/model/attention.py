"""The one operation that mixes rows: attention over packed documents, in sequence order.

    grouped rows --`in_sequence`--> sequence order --`Attend`--> sequence order --`restored`--> grouped rows

A position sees the positions of its own document that come before it, and, where it is a patch of a picture given as
latents, the whole of that picture (its *block*). In layers where towers do not cross, it sees its own tower's only. Padding forms a document of its own, so that every position sees one.
What is seen is worked out once per batch and serves every layer, in one of three forms:

- CPU: attention is block-diagonal, so each run of whole documents (a *segment*) is attended to on its own, and the
  empty part of the row costs nothing.
- GPU, half precision: FlexAttention, compiled, which skips the empty tiles of one mask.
- GPU, float32 and float64: one boolean mask per row, for checks.

Letters: T = B*S positions, B packed rows, S positions in one, H query heads, K key and value heads, C width of a head,
n positions of one segment.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_THC, k_TKC, v_TKC), in sequence order -> mixed values [T, H, C]."""

SEGMENT = 64
"""Short documents share a segment up to this many positions: below it, a call costs more than the products in it."""


Permutation = tuple[Tensor, Tensor] | None
"""(for each position in sequence order its grouped row, the inverse); None if both orders are the same."""


def in_sequence(x: Tensor, order: Permutation) -> Tensor:
    """Grouped rows in sequence order."""
    return x if order is None else _Reorder.apply(x, *order)


def restored(x: Tensor, order: Permutation) -> Tensor:
    """Rows in sequence order in grouped order again."""
    return x if order is None else _Reorder.apply(x, *reversed(order))


class _Reorder(torch.autograd.Function):
    """A permutation's gradient is a gather too; autograd alone would zero-fill and scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index_T: Tensor, inverse_T: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_T)
        return x.index_select(0, index_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse_T,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse_T), None, None


def packed_attention(
    document_BS: Tensor,
    block_BS: Tensor,
    has_blocks: bool,
    dtype: torch.dtype,
    width: int,
    tower_BS: Tensor | None = None,
) -> Attend:
    """Attention over packed documents, in the form that suits the device.

    `has_blocks` says (from the host) whether any position belongs to a block; `dtype` and `width` are those of a head. With
    `tower_BS` a position sees the positions of its own tower only.
    """
    alike_BS = document_BS if tower_BS is None else (document_BS.long() << 8) + tower_BS
    if document_BS.device.type == "cpu":
        return _segmented(document_BS, alike_BS, block_BS)
    if dtype in (torch.bfloat16, torch.float16) and width >= 16:
        return _flex_attention(alike_BS, block_BS, has_blocks, dtype)
    mask_B1SS = visible(alike_BS, block_BS).unsqueeze(1)
    rows = len(document_BS)

    def attend(layer: int, *qkv: Tensor) -> Tensor:
        q, k, v = (_rows(x.to(dtype), rows) for x in qkv)
        mixed_BHSC = scaled_dot_product(q, k, v, mask_B1SS)
        return mixed_BHSC.transpose(1, 2).flatten(0, 1)

    return attend


def visible(alike_BS: Tensor, block_BS: Tensor) -> Tensor:
    """Boolean mask [B, S, S]: which keys (last axis) each query sees, of those with its own number in `alike_BS`."""
    S = alike_BS.shape[1]
    causal_SS = torch.ones(S, S, dtype=torch.bool, device=alike_BS.device).tril()
    together_BSS = (block_BS[:, :, None] == block_BS[:, None, :]) & (block_BS[:, :, None] > 0)
    return (causal_SS | together_BSS) & (alike_BS[:, :, None] == alike_BS[:, None, :])


def scaled_dot_product(q_BHSC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(C)) v under a boolean mask, None being causal; key heads serve runs of query heads."""
    repeats = q_BHSC.shape[1] // k_BKSC.shape[1]
    if repeats > 1:
        k_BKSC, v_BKSC = (x.repeat_interleave(repeats, dim=1) for x in (k_BKSC, v_BKSC))
    return F.scaled_dot_product_attention(q_BHSC, k_BKSC, v_BKSC, attn_mask=mask, is_causal=mask is None)


def _segmented(document_BS: Tensor, alike_BS: Tensor, block_BS: Tensor) -> Attend:
    """Attention one segment at a time; the tensors are on the host, where reading them costs nothing.

    Works in the type of the queries: in bf16 the backward pass of a CPU's attention is 4 to 7 times slower than in float32.
    """
    document_T, alike_T, block_T = _apart(document_BS), _apart(alike_BS), block_BS.reshape(-1)
    edges = [*(document_T.diff().nonzero().squeeze(-1) + 1).tolist(), document_T.numel()]
    ends, begin = [], 0
    for end, after in zip(edges, [*edges[1:], None], strict=True):
        if after is None or after - begin > SEGMENT:
            ends.append(end)
            begin = end
    lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    masks: list[Tensor | None] = []
    for alike_n, block_n in zip(alike_T.split(lengths), block_T.split(lengths), strict=True):
        plain = not block_n.any() and (alike_n == alike_n[0]).all()
        masks.append(None if plain else visible(alike_n[None], block_n[None])[None])

    def attend(layer: int, q_THC: Tensor, k_TKC: Tensor, v_TKC: Tensor) -> Tensor:
        v_TKC = v_TKC.to(q_THC.dtype)
        parts = zip(q_THC.split(lengths), k_TKC.split(lengths), v_TKC.split(lengths), masks, strict=True)
        with torch.autocast("cpu", enabled=False):
            mixed = [scaled_dot_product(_rows(q, 1), _rows(k, 1), _rows(v, 1), mask) for q, k, v, mask in parts]
        return torch.cat([mixed_1HnC[0].transpose(0, 1) for mixed_1HnC in mixed])

    return attend


def _apart(number_BS: Tensor) -> Tensor:
    """The numbers in one dimension, those of different rows made different."""
    rows = torch.arange(len(number_BS)).unsqueeze(-1)
    return (number_BS + rows * (int(number_BS.max()) + 1)).reshape(-1)


def _rows(x_TJC: Tensor, rows: int) -> Tensor:
    """[T, J, C] as [rows, J, T / rows, C]."""
    return x_TJC.unflatten(0, (rows, -1)).transpose(1, 2)


def _flex_attention(alike_BS: Tensor, block_BS: Tensor, has_blocks: bool, dtype: torch.dtype) -> Attend:
    B, S = alike_BS.shape

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = q >= k
        if has_blocks:
            seen = seen | ((block_BS[b, q] == block_BS[b, k]) & (block_BS[b, q] > 0))
        return seen & (alike_BS[b, q] == alike_BS[b, k])

    flex, create_block_mask = _compiled_flex()
    blocks = create_block_mask(mask, B=B, H=None, Q_LEN=S, KV_LEN=S, device=alike_BS.device)

    def attend(layer: int, q_THC: Tensor, k_TKC: Tensor, v_TKC: Tensor) -> Tensor:
        q, k, v = (_rows(x.to(dtype), B) for x in (q_THC, k_TKC, v_TKC))
        mixed_BHSC = flex(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])
        return mixed_BHSC.transpose(1, 2).flatten(0, 1)

    return attend


@cache
def _compiled_flex() -> tuple[Any, Any]:
    """Both compiled once per process: eager FlexAttention would build the whole S x S matrix."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask, dynamic=False)
