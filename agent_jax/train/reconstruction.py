"""What the masked autoencoder sees and makes of it, a row an image.

    input | what the encoder sees: visible patches | reconstruction: predicted patches where they were hidden

(He et al. 2021, arXiv 2111.06377, figure 2 draws it so.)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE = 168  # pixels of an enlarged image, at least
_GAP, _FONT_SIZE, _HEAD = 8, 15, 26
_HIDDEN = 225  # a grey that simulators do not paint their walls with
_INK, _PAPER = (25, 25, 25), (250, 250, 250)


def write_reconstruction(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    mask: np.ndarray,
    predicted: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write the picture of some images as PNG.

    Args:
        path: of the PNG.
        frames: uint8 (F, size, size, 3).
        mask: (F, P), true or nonzero for a hidden patch; patches row by row.
        predicted: float (F, P, X), X = patch * patch * 3 in the order row, column, channel: normalised pixels.
        mean: of the normalisation, by channel, of pixels in [0, 1].
        std: likewise.

    Raises:
        ValueError: the shapes do not belong together.
    """
    three = reconstruct(frames, mask, predicted, mean=mean, std=std)
    size = frames.shape[1]
    scale = max(1, -(-_SIDE // size))
    side = size * scale
    picture = Image.new("RGB", (3 * side + 4 * _GAP, _HEAD + len(frames) * (side + _GAP)), _PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_SIZE)
    for column, (title, images) in enumerate(zip(("input", masked_title(mask), "reconstruction"), three, strict=True)):
        left = _GAP + column * (side + _GAP)
        draw.text((left, _HEAD // 2), title, _INK, font, anchor="lm")
        for row, image in enumerate(images):
            enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            picture.paste(enlarged, (left, _HEAD + row * (side + _GAP)))
    picture.save(Path(path), "png")


def masked_title(mask: np.ndarray) -> str:
    """What is hidden of an image by a mask (F, P): patches, since a ratio of 75% hides 37 of 49, which is 75.5%."""
    hidden_F = (np.asarray(mask) != 0).sum(axis=1)
    least, most = int(hidden_F.min(initial=mask.shape[1])), int(hidden_F.max(initial=0))
    return f"masked ({most if least >= most else f'{least} to {most}'} of {mask.shape[1]} hidden)"


def reconstruct(
    frames: np.ndarray, mask: np.ndarray, predicted: np.ndarray, *, mean: Sequence[float], std: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input, masked input and reconstruction, each uint8 (F, size, size, 3); arguments as `write_reconstruction`."""
    frames, hidden, predicted = np.asarray(frames), np.asarray(mask) != 0, np.asarray(predicted, np.float32)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != frames.shape[2] or frames.shape[3] != 3:
        raise ValueError(f"frames: found {frames.dtype} of shape {frames.shape}, expected uint8 (F, size, size, 3)")
    F, size = frames.shape[:2]
    side = round(hidden.shape[-1] ** 0.5)  # patches along a side
    patch = size // max(side, 1)
    expected = (F, side * side, patch * patch * 3)
    if hidden.shape != expected[:2] or predicted.shape != expected or side * patch != size:
        raise ValueError(
            f"found frames of {size} pixels, mask {hidden.shape}, predicted {predicted.shape}; expected a mask (F, P) "
            "and predictions (F, P, patch * patch * 3) with the F of frames and sqrt(P) * patch = size"
        )
    hidden_FHW1 = np.kron(hidden.reshape(F, side, side), np.ones((1, patch, patch), bool))[..., None]
    pixels = predicted.reshape(F, side, side, patch, patch, 3).transpose(0, 1, 3, 2, 4, 5).reshape(frames.shape)
    pixels = (pixels * np.asarray(std, np.float32) + np.asarray(mean, np.float32)) * 255
    # NaN and infinity of a broken model become black and white; a cast of them would be undefined.
    pixels = np.nan_to_num(np.rint(pixels), nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).astype(np.uint8)
    masked = np.where(hidden_FHW1, np.uint8(_HIDDEN), frames)
    return frames, masked, np.where(hidden_FHW1, pixels, frames)
