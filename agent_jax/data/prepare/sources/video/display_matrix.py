"""How a player turns or mirrors a video's pictures: the display matrix that a phone writes beside them.

    x' = a x + c y        a, b, c, d = 1, 0, 0, 1     as stored              0, -1, 1, 0    turned a quarter to the left
    y' = b x + d y                    -1, 0, 0, -1    turned upside down    -1,  0, 0, 1    mirrored

x grows to the right and y downwards. The eight quarter turns and mirrorings only move pixels, so nothing is resampled.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# Of the other two entries: writers round cosines, and a player takes a degree (1.7%) for none.
_SMALL = 0.02


@dataclasses.dataclass(frozen=True)
class Rotation:
    """What makes a picture upright: first its rows become columns, then rows and columns are reversed."""

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
    """The turn of a display matrix: 9 int32 in the machine's order, as FFmpeg gives it (a b u, c d v, x y w).

    Raises:
        ValueError: it is of another size, or turns by a part of a quarter.
    """
    if len(matrix) != 36:
        raise ValueError(f"found a display matrix of {len(matrix)} bytes, expected 36")
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).astype(np.int64).tolist()
    if not any((a, b, c, d)):
        return Rotation()  # players pass over a matrix of zeros
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if max(abs(b), abs(c)) < _SMALL * straight:
        return Rotation(reverse_rows=d < 0, reverse_columns=a < 0)
    if max(abs(a), abs(d)) < _SMALL * crossed:
        return Rotation(transposed=True, reverse_rows=b < 0, reverse_columns=c < 0)
    numbers = ", ".join(f"{value / 65536:.3g}" for value in (a, b, c, d))
    raise ValueError(f"found the display matrix ({numbers}), expected quarter turns and mirrorings")
