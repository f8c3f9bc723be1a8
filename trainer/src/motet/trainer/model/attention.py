"""The one operation that mixes rows: attention over each packed row, in sequence order.

    grouped rows --`reorder`--> sequence order --attention under a mask--> sequence order --`reorder`--> grouped rows

A position sees the positions of its own document that come before it, and, where it is a patch of a picture given as
latents, the whole of that picture (its *block*). Padding forms a document of its own, so that no row of the mask is
empty. The mask is built once per batch and serves every layer.

Letters: T = B*S rows, B packed rows, S positions in one, H query heads, K key and value heads, C width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_BHSC, k_BKSC, v_BKSC) -> mixed values [B, H, S, C]."""


def reorder(x: Tensor, index_T: Tensor | None, inverse_T: Tensor | None) -> Tensor:
    """`x[index_T]`, where `inverse_T` undoes `index_T`; None leaves the order as it is."""
    if index_T is None:
        return x
    return _Reorder.apply(x, index_T, inverse_T)


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


def packed_attention(document_BS: Tensor, block_BS: Tensor, has_blocks: bool, dtype: torch.dtype, width: int) -> Attend:
    """Attention over packed documents: a compiled FlexAttention kernel on a GPU, else SDPA under a mask.

    `has_blocks` says (from the host) whether any position belongs to a bidirectional block.
    """
    if document_BS.is_cuda and dtype in (torch.bfloat16, torch.float16) and width >= 16:
        return _flex_attention(document_BS, block_BS, has_blocks)
    mask_B1SS = visible(document_BS, block_BS, has_blocks).unsqueeze(1)

    def attend(layer: int, q_BHSC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
        return scaled_dot_product(q_BHSC, k_BKSC, v_BKSC, mask_B1SS)

    return attend


def visible(document_BS: Tensor, block_BS: Tensor, has_blocks: bool = True) -> Tensor:
    """Boolean mask [B, S, S]: which keys (last axis) each query sees."""
    S = document_BS.shape[1]
    mask_BSS = torch.ones(S, S, dtype=torch.bool, device=document_BS.device).tril()
    if has_blocks:
        mask_BSS = mask_BSS | ((block_BS[:, :, None] == block_BS[:, None, :]) & (block_BS[:, :, None] > 0))
    return mask_BSS & (document_BS[:, :, None] == document_BS[:, None, :])


def scaled_dot_product(q_BHSC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v under a boolean mask; with fewer key heads each serves a run of query heads."""
    repeats = q_BHSC.shape[1] // k_BKSC.shape[1]
    if repeats > 1:
        k_BKSC, v_BKSC = (x.repeat_interleave(repeats, dim=1) for x in (k_BKSC, v_BKSC))
    return F.scaled_dot_product_attention(q_BHSC, k_BKSC, v_BKSC, attn_mask=mask)


def _flex_attention(document_BS: Tensor, block_BS: Tensor, has_blocks: bool) -> Attend:
    B, S = document_BS.shape

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = q >= k
        if has_blocks:
            seen = seen | ((block_BS[b, q] == block_BS[b, k]) & (block_BS[b, q] > 0))
        return seen & (document_BS[b, q] == document_BS[b, k])

    flex, create_block_mask = _compiled_flex()
    blocks = create_block_mask(mask, B=B, H=None, Q_LEN=S, KV_LEN=S, device=document_BS.device)

    def attend(layer: int, q_BHSC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
        gqa = q_BHSC.shape[1] != k_BKSC.shape[1]
        return flex(q_BHSC, k_BKSC, v_BKSC, block_mask=blocks, enable_gqa=gqa)

    return attend


@cache
def _compiled_flex() -> tuple[Any, Any]:
    """Both compiled once per process: eager FlexAttention would build the whole S x S matrix."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask, dynamic=False)
