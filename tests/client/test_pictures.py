"""Images of several libraries, and the advice for values that are not images."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from agent_jax.client.pictures import advice, as_array, is_image, shown

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
FLOATS = (PIXELS / 255).astype(np.float64)

TAKEN = {"numpy": PIXELS, "pillow": Image.fromarray(PIXELS), "torch": torch.from_numpy(PIXELS),
         "jax": jnp.asarray(PIXELS), "negative strides": np.ascontiguousarray(PIXELS[..., ::-1])[..., ::-1]}


@pytest.mark.parametrize("library", TAKEN)
def test_images_of_every_library_give_the_same_pixels(library: str) -> None:
    assert is_image(TAKEN[library])
    np.testing.assert_array_equal(as_array(TAKEN[library]), PIXELS)


WRONG: dict[str, tuple[Any, str]] = {
    "CHW": (PIXELS.transpose(2, 0, 1), "np.transpose(image, (1, 2, 0))"),
    "float": (FLOATS, "(image * 255).astype(np.uint8)"),
    "float to 255": (PIXELS.astype(np.float32), "image.astype(np.uint8)"),
    "int": (PIXELS.astype(np.int64), "image.astype(np.uint8)"),
    "float CHW of torch": (torch.from_numpy(FLOATS).permute(2, 0, 1), "(np.transpose(image, (1, 2, 0)) * 255)"),
    "batch": (PIXELS[None], "image[0]"),
    "batch of torch": (torch.from_numpy(FLOATS)[None].permute(0, 3, 1, 2),
                       "(np.transpose(image[0], (1, 2, 0)) * 255).astype(np.uint8)"),
    "RGBA": (np.dstack([PIXELS, PIXELS[..., :1]]), "image[..., :3]"),
    "grey": (PIXELS[..., 0], "np.repeat(image[..., None], 3, axis=2)"),
    "grey with channel": (PIXELS[..., :1], "np.repeat(image, 3, axis=2)"),
    "lists": (PIXELS.tolist(), "np.asarray(image, np.uint8)"),
    "bytes": (b"\xff\xd8\xff", "np.asarray(PIL.Image.open(io.BytesIO(image)).convert('RGB'))"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_advice_converts_a_value_to_an_image(case: str) -> None:
    image, expected = WRONG[case]
    found = as_array(image)
    assert expected in advice(found)
    if not isinstance(image, bytes):
        made = eval(advice(found).removeprefix("; pass "), {"image": found, "np": np})
        assert (made.dtype, made.shape) == (np.uint8, (6, 8, 3))
        grey = case.startswith("grey")
        np.testing.assert_allclose(made.astype(int), PIXELS[..., [0, 0, 0]] if grey else PIXELS.astype(int), atol=1)


@pytest.mark.parametrize("nothing", [None, np.zeros((0, 0, 3), np.uint8), np.zeros((6, 8, 5)), np.array(["a"])])
def test_there_is_no_advice_for_values_that_cannot_be_images(nothing: Any) -> None:
    assert advice(as_array(nothing)) == ""
    assert shown(nothing)


@pytest.mark.parametrize(("image", "message"), [
    (Image.fromarray(PIXELS).convert("P"), r"mode P, expected RGB; pass image.convert\('RGB'\)"),
    (Image.fromarray(PIXELS).convert("L"), "mode L"),
    (torch.zeros(6, 8, 3, requires_grad=True), r"torch.Tensor that NumPy cannot read .*image.detach\(\).cpu\(\)"),
    (torch.zeros(6, 8, 3, dtype=torch.bfloat16), "torch.Tensor that NumPy cannot read"),
])
def test_values_that_numpy_cannot_read_are_errors_with_advice(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_array(image)
