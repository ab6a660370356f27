"""The language model: OPT's decoder, with a KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name in PyTorch's documentation
from torch import Tensor, nn

from agent_jax.convert.pytorch.layers import ACTIVATIONS, Attention, attend

POSITION_OFFSET = 2  # the first two rows of OPT's position table are unused


class Cache:
    """KV cache of every layer, in columns; a row attends to the columns that `own_BZ` marks."""

    def __init__(self, c: Mapping[str, Any], rows: int, columns: int, like: Tensor):
        shape = (c["depth"], 2, rows, columns, c["heads"], c["width"] // c["heads"])
        self.kv = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.own_BZ = torch.zeros(rows, columns, dtype=torch.bool, device=like.device)
        self.used = 0

    def append(self, real_BC: Tensor) -> Tensor:
        """Reserve columns for C slots of every row; returns their mask (B, 1, C, Z)."""
        first, self.used = self.used, self.used + real_BC.shape[1]
        self.own_BZ[:, first : self.used] = real_BC
        column_Z = torch.arange(self.used, device=real_BC.device)
        causal_CZ = column_Z[first:, None] >= column_Z[None]
        own_BCZ = self.own_BZ[:, None, : self.used] & causal_CZ
        # Padding attends to itself, so that no softmax is empty.
        return (own_BCZ | (column_Z[first:, None] == column_Z[None]))[:, None]


class DecoderBlock(nn.Module):
    """OPT's pre-LayerNorm block (Zhang et al., 2022)."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        width, eps = c["width"], c["layer_norm_eps"]
        self.self_attn_layer_norm, self.self_attn = nn.LayerNorm(width, eps), Attention(width, c["heads"])
        self.final_layer_norm, self.activation = nn.LayerNorm(width, eps), c["activation"]
        self.fc1, self.fc2 = nn.Linear(width, c["mlp_width"]), nn.Linear(c["mlp_width"], width)
        self.dropout = nn.Dropout(c["dropout"])

    def forward(self, x_BSD: Tensor, mask: Tensor, kv: Tensor | None = None, used: int = 0) -> Tensor:
        """`kv` (2, B, Z, N, H) is the layer's part of a cache, whose keys end at column `used`."""
        q, k, v = self.self_attn.project(self.self_attn_layer_norm(x_BSD))
        if kv is not None:
            kv[0, :, used - k.shape[1] : used], kv[1, :, used - k.shape[1] : used] = k, v
            k, v = kv[:, :, :used]
        x_BSD = x_BSD + self.dropout(self.self_attn.out(attend(q, k, v, mask)))
        hidden = ACTIVATIONS[self.activation](self.fc1(self.final_layer_norm(x_BSD)))
        return x_BSD + self.dropout(self.fc2(hidden))


class Language(nn.Module):
    """OPT on an embedded row; its output head is tied to the token table."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocabulary_size"], c["width"])
        self.embed_positions = nn.Embedding(c["positions"] + POSITION_OFFSET, c["width"])
        self.layers = nn.ModuleList(DecoderBlock(c) for _ in range(c["depth"]))
        self.final_layer_norm = nn.LayerNorm(c["width"], c["layer_norm_eps"])

    def forward(self, x_BSD: Tensor, position_BS: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden states after the final norm; `mask` (B, 1, S, Z) from `causal_mask` or the cache."""
        x_BSD = x_BSD + self.embed_positions(position_BS + POSITION_OFFSET)
        for number, layer in enumerate(self.layers):
            x_BSD = layer(x_BSD, mask, *((cache.kv[number], cache.used) if cache else ()))
        return self.final_layer_norm(x_BSD)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., K), f32."""
        return F.linear(hidden, self.embed_tokens.weight).float()


def causal_mask(segment_BS: Tensor) -> Tensor:
    """(B, 1, S, S): a slot attends to itself and the earlier slots of its sample."""
    S = segment_BS.shape[1]
    causal_SS = torch.ones(S, S, dtype=torch.bool, device=segment_BS.device).tril()
    return (causal_SS & (segment_BS[:, :, None] == segment_BS[:, None]))[:, None]
