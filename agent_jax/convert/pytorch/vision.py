"""The vision transformer: CLIP's, with temporal attention in a video model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name in PyTorch's documentation
from torch import Tensor, nn

from agent_jax.convert.pytorch.layers import Attention, Mlp, attend, take


class VisionBlock(nn.Module):
    """CLIP's block over images (B, F, V, D), with temporal attention in a video model."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        width, eps = c["width"], c["layer_norm_eps"]
        self.layer_norm1, self.self_attn = nn.LayerNorm(width, eps), Attention(width, c["heads"])
        self.layer_norm2, self.mlp = nn.LayerNorm(width, eps), Mlp(width, c["mlp_width"], c["activation"])
        self.temporal = c["temporal_order"] if c.get("temporal_attention") else "none"
        if self.temporal != "none":
            self.temporal_norm, self.temporal_attn = nn.LayerNorm(width, eps), Attention(width, c["heads"])

    def forward(self, x: Tensor, clip_BF: Tensor | None) -> Tensor:
        """`clip_BF` is the clip of each image; None: each image is its own clip."""
        spatial_input = x + self._across_images(x, clip_BF) if self.temporal == "before" else x
        x = x + self._within_images(self.layer_norm1(spatial_input), clip_BF)
        if self.temporal == "after":
            x = x + self._across_images(x, clip_BF)
        return x + self.mlp(self.layer_norm2(x))

    def _within_images(self, x: Tensor, clip_BF: Tensor | None) -> Tensor:
        """A patch attends to its image and CLS; CLS attends to all patches of its clip (Bain et al., 2021)."""
        q, k, v = self.self_attn.project(x)
        if self.temporal == "none" or clip_BF is None:
            out = attend(*(y.flatten(0, 1) for y in (q, k, v))).unflatten(0, x.shape[:2])
        else:
            patches = attend(q[:, :, 1:].flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).unflatten(0, x.shape[:2])
            out = torch.cat([_class_attention(q, k, v, clip_BF), patches], dim=2)
        return self.self_attn.out(out)

    def _across_images(self, x: Tensor, clip_BF: Tensor | None) -> Tensor:
        """A patch attends to its position in all images of its clip, and CLS; 0 for clips of one image."""
        if clip_BF is None:
            return torch.zeros_like(x)
        q, k, v = self.temporal_attn.project(self.temporal_norm(x))
        same_BFG = clip_BF[:, :, None] == clip_BF[:, None]
        scores = torch.einsum("BFPNH,BGPNH->BPNFG", q[:, :, 1:], k[:, :, 1:])
        scores = scores.masked_fill(~same_BFG[:, None, None], torch.finfo(scores.dtype).min)
        class_scores = torch.einsum("BFPNH,BFNH->BPNF", q[:, :, 1:], k[:, :, 0])[..., None]
        scores = torch.cat([class_scores, scores], dim=-1).float() * q.shape[-1] ** -0.5
        weights = scores.softmax(dim=-1).to(v.dtype)
        out = torch.einsum("BPNFG,BGPNH->BFPNH", weights[..., 1:], v[:, :, 1:])
        out = out + torch.einsum("BPNF,BFNH->BFPNH", weights[..., 0], v[:, :, 0])
        out = self.temporal_attn.out(torch.cat([_class_attention(q, k, v, clip_BF), out], dim=2))
        several_BF = same_BFG.sum(dim=-1) > 1
        return torch.where(several_BF[..., None, None], out, torch.zeros_like(out))


def _class_attention(q: Tensor, k: Tensor, v: Tensor, clip_BF: Tensor) -> Tensor:
    """Attention of every image's CLS to itself and all patches of its clip: (B, F, 1, N, H)."""
    B, frames, V = q.shape[:3]

    def spread(y: Tensor) -> Tensor:
        patches = y[:, :, 1:].flatten(1, 2)[:, None].expand(-1, frames, -1, -1, -1)
        return torch.cat([y[:, :, :1], patches], dim=2).flatten(0, 1)

    same_BFG = clip_BF[:, :, None] == clip_BF[:, None]
    mask = torch.cat([same_BFG.new_ones(B, frames, 1), same_BFG.repeat_interleave(V - 1, dim=2)], dim=2)
    out = attend(q[:, :, :1].flatten(0, 1), spread(k), spread(v), mask.flatten(0, 1)[:, None, None])
    return out.unflatten(0, (B, frames))


class VisionEmbeddings(nn.Module):
    """CLIP's patch kernel and position table; a fixed sin-cos table is stored too, but not trained."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        width, side = c["width"], c["patch_size"]
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, side, side, bias=False)
        self.position_embedding = nn.Embedding(1 + (c["image_size"] // side) ** 2, width)
        self.position_embedding.weight.requires_grad_(c["positions"] == "clip")


class VisionBlocks(nn.Module):
    """CLIP's blocks, named as in its files."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.layers = nn.ModuleList(VisionBlock(c) for _ in range(c["depth"]))


class Vision(nn.Module):
    """CLIP's vision transformer (Radford et al., 2021); post_layernorm is applied to all tokens."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        width, eps = c["width"], c["layer_norm_eps"]
        self.embeddings, self.encoder = VisionEmbeddings(c), VisionBlocks(c)
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(self, patches_BFPX: Tensor, clip_BF: Tensor | None, keep_BFJ: Tensor | None = None) -> Tensor:
        """tokens_BFVD, CLS first, of all patches or of those in `keep_BFJ`."""
        if keep_BFJ is not None:
            patches_BFPX = take(patches_BFPX, keep_BFJ)
        # A convolution whose stride is its width is a matrix product, here of pixels by row, column, channel.
        kernel_DX = self.embeddings.patch_embedding.weight.permute(0, 2, 3, 1).flatten(1)
        x = F.linear(patches_BFPX.to(kernel_DX.dtype), kernel_DX)
        position_VD = self.embeddings.position_embedding.weight
        x = x + (position_VD[1:] if keep_BFJ is None else position_VD[1:][keep_BFJ])
        classes = (self.embeddings.class_embedding + position_VD[0]).expand(*x.shape[:2], 1, -1)
        x = self.pre_layrnorm(torch.cat([classes.to(x.dtype), x], dim=2))
        for layer in self.encoder.layers:
            x = layer(x, clip_BF)
        return self.post_layernorm(x)
