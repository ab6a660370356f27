"""The one preprocessing of images: training, evaluation, acting and export all call `prepare_image`.

    encoded bytes or uint8 (height, width, 3)  ->  uint8 (size, size, 3)

The resize is Pillow's antialiased bilinear filter, as torchvision's `Resize((size, size))` applies it to a PIL image.
fast_image_resize (cykooz_resizer) computes it with vector instructions, faster than Pillow. Some values differ from
Pillow's by one level of 255, or by two, rarely, if one side is enlarged and the other reduced. libjpeg-turbo, which
Pillow uses as well, decodes JPEG. There is no crop, as in the paper. The device normalises by CLIP's mean and standard
deviation.

`image_files.py` checks headers and reads the EXIF orientation.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import simplejpeg
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from agent_jax.data.image_files import (
    PILLOW_ERRORS,
    check_pixels,
    jpeg_orientation,
    open_picture,
    orientation_of,
    unreadable,
    upright,
)
from agent_jax.data.limits import check_unpacked

# Pixels of an image in acting. The resize first scales the height at the full width, so one long line takes gigabytes.
LONGEST_SIDE = 8192

_STRIPED_BYTES = 2**25  # of pixels; a larger image is resized in strips, to limit the number of copies in memory
_BUFFER_BYTES = 2**22  # buffers for larger images are freed; allocating them is fast compared with the resize


def prepare_image(image: np.ndarray | bytes, size: int) -> np.ndarray:
    """Decode and resize an image for the vision encoder.

    Args:
        image: uint8 (height, width, 3), or the bytes of a JPEG, PNG or other file that Pillow reads. Grey, palette and
            CMYK files are converted to RGB, alpha is dropped, the EXIF orientation is applied.
        size: height and width of the result in pixels; 0: unchanged.

    Returns:
        uint8 (size, size, 3); the pixels are unchanged if the image has this size.

    Raises:
        ValueError: an array of another dtype or shape, bytes that are not an image of 8 bits a channel, or more pixels
            than `limits` allows.
    """
    pixels = _decoded(image) if isinstance(image, bytes) else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"image: found {pixels.dtype}{list(pixels.shape)}, expected uint8[height, width, 3]")
    return pixels if not size or pixels.shape[:2] == (size, size) else resize(pixels, (size, size))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The uint8 (height, width, 3) image resized to `size` (height, width).

    Raises:
        ValueError: the resize would take more memory than `limits` allows.
    """
    height, width, _ = image.shape
    check_unpacked(3 * max(size[0], height) * width, image.nbytes,
                   f"image of {height} x {width} pixels resized to {size[0]} x {size[1]}")
    if image.nbytes <= _STRIPED_BYTES:
        return _resized(image, size)
    # The resizer copies its input. It scales the height first and then the width, so strips of columns give the same.
    columns = max(1, _BUFFER_BYTES // (3 * height))
    strips = (image[:, left : left + columns] for left in range(0, width, columns))
    lines = np.concatenate([_resized(strip, (size[0], strip.shape[1])) for strip in strips], axis=1)
    return _resized(lines, size)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resizer: Resizer | None = getattr(_of_thread, "resizer", None)
    if resizer is None:  # its buffers cannot be shared by threads
        resizer = _of_thread.resizer = Resizer()
    target = ImageData(size[1], size[0], PixelType.U8x3)
    source = ImageData(image.shape[1], image.shape[0], PixelType.U8x3, image.tobytes())
    resizer.resize(source, target, _BILINEAR)
    if image.nbytes > _BUFFER_BYTES:
        del _of_thread.resizer
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, 3)


_of_thread = threading.local()
_BILINEAR = ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.bilinear))


def encode_png(image: np.ndarray) -> bytes:
    """The uint8 (height, width, 3) image as a valid PNG with one unfiltered IDAT chunk.

    Small simulator images encode and decode several times faster than with Pillow, and are smaller.
    """
    height, width, _ = image.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # each line begins with its filter: 0 is none
    lines[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">II", width, height) + _RGB8
    data = zlib.compress(lines.tobytes(), level=1)
    return _PNG_START + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def encode_jpeg(image: np.ndarray) -> bytes:
    """The uint8 (height, width, 3) image as JPEG bytes of high quality."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _decoded(image: bytes) -> np.ndarray:
    """The RGB pixels of an encoded image, upright."""
    if image[:3] == _JPEG_START:
        pixels = _decoded_jpeg(image)
        if pixels is not None:
            orientation = jpeg_orientation(image)
            return pixels if orientation == 1 else upright(pixels, orientation)
    lines = _unfiltered_lines(image)
    if lines is not None:
        return lines[:, 1:].reshape(len(lines), -1, 3)
    picture = open_picture(image)
    try:
        picture.load()
    except PILLOW_ERRORS as error:
        raise unreadable(image, error) from error
    return upright(_rgb(picture), orientation_of(image, picture))


def _decoded_jpeg(image: bytes) -> np.ndarray | None:
    """The RGB pixels as stored; None for an unusual or damaged JPEG, which Pillow reads or refuses."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
    except ValueError:
        return None
    check_pixels(int(height), int(width), image)
    if colours == "CMYK":  # converted as Pillow does
        return None
    try:
        return simplejpeg.decode_jpeg(image)
    except ValueError:
        return None


def _rgb(picture: Image.Image) -> np.ndarray:
    """The pixels of Pillow's image as RGB: palettes are looked up, alpha is dropped."""
    picture.info.pop("transparency", None)  # Pillow would warn
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    lines = max(1, _BUFFER_BYTES // (4 * picture.width))  # in strips: Pillow makes two more copies
    for top in range(0, picture.height, lines):
        whole = lines >= picture.height
        strip = picture if whole else picture.crop((0, top, picture.width, min(top + lines, picture.height)))
        pixels[top : top + lines] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return pixels


def _unfiltered_lines(image: bytes) -> np.ndarray | None:
    """The lines of a PNG that `encode_png` wrote; None for any other image."""
    if image[:16] != _PNG_START + b"\0\0\0\rIHDR" or image[24:29] != _RGB8 or image[37:41] != b"IDAT":
        return None
    width, height, length = *struct.unpack(">II", image[16:24]), *struct.unpack(">I", image[33:37])
    if image[45 + length :] != _PNG_END:  # several IDAT chunks, or a truncated file
        return None
    expected = height * (1 + 3 * width)
    check_pixels(height, width, image)
    data = image[41 : 41 + length]
    try:
        if length < _FEW_BYTES:  # faster than a decompressor object
            lines = zlib.decompress(data)
        else:
            unpacker = zlib.decompressobj()
            lines = unpacker.decompress(data, expected + 1)
            if not unpacker.eof:
                return None
    except zlib.error:
        return None
    if len(lines) != expected:
        return None
    lines = np.frombuffer(lines, np.uint8).reshape(height, 1 + 3 * width)
    return None if lines[:, 0].any() else lines


_FEW_BYTES = 2**14  # compressed; zlib unpacks them to at most 1,032 times as many, 17 MB
_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = _chunk(b"IEND", b"")
_RGB8 = bytes((8, 2, 0, 0, 0))  # in the header: 8 bits, RGB, default compression and filter methods, not interlaced
