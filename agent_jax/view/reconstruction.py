"""What the masked autoencoder sees and reconstructs, a row for each image: in training and `agent_jax.view`.

    input | what the encoder sees: visible patches | reconstruction: predicted patches where they were hidden

(He et al. 2021, arXiv 2111.06377, figure 2 draws it so.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agent_jax.batch import Batch
from agent_jax.config import Config, ModelConfig
from agent_jax.data.pipeline.layout import lay_out, row_size, stack
from agent_jax.data.pipeline.windows import Windows
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.models.agent import Agent, Params
from agent_jax.models.random_keys import MASK_KEY, VALIDATION_KEY, purpose_key, row_keys
from agent_jax.models.vision import PIXEL_MEAN, PIXEL_STD
from agent_jax.runtime.distributed import leads
from agent_jax.runtime.sharding import on_host
from agent_jax.view.page import image_uri, write_page

PICTURED_IMAGES = 6

_SIDE = 168  # pixels of an enlarged image, at least
_GAP, _FONT_SIZE, _HEAD = 8, 15, 26
_HIDDEN = 225  # a grey that simulators do not paint their walls with
_INK, _PAPER = (25, 25, 25), (250, 250, 250)


def draw_reconstruction(
    frames: np.ndarray,
    mask: np.ndarray,
    predicted: np.ndarray,
    *,
    mean: Sequence[float] = PIXEL_MEAN,
    std: Sequence[float] = PIXEL_STD,
) -> Image.Image:
    """The picture of some images: input, visible patches, reconstruction.

    Args:
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
    return picture


def masked_title(mask: np.ndarray) -> str:
    """What is hidden of an image by a mask (F, P): patches, since a ratio of 75% hides 37 of 49, which is 75.5%."""
    hidden_F = (np.asarray(mask) != 0).sum(axis=1)
    least, most = int(hidden_F.min(initial=mask.shape[1])), int(hidden_F.max(initial=0))
    return f"masked ({most if least >= most else f'{least} to {most}'} of {mask.shape[1]} hidden)"


def reconstruct(
    frames: np.ndarray, mask: np.ndarray, predicted: np.ndarray, *, mean: Sequence[float], std: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input, masked input and reconstruction, each uint8 (F, size, size, 3); arguments as `draw_reconstruction`."""
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


@functools.cache
def _masked_and_predicted(model: ModelConfig, seed: int) -> Any:
    """The function params, rows -> hidden patches, their predictions; one for each run, so that it compiles once."""
    def masked_and_predicted(params: Params, rows: Batch) -> tuple[jax.Array, jax.Array]:
        keys_B = row_keys(purpose_key(seed, VALIDATION_KEY), rows.seed_B, MASK_KEY)
        output: Any = Agent(model).apply({"params": params}, rows, mask_keys_B=keys_B)
        return output.mask.hide_BFI, output.predicted_BFIX
    return jax.jit(masked_and_predicted)


def draw_rows(config: Config, params: Params, rows: Batch, count: int = PICTURED_IMAGES) -> Image.Image | None:
    """The picture of the first images of some rows. All processes compute it together.

    Args:
        config: of the run.
        params: of the agent.
        rows: on the host, laid out for all visual tokens.
        count: of images.

    Returns:
        The picture on process 0, None on others.
    """
    output = on_host(_masked_and_predicted(config.model, config.seed)(params, rows))
    if not leads():
        return None
    shown = np.flatnonzero(np.asarray(rows.clip_BF).reshape(-1) >= 0)[:count]
    hidden_FI, predicted_FIX, frames = (np.asarray(array).reshape(-1, *array.shape[2:])[shown]
                                        for array in (*output, rows.frames_BFHWC))
    hidden_FP = np.zeros((len(shown), config.model.vision.patches), bool)
    predicted_FPX = np.zeros((*hidden_FP.shape, predicted_FIX.shape[-1]), np.float32)
    np.put_along_axis(hidden_FP, hidden_FI, True, axis=1)
    np.put_along_axis(predicted_FPX, hidden_FI[..., None], predicted_FIX, axis=1)
    return draw_reconstruction(frames, hidden_FP, predicted_FPX)


def write_picture(path: Path, config: Config, params: Params, rows: Batch) -> None:
    """Write the PNG of `draw_rows`, on process 0; its directory is made."""
    if picture := draw_rows(config, params, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "png")


def write_reconstruction_page(path: Path, trained: TrainedRun, *, domain: str = "", split: str = "",
                              images: int = PICTURED_IMAGES) -> None:
    """Write a page of reconstructed images.

    Args:
        path: of the page.
        trained: the checkpoint.
        domain: name; "": every domain.
        split: "": the run's validation split.
        images: of each domain, of windows evenly spaced over the split.

    Raises:
        FileNotFoundError, ValueError: no such domain, data or split, or no images asked for.
    """
    if images < 1:
        raise ValueError(f"--images={images}: expected at least 1")
    if domain and domain not in trained.domains:
        raise ValueError(f"--domain={domain}: expected one of {', '.join(trained.domains)}")
    params, model, pictures = trained.params(), trained.config.model, []
    for name in [domain] if domain else list(trained.domains):
        of_domain = dataclasses.replace(trained.domains[name], sampling="consecutive")
        store, own_split = trained.open_store(of_domain), trained.split(of_domain, split)
        windows = Windows(of_domain, store, own_split)
        numbers = np.unique(np.linspace(0, len(windows) - 1, min(images, len(windows))).round().astype(int))
        size = row_size([of_domain], 1 + model.vision.patches, of_domain.images, model.language.positions)
        rows = []
        for number in numbers.tolist():
            window = windows.read(number, 0)
            if not window.video:  # the images of a clip are encoded together
                window = dataclasses.replace(window, steps=window.steps[:1])
            rows.append(lay_out((window,), size, 1 + model.vision.patches, model.vision.patches))
        picture = draw_rows(trained.config, params, stack(rows), images)
        assert picture is not None, "one process"
        pictures.append((name, f"{store.directory}, split {own_split!r}", image_uri(picture)))
    write_page(path, "reconstruction.html", title=f"Reconstructions: {trained.directory}, step {trained.step}",
               pictures=pictures, ratio=model.mae.mask_ratio)
