"""Turns or mirrors a video's pictures by its display matrix, which phones write.

    x' = a x + c y        a, b, c, d = 1, 0, 0, 1     as stored              0, -1, 1, 0    90 degrees counterclockwise
    y' = b x + d y                    -1, 0, 0, -1    turned upside down    -1,  0, 0, 1    mirrored

x grows to the right and y downwards. The eight quarter turns and mirrorings only move pixels, without resampling.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# Tolerance of the other two entries: writers round cosines, and players ignore a degree (1.7%).
_SMALL = 0.02


@dataclasses.dataclass(frozen=True)
class Rotation:
    """The transformation that makes a picture upright: transpose, then reverse rows and columns."""

    transposed: bool = False
    reverse_rows: bool = False
    reverse_columns: bool = False

    def upright(self, image: np.ndarray) -> np.ndarray:
        """The image (height, width, 3) as a player shows it, contiguous."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        if self.reverse_rows:
            image = image[::-1]
        if self.reverse_columns:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)


def turn_of(matrix: bytes) -> Rotation:
    """The rotation of a display matrix: 9 int32 in native byte order, as FFmpeg gives it (a b u, c d v, x y w).

    Raises:
        ValueError: the matrix has another size, or does not turn by a multiple of 90 degrees.
    """
    if len(matrix) != 36:
        raise ValueError(f"found a display matrix of {len(matrix)} bytes, expected 36")
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).astype(np.int64).tolist()
    if not any((a, b, c, d)):
        return Rotation()  # players ignore a matrix of zeros
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if max(abs(b), abs(c)) < _SMALL * straight:
        return Rotation(reverse_rows=d < 0, reverse_columns=a < 0)
    if max(abs(a), abs(d)) < _SMALL * crossed:
        return Rotation(transposed=True, reverse_rows=b < 0, reverse_columns=c < 0)
    numbers = ", ".join(f"{value / 65536:.3g}" for value in (a, b, c, d))
    raise ValueError(f"found the display matrix ({numbers}), expected quarter turns and mirrorings")
