"""From the fused projection to what attention takes: queries and keys normalised and turned, all in sequence order.

    qkv_TJC, grouped order --QK-norm with the tower's gain, rotation, `in_sequence`--> q_THC, k_TKC, v_TKC, sequence order

One kernel on a GPU (`kernels.rope`); elsewhere step by step.

Letters: T rows, J = H + 2K heads, H query heads, K key heads and as many value heads, C width of a head, G towers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from motet.trainer import kernels
from motet.trainer.kernels.groups import Groups
from motet.trainer.model.attention import Permutation, in_sequence
from motet.trainer.model.grouped import grouped_rms_norm
from motet.trainer.model.rotary import rotate


def attention_inputs(
    qkv_TJC: Tensor,
    kv_heads: int,
    gains: tuple[Tensor, Tensor] | None,
    groups: Groups,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    order: Permutation,
) -> tuple[Tensor, Tensor, Tensor]:
    """(q_THC, k_TKC, v_TKC) in sequence order.

    Args:
        qkv_TJC: query heads, then `kv_heads` key heads, then as many value heads, in grouped order.
        kv_heads: K.
        gains: of the queries' and the keys' norms, [G, C] each; None for no norm.
        groups: rows of each tower.
        eps: what the norms add to the mean square.
        cos: cosines of each row's angles, [T, 1, C/2].
        sin: their sines.
        order: (for each position in sequence order its grouped row, the inverse); None if both orders are the same.
    """
    K, H = kv_heads, qkv_TJC.shape[1] - 2 * kv_heads
    q_gain, k_gain = gains or (None, None)
    if kernels.usable(qkv_TJC):
        from motet.trainer.kernels import rope

        offsets_G = groups.offsets_G if q_gain is None else groups.of(q_gain).offsets_G
        return rope.qk_norm_rope(qkv_TJC, K, q_gain, k_gain, offsets_G, eps, cos, sin, order and order[1])
    qk_TJC, v_TKC = qkv_TJC.split((H + K, K), dim=1)
    if q_gain is not None and k_gain is not None:
        gain_GJC = torch.cat((q_gain[:, None].expand(-1, H, -1), k_gain[:, None].expand(-1, K, -1)), 1)
        qk_TJC = grouped_rms_norm(qk_TJC, gain_GJC, groups, eps, cos.dtype)
    qk_TJC = rotate(qk_TJC, cos, sin)
    qk_TJC, v_TKC = (in_sequence(x, order) for x in (qk_TJC, v_TKC))
    q_THC, k_TKC = qk_TJC.split((H, K), dim=1)
    return q_THC, k_TKC, v_TKC
