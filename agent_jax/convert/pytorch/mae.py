"""The masked autoencoder: which patches are hidden, and the decoder that reconstructs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from agent_jax.convert.pytorch.layers import take
from agent_jax.convert.pytorch.vision import VisionBlock


class Mask(NamedTuple):
    """Visible and hidden patches: int64 indices, both ascending, and the index of patch p in [keep, hide]."""

    keep_BFJ: Tensor
    hide_BFI: Tensor
    restore_BFP: Tensor


def random_mask(clip_BF: Tensor, patches: int, mask_ratio: float, generator: torch.Generator | None = None) -> Mask:
    """A random mask for every image, the same for images of one clip."""
    visible = max(1, int(patches * (1.0 - mask_ratio) + 1e-6))
    noise_BFP = torch.rand(*clip_BF.shape, patches, generator=generator, device=clip_BF.device)
    first_BF = (clip_BF[:, :, None] == clip_BF[:, None]).int().argmax(dim=-1)  # the first image of each clip
    order_BFP = take(noise_BFP, first_BF).argsort(dim=-1)
    keep, hide = order_BFP[..., :visible].sort(dim=-1)[0], order_BFP[..., visible:].sort(dim=-1)[0]
    return Mask(keep, hide, torch.cat([keep, hide], dim=-1).argsort(dim=-1))


class MaeDecoder(nn.Module):
    """Reconstructs the hidden patches from the visible tokens (He et al., 2022)."""

    positions: Tensor

    def __init__(self, c: Mapping[str, Any], vision: Mapping[str, Any]):
        super().__init__()
        width, side = c["width"], vision["patch_size"]
        self.input = nn.Linear(vision["width"], width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(VisionBlock(c) for _ in range(c["depth"]))
        self.norm = nn.LayerNorm(width, c["layer_norm_eps"])
        self.prediction = nn.Linear(width, side * side * 3)
        table = sincos_positions(vision["image_size"] // side, width)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, tokens_BFVD: Tensor, mask: Mask) -> Tensor:
        """predicted_BFIX in f32: normalised pixels of the hidden patches, in the order of `mask.hide_BFI`."""
        x = self.input(tokens_BFVD)
        hidden = self.mask_token.to(x.dtype).expand(*mask.hide_BFI.shape, -1)
        image = take(torch.cat([x[:, :, 1:], hidden], dim=2), mask.restore_BFP)
        x = torch.cat([x[:, :, :1], image], dim=2) + self.positions.to(x.dtype)
        for layer in self.layers:
            x = layer(x, None)
        return self.prediction(take(self.norm(x)[:, :, 1:], mask.hide_BFI)).float()


def sincos_positions(grid: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (1 + grid * grid, width), columns first, zeros for CLS."""
    frequency = 1.0 / 10000 ** (np.arange(width // 4) / (width // 4))
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    angles = [coordinate.reshape(-1, 1) * frequency for coordinate in (columns, rows)]
    table = np.concatenate([function(angle) for angle in angles for function in (np.sin, np.cos)], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, width)), table]).astype(np.float32))
