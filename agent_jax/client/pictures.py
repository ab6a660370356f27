"""Convert images of NumPy, jax, torch and Pillow to arrays; only NumPy is imported.

as_array(image) -> np.ndarray        advice(array) -> an expression that converts it to uint8 (height, width, 3)
"""

from __future__ import annotations

from typing import Any

import numpy as np


def is_image(value: Any) -> bool:
    """Whether a value is one image or a batch, not a mapping or a sequence of images."""
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def as_array(image: Any) -> Any:
    """An image as an array; other values are returned unchanged.

    Raises:
        ValueError: NumPy cannot read it, e.g. a tensor on a GPU.
    """
    if isinstance(image, np.ndarray) or not is_image(image):
        return image
    mode = getattr(image, "mode", "RGB")  # of Pillow; the pixels of a palette image are not colours
    if isinstance(mode, str) and mode != "RGB":
        raise ValueError(f"found an image of mode {mode}, expected RGB; pass image.convert('RGB')")
    try:
        return np.asarray(image)
    except (TypeError, RuntimeError, ValueError) as error:
        kind = f"{type(image).__module__.partition('.')[0]}.{type(image).__name__}"
        raise ValueError(f"found a {kind} that NumPy cannot read ({error}), expected uint8[height, width, 3] in the "
                         "host's memory; pass image.detach().cpu().numpy()") from error


def shown(image: Any) -> str:
    """Type and shape, e.g. uint8[224, 224, 3]."""
    return f"{image.dtype}{list(image.shape)}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"


def advice(image: Any) -> str:
    """An expression that converts `image` to uint8 (height, width, 3); "" if there is none."""
    if isinstance(image, bytes):
        return "; pass np.asarray(PIL.Image.open(io.BytesIO(image)).convert('RGB'))"
    if isinstance(image, (list, tuple)):
        return "; pass np.asarray(image, np.uint8)"
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "biuf":
        return ""
    shape, expression = image.shape, "image"
    if len(shape) == 4 and shape[0] == 1:
        shape, expression = shape[1:], "image[0]"
    if len(shape) == 3 and shape[0] == 3 and shape[2] != 3:
        shape, expression = (*shape[1:], 3), f"np.transpose({expression}, (1, 2, 0))"  # torch's order
    elif len(shape) == 3 and shape[2] == 4:
        shape, expression = (*shape[:2], 3), f"{expression}[..., :3]"
    elif len(shape) == 3 and shape[2] == 1:
        shape, expression = (*shape[:2], 3), f"np.repeat({expression}, 3, axis=2)"
    elif len(shape) == 2:
        shape, expression = (*shape, 3), f"np.repeat({expression}[..., None], 3, axis=2)"
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        return ""
    if image.dtype.kind == "f" and not (image > 1).any():
        expression = f"({expression} * 255).astype(np.uint8)"
    elif image.dtype != np.uint8:
        expression = f"{expression}.astype(np.uint8)"  # 0 to 255 in another type
    return f"; pass {expression}"
