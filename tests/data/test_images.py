from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from agent_jax.data import images as transforms
from agent_jax.data.images import encode_png, prepare_image


def picture(height: int, width: int) -> np.ndarray:
    """A smooth gradient with noise."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
    return (ramp + rng.integers(0, 50, ramp.shape)).astype(np.uint8)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def triangle_weights(source: int, target: int) -> np.ndarray:
    """Bilinear antialiased resize from its definition: a triangle as wide as the reduction, normalised."""
    scale = source / target
    centre = (np.arange(target)[:, None] + 0.5) * scale
    weight = np.maximum(0, 1 - np.abs(np.arange(source)[None] + 0.5 - centre) / max(scale, 1))
    return weight / weight.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(180, 320), (10, 7), (56, 224)])
def test_resize_is_the_antialiased_triangle_filter_without_crop(shape):
    image = picture(*shape)
    across = np.einsum("xw,hwc->hxc", triangle_weights(shape[1], 56), image)
    expected = np.einsum("yh,hxc->yxc", triangle_weights(shape[0], 56), across)
    found = prepare_image(image, 56)
    assert found.shape == (56, 56, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 1.01  # Pillow rounds after each axis


@pytest.mark.parametrize("size", [224, 56, 30, 300])
@pytest.mark.parametrize("shape", [(180, 320), (56, 56), (31, 47)])
def test_resize_equals_pillow_within_one_level(shape, size):
    for image in (picture(*shape), np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)):
        pillows = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(prepare_image(image, size).astype(int) - pillows.astype(int)).max() <= 1


@pytest.mark.parametrize(("shape", "size"), [((107, 25), (40, 381)), ((25, 107), (381, 40)), ((90, 16), (20, 224))])
def test_resize_that_enlarges_one_side_and_reduces_the_other_equals_pillow_within_two_levels(shape, size):
    image = (np.random.default_rng(2).integers(0, 2, (*shape, 3)) * 255).astype(np.uint8)
    pillows = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    assert np.abs(transforms.resize(image, size).astype(int) - pillows.astype(int)).max() <= 2


@pytest.mark.parametrize("shape", [(33, 170), (170, 33), (56, 90), (90, 56), (31, 47)])
def test_resizing_in_strips_gives_the_same_image(monkeypatch, shape):
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for size in ((56, 56), (20, 224), (224, 20), (56, 90)):
        whole = transforms.resize(image, size)
        with monkeypatch.context() as patch:
            patch.setattr(transforms, "_STRIPED_BYTES", 1000)
            patch.setattr(transforms, "_BUFFER_BYTES", 7 * 3 * shape[0])  # strips of 7 columns
            np.testing.assert_array_equal(transforms.resize(image, size), whole)


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_of_any_kind_decodes_as_with_pillow(mode, options):
    buffer = io.BytesIO()
    Image.fromarray(picture(33, 50)).convert(mode).save(buffer, "jpeg", **options)
    pillows = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    np.testing.assert_array_equal(prepare_image(buffer.getvalue(), 0), pillows)


def test_images_are_resized_in_several_threads():
    images = [np.full((40, 60, 3), level, np.uint8) for level in range(200)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: prepare_image(image, 16), images))
    assert [int(image[3, 5, 1]) for image in found] == list(range(200))


def test_buffers_of_large_images_are_freed_and_those_of_small_ones_reused():
    resizers = []
    with ThreadPoolExecutor(1) as pool:  # a thread that has no resizer yet
        for shape in ((40, 60, 3), (40, 60, 3), (1200, 1200, 3)):
            pool.submit(prepare_image, np.zeros(shape, np.uint8), 16).result()
            resizers.append(pool.submit(getattr, transforms._of_thread, "resizer", None).result())
    assert resizers[0] is resizers[1] is not None
    assert resizers[2] is None


def test_an_image_of_the_right_size_keeps_its_pixels():
    image = picture(24, 24)
    np.testing.assert_array_equal(prepare_image(image, 24), image)
    np.testing.assert_array_equal(prepare_image(encode_png(image), 24), image)


def test_an_array_and_its_file_give_the_same_image():
    image = picture(30, 41)
    np.testing.assert_array_equal(prepare_image(encoded(Image.fromarray(image), "png"), 16), prepare_image(image, 16))
    np.testing.assert_array_equal(prepare_image(encode_png(image), 16), prepare_image(image, 16))


def test_pillow_reads_encode_png_and_prepare_image_reads_pillows_png():
    image = picture(9, 13)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(image)))), image)
    square = picture(13, 13)
    np.testing.assert_array_equal(prepare_image(encoded(Image.fromarray(square), "png"), 13), square)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_other_colour_modes_become_rgb(mode):
    image = Image.fromarray(picture(8, 8)).convert(mode)
    np.testing.assert_array_equal(prepare_image(encoded(image, "png"), 8), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["encode_png", "png", "jpeg"])
def test_a_truncated_image_is_refused(kind):
    image = picture(40, 40)
    whole = encode_png(image) if kind == "encode_png" else encoded(Image.fromarray(image), kind)
    for length in (0, 1, 20, 40, 45, len(whole) // 2):
        with pytest.raises(ValueError, match="expected a whole JPEG or PNG"):
            prepare_image(whole[:length], 8)


def test_a_damaged_png_is_refused():
    whole = bytearray(encode_png(picture(20, 20)))
    whole[len(whole) // 2] ^= 1
    with pytest.raises(ValueError, match="cannot read"):
        prepare_image(bytes(whole), 20)
    taller = bytearray(encode_png(picture(20, 20)))
    taller[23] = 21  # the height in its header
    with pytest.raises(ValueError, match="cannot read"):
        prepare_image(bytes(taller), 20)


@pytest.mark.parametrize("image", [
    np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_arrays_of_another_kind_are_refused_with_what_was_found(image):
    with pytest.raises(ValueError, match=r"found .*, expected uint8\[height, width, 3\]"):
        prepare_image(image, 4)
