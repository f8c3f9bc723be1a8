"""The Mixture-of-Transformers (arXiv 2411.04996, Eq. 1-3 and Algorithm 1): one attention, K towers of weights.

    ids_T --embedding--> x_TD --L blocks--> hidden_TD --`logits`-------> scores of the next token
    latents_NL --`patches.into`--> rows of x_TD       --`patches.out`--> predicted noise or flow

The rows of a batch come grouped by tower and stay so through all layers: projections, norms and feed-forward work row
by row (`grouped`). Only around attention are they put into sequence order and back (`attention`). Rotation of queries
and keys uses each row's position in its document, so it needs no order either. A dense model is one tower.

Which weights a tower has of its own, experts in its feed-forward (`experts`), and layers in which towers do not see one
another, are the configuration's to say.

Letters: T rows of the batch, B packed rows, S positions in one, D model width, H query heads, K key and value heads,
C width of a head, F width of the feed-forward, G towers, X experts of all towers (one in a tower without), R rows of
their routers, V vocabulary, N latent patches, L width of one latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from motet.trainer.kernels.groups import Groups
from motet.trainer.model.attention import Attend, Permutation, packed_attention, restored
from motet.trainer.model.experts import Balance, route
from motet.trainer.model.float8 import float8_linear
from motet.trainer.model.grouped import compute_dtype, grouped_linear, grouped_rms_norm, swiglu
from motet.trainer.model.heads import attention_inputs
from motet.trainer.model.patches import patches_of
from motet.trainer.model.rotary import rotation

if TYPE_CHECKING:
    from motet.trainer.config import ModelConfig
    from motet.trainer.data.batch import GroupedBatch


def feed_forward_width(config: ModelConfig) -> int:
    """`config.ffn`, or 8D/3 rounded up to 256 as in the paper (to 64 in models narrower than 256)."""
    step = 256 if config.dim >= 256 else 64
    return config.ffn or -(-int(8 * config.dim / 3) // step) * step


@dataclass(frozen=True)
class Layout:
    """Where the rows of one batch lie, and what they see: everything that all layers share.

    Attributes:
        groups: rows of each tower.
        order: (for each position in sequence order its grouped row, for each grouped row its place in sequence order); None
            if both orders are the same.
        cos, sin: rotation of each grouped row, [T, 1, C/2].
        attend: attention in sequence order.
        balance: what the balance of experts is counted over, in training.
        recompute: what the backward pass computes again: `none`, `ffn` or `layer`.
    """

    groups: Groups
    order: Permutation
    cos: Tensor
    sin: Tensor
    attend: Attend
    balance: Balance | None = None
    recompute: str = "none"


class Block(nn.Module):
    """One layer: attention, then SwiGLU, each with a residual; the weights once per tower, or once if they are shared.

    With `norm: after`, x + norm(sublayer(x)) as in the paper; with `before`, x + sublayer(norm(x)) as in Llama.
    """

    def __init__(self, config: ModelConfig, towers: Sequence[str], layer: int):
        super().__init__()
        self.layer, self.after, self.eps, self.linear = layer, config.norm == "after", config.norm_eps, grouped_linear
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        self.width = config.dim // config.heads
        self.experts = tuple(config.experts.get(name) for name in (towers if "ffn" in config.untied else towers[:1]))
        hidden, X = feed_forward_width(config), sum(each.count if each else 1 for each in self.experts)
        R = sum(each.count for each in self.experts if each)
        qkv, out, norms = (own(config, towers, kind) for kind in ("qkv", "out", "norms"))
        self.qkv = _weight(qkv, (self.heads + 2 * self.kv_heads) * self.width, config.dim)
        self.out = _weight(out, config.dim, self.heads * self.width)
        self.gate_up = _weight(X, 2 * hidden, config.dim)
        self.down = _weight(X, config.dim, hidden)
        self.router = _weight(R, config.dim) if R else None
        self.attention_norm = _weight(norms, config.dim)
        self.ffn_norm = _weight(norms, config.dim)
        self.q_norm = _weight(norms, self.width) if config.qk_norm else None
        self.k_norm = _weight(norms, self.width) if config.qk_norm else None

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Grouped rows in, grouped rows out."""
        groups, residual, inner = layout.groups, x_TD.dtype, compute_dtype(x_TD)
        feed_forward = _again(self._feed_forward, layout.recompute == "ffn")
        if self.after:
            mixed_TD = self._attention(x_TD, layout)
            x_TD = grouped_rms_norm(mixed_TD, self.attention_norm, groups, self.eps, residual, x_TD)
            return grouped_rms_norm(feed_forward(x_TD, layout), self.ffn_norm, groups, self.eps, residual, x_TD)
        x_TD = x_TD + self._attention(grouped_rms_norm(x_TD, self.attention_norm, groups, self.eps, inner), layout)
        return x_TD + feed_forward(grouped_rms_norm(x_TD, self.ffn_norm, groups, self.eps, inner), layout)

    def _attention(self, x_TD: Tensor, layout: Layout) -> Tensor:
        qkv_TJC = self.linear(x_TD, self.qkv, layout.groups).unflatten(1, (-1, self.width))
        gains = None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)
        qkv = attention_inputs(
            qkv_TJC, self.kv_heads, gains, layout.groups, self.eps, layout.cos, layout.sin, layout.order
        )
        mixed_TD = layout.attend(self.layer, *qkv).flatten(1)
        return self.linear(restored(mixed_TD, layout.order), self.out, layout.groups)

    def _feed_forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        if self.router is None:
            return self._networks(x_TD, layout.groups)
        groups = layout.groups if len(self.experts) > 1 else layout.groups.whole
        routed = route(x_TD, self.router, self.experts, groups, layout.balance)
        y_PD = self._networks(x_TD.index_select(0, routed.row_P), routed.groups)
        y_PD = y_PD * routed.gate_P.unsqueeze(-1).to(y_PD.dtype)
        return y_PD.new_zeros(x_TD.shape).index_add(0, routed.row_P, y_PD)

    def _networks(self, x_PD: Tensor, groups: Groups) -> Tensor:
        return self.linear(swiglu(self.linear(x_PD, self.gate_up, groups)), self.down, groups)


class MoT(nn.Module):
    """The whole model.

    Args:
        config: shapes and choices.
        towers: the towers' names in the order in which batches group their rows; text's tower is the first.
        vocabulary: number of ids, all modalities together.
        latent_dim: width of one latent patch, 0 if the data has no continuous modality.
        seed: initial weights are a pure function of it; None = they are left as memory is (on the meta device there is none).
    """

    def __init__(
        self, config: ModelConfig, towers: Sequence[str], vocabulary: int, latent_dim: int = 0, seed: int | None = 0
    ):
        super().__init__()
        _check(config, towers)
        self.config, self.towers = config, tuple(towers)
        self.recompute = "none"
        D = config.dim
        self.width = D // config.heads
        self.embedding = nn.Embedding(vocabulary, D)
        self.blocks = nn.ModuleList(Block(config, self.towers, layer) for layer in range(config.layers))
        self.norm = _weight(own(config, towers, "norms"), D)
        self.head = nn.Linear(D, vocabulary, bias=False)
        self.patches = patches_of(D, latent_dim, config.unet)
        if seed is not None:
            for weight, value in self.initial(seed):
                weight.data.copy_(value)

    def use_float8(self) -> None:
        """Multiply in eight bits in all layers from now on: see `float8`."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.linear = float8_linear

    def initial(self, seed: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """(weight, its initial value as a whole, on the CPU), one after the other; a pure function of the seed.

        Matrices are normal with variance 1/fan_in, so that every width starts alike; with norms before the sub-layer,
        what writes to the residual stream is scaled by 1/sqrt(2 * layers). With norms after it, the norm decides how
        much a sub-layer writes, so that scale goes into its gain, and embeddings start at size one. Both heads start a
        tenth as large: first guesses are near uniform over the ids, and near zero noise.
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        depth = (2 * self.config.layers) ** -0.5
        after = self.config.norm == "after"
        for name, weight in self.named_parameters():
            kind = name.removesuffix(".weight").rpartition(".")[2]
            if weight.dim() == 1:
                yield weight, torch.full(weight.shape, float("norm" in kind and name.endswith("weight")))
            elif kind.endswith("norm"):
                gain = depth if after and kind in ("attention_norm", "ffn_norm") else 1.0
                yield weight, torch.full(weight.shape, gain)
            else:
                inputs = weight.shape[1:].numel() if weight.dim() == 4 else weight.shape[-1]
                std = 1.0 if kind == "embedding" else inputs**-0.5
                if kind in ("out", "down") and not after:
                    std *= depth
                if kind in ("head", "latent_out"):
                    std *= 0.1
                yield weight, torch.randn(weight.shape, generator=generator) * std

    def forward(self, batch: GroupedBatch, patch_ND: Tensor | None = None, balance: float = 0.0) -> Tensor:
        """hidden_TD in grouped order, after the last norm.

        `patch_ND` is what `patches.into` made of noisy latents; None = of the batch's clean ones. `balance` is the scale of
        the loss that keeps experts evenly used: see `experts.Balance`.
        """
        x_TD = self.embed(batch.ids_T)
        if len(batch.further_ids_J):
            x_TD = x_TD.index_add(0, batch.further_row_J, self.embed(batch.further_ids_J))
        if self.patches is not None:
            if patch_ND is None:
                patch_ND, _ = self.patches.into(batch.latents_ND, batch.time_N, batch.pictures)
            x_TD = x_TD.index_copy(0, batch.latent_row_N, patch_ND.to(x_TD.dtype))
        return self.run(x_TD, self.layout(batch, balance))

    def embed(self, ids_T: Tensor) -> Tensor:
        """Rows of the embedding table."""
        return self.embedding(ids_T)

    def layout(self, batch: GroupedBatch, balance: float = 0.0) -> Layout:
        """What all layers share, computed once per batch."""
        place_T, S, learn = batch.place_T, batch.sequence, torch.is_grad_enabled()
        alone = sum(count > 0 for count in batch.counts) == 1
        inverse_T = torch.empty_like(place_T).scatter_(0, place_T, torch.arange(len(place_T), device=place_T.device))
        groups = Groups(batch.counts, batch.offsets_G)
        cos, sin = rotation(batch.position_T, self.width, self.config.rope_theta, self.embedding.weight.dtype)
        return Layout(
            groups,
            None if alone else (inverse_T, place_T),
            cos,
            sin,
            self._attend(batch, inverse_T, groups),
            Balance(place_T // S, batch.rows, balance) if learn and balance and self.config.experts else None,
            self.recompute if learn else "none",
        )

    def _attend(self, batch: GroupedBatch, inverse_T: Tensor, groups: Groups) -> Attend:
        """Attention of every layer: to all towers, or to a position's own."""
        document_BS, block_BS = (
            x[inverse_T].view(batch.rows, batch.sequence) for x in (batch.document_T, batch.block_T)
        )
        has_blocks, dtype = len(batch.latent_row_N) > 0, compute_dtype(self.embedding.weight)
        across = packed_attention(document_BS, block_BS, has_blocks, dtype, self.width)
        crossing = self.config.cross_layers
        if crossing is None:
            return across
        tower_BS = torch.bucketize(inverse_T, groups.offsets_G, right=True).view_as(document_BS)
        within = packed_attention(document_BS, block_BS, has_blocks, dtype, self.width, tower_BS)
        return lambda layer, *qkv: (across if layer in crossing else within)(layer, *qkv)

    def run(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """All blocks and the last norm."""
        for block in self.blocks:
            x_TD = _again(block, layout.recompute == "layer")(x_TD, layout)
        return grouped_rms_norm(x_TD, self.norm, layout.groups, self.config.norm_eps, x_TD.dtype)

    def logits(self, hidden_ND: Tensor, begin: int = 0, end: int | None = None) -> Tensor:
        """Scores of the ids in [begin, end) as the next token."""
        return F.linear(hidden_ND, self.head.weight[begin:end])


def own(config: ModelConfig, towers: Sequence[str], kind: str) -> int:
    """How many sets of the weights called `kind` there are: one for each tower, or one for all."""
    return len(towers) if kind in config.untied else 1


def _check(config: ModelConfig, towers: Sequence[str]) -> None:
    if strange := sorted(set(config.experts) - set(towers)):
        raise ValueError(f"experts: there is no tower {strange[0]}; there are {', '.join(towers)}")
    if config.experts and len(towers) > 1 and "ffn" not in config.untied:
        raise ValueError("experts: the towers share one feed-forward; experts need ffn among `untied`, or one tower")


def _again(work: Callable[[Tensor, Layout], Tensor], wanted: bool) -> Callable[[Tensor, Layout], Tensor]:
    """`work`, or if so wanted the same without keeping what its backward pass needs: it is computed again then."""
    if not wanted:
        return work
    return lambda x_TD, layout: checkpoint(work, x_TD, layout, use_reentrant=False, preserve_rng_state=False)


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))
