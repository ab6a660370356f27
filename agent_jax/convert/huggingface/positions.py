"""Resizes CLIP's position table for images of another size, as transformers does (`interpolate_pos_encoding`).

That is torch.nn.functional.interpolate(mode="bicubic", align_corners=False) on the grid of patches; the row of CLS does
not change.
"""

from __future__ import annotations

import numpy as np

A = -0.75  # of the cubic kernel in PyTorch (Keys, 1981, has -0.5)


def resized_positions(table_VD: np.ndarray, grid: int) -> np.ndarray:
    """The table (1 + grid * grid, D) in f32, from one of (1 + n * n, D)."""
    old, width = round((len(table_VD) - 1) ** 0.5), table_VD.shape[1]
    assert old * old + 1 == len(table_VD), len(table_VD)
    if old == grid:
        return table_VD
    weights = _bicubic(old, grid)
    patches = table_VD[1:].reshape(old, old, width).astype(np.float64)
    patches = np.einsum("or,pc,rcd->opd", weights, weights, patches, optimize=True)
    return np.concatenate([table_VD[:1], patches.reshape(-1, width).astype(np.float32)])


def _bicubic(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of the four nearest points; the edge is repeated; no antialiasing."""
    # In float32 as in PyTorch; in float64 the weights differ in the sixth digit.
    scale = np.float32(old) / np.float32(new)
    centre = scale * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    first = np.floor(centre).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        distance = np.abs(centre.astype(np.float64) - (first + tap))
        near = ((A + 2) * distance - (A + 3)) * distance**2 + 1
        far = A * (((distance - 5) * distance + 8) * distance - 4)
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(distance <= 1, near, far))
    return weights
