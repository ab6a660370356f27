"""Layers of both transformers, with the names of CLIP and OPT in Hugging Face's files."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name in PyTorch's documentation
from torch import Tensor, nn

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}


class Attention(nn.Module):
    """q, k, v and output projections, named as in CLIP and OPT; the caller attends."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (..., D) -> q, k, v (..., N, H)."""
        return tuple(p(x).unflatten(-1, (self.heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))

    def out(self, heads: Tensor) -> Tensor:
        """(..., N, H) -> (..., D)."""
        return self.out_proj(heads.flatten(-2))


def attend(q_BSNH: Tensor, k_BZNH: Tensor, v_BZNH: Tensor, mask: Tensor | None = None) -> Tensor:
    """out_BSNH; `mask` broadcasts to (B, N, S, Z), True where a query may attend to a key."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSNH, k_BZNH, v_BZNH))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


class Mlp(nn.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Linear(width, hidden), nn.Linear(hidden, width), activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Entries of x (*leading, n, *rest) by an index (*leading, m): (*leading, m, *rest)."""
    rest = x.shape[index.dim() :]
    return x.gather(index.dim() - 1, index[(..., *(None,) * len(rest))].expand(*index.shape, *rest))
