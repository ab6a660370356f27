"""The one preprocessing of images: training, evaluation, acting and export all call `prepare_image`.

    encoded bytes or uint8 (height, width, 3)  ->  uint8 (size, size, 3)

The resize is Pillow's bilinear filter, whose support grows with the reduction (antialiased), as torchvision's
`Resize((size, size))` applies it to a PIL image. It is computed by fast_image_resize (cykooz_resizer), in fixed point
as there but with the processor's vector instructions, in a quarter of Pillow's time. Some pixels are rounded
differently from Pillow's: by one level of 255, or by two (one value in 30 million of random images) where one side is
enlarged and the other reduced. JPEG is decoded by libjpeg-turbo, which Pillow contains as well, without Pillow's
preparations. No crop, as in the paper. Normalisation by CLIP's mean and standard deviation happens on the device.

What may be read, and which way it stands, is in `image_files.py`.
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

# Pixels of an image that an agent acts on. The resize first makes as many lines as are wanted, at the width that is
# given: of an image of 8 MB and one line, 2 GB.
LONGEST_SIDE = 8192

_STRIPED_BYTES = 2**25  # of pixels; a larger image is resized strip by strip, not to be held three times
_KEPT_BYTES = 2**22  # a larger image's buffers are given back; to make them anew is little beside resizing it


def prepare_image(image: np.ndarray | bytes, size: int) -> np.ndarray:
    """The image as the encoder takes it.

    Args:
        image: uint8 (height, width, 3), or the bytes of a JPEG, PNG or other file Pillow reads; grey, palette and CMYK
            files are converted to RGB, alpha is left out, the EXIF orientation is followed.
        size: height and width wanted, in pixels; 0: as it is.

    Returns:
        uint8 (size, size, 3); the very pixels of `image` where it has that size already.

    Raises:
        ValueError: for an array of another dtype or shape, bytes that hold no image of 8 bits a channel, or more
            pixels than `limits` allows.
    """
    pixels = _decoded(image) if isinstance(image, bytes) else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"image: found {pixels.dtype}{list(pixels.shape)}, expected uint8[height, width, 3]")
    return pixels if not size or pixels.shape[:2] == (size, size) else resize(pixels, (size, size))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The uint8 (height, width, 3) image at another `size` (height, width), by the filter that is said above.

    Raises:
        ValueError: it would take more memory than `limits` allows, as 224 lines of the width of one long line do.
    """
    height, width, _ = image.shape
    check_unpacked(3 * max(size[0], height) * width, image.nbytes,
                   f"image of {height} x {width} pixels resized to {size[0]} x {size[1]}")
    if image.nbytes <= _STRIPED_BYTES:
        return _resized(image, size)
    # The resizer copies what it is given. It makes the lines first and then their columns, so that lines made strip by
    # strip are the same.
    columns = max(1, _KEPT_BYTES // (3 * height))
    strips = (image[:, left : left + columns] for left in range(0, width, columns))
    lines = np.concatenate([_resized(strip, (size[0], strip.shape[1])) for strip in strips], axis=1)
    return _resized(lines, size)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resizer: Resizer | None = getattr(_of_thread, "resizer", None)
    if resizer is None:  # it has buffers of its own, which two threads cannot share
        resizer = _of_thread.resizer = Resizer()
    made = ImageData(size[1], size[0], PixelType.U8x3)
    given = ImageData(image.shape[1], image.shape[0], PixelType.U8x3, image.tobytes())
    resizer.resize(given, made, _BILINEAR)
    if image.nbytes > _KEPT_BYTES:
        del _of_thread.resizer
    return np.frombuffer(made.get_buffer(), np.uint8).reshape(*size, 3)


_of_thread = threading.local()
_BILINEAR = ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.bilinear))


def encode_png(image: np.ndarray) -> bytes:
    """The uint8 (height, width, 3) image as PNG bytes, without loss: a PNG like any other, but one unfiltered IDAT.

    On 56-px simulator images it takes 60 us where Pillow takes 200, is 9% smaller, and decodes in 20 us instead of 60.
    """
    height, width, _ = image.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # each line opens with its filter: 0, none
    lines[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">II", width, height) + _RGB8
    data = zlib.compress(lines.tobytes(), level=1)
    return _PNG_START + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def encode_jpeg(image: np.ndarray) -> bytes:
    """The uint8 (height, width, 3) image as JPEG bytes, of a quality at which its loss cannot be seen."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _decoded(image: bytes) -> np.ndarray:
    """The RGB pixels of an encoded picture, upright."""
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
    """The RGB pixels as they are stored; None for a JPEG of an uncommon kind or a damaged one, which is Pillow's."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
    except ValueError:
        return None
    check_pixels(int(height), int(width), image)
    if colours == "CMYK":  # which Pillow turns into RGB in a way of its own
        return None
    try:
        return simplejpeg.decode_jpeg(image)
    except ValueError:
        return None


def _rgb(picture: Image.Image) -> np.ndarray:
    """The pixels of Pillow's picture as RGB: colours of a palette looked up, an alpha channel left out."""
    picture.info.pop("transparency", None)  # Pillow warns when it leaves one out
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    lines = max(1, _KEPT_BYTES // (4 * picture.width))  # in strips, or Pillow makes two copies of the whole
    for top in range(0, picture.height, lines):
        whole = lines >= picture.height
        strip = picture if whole else picture.crop((0, top, picture.width, min(top + lines, picture.height)))
        pixels[top : top + lines] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return pixels


def _unfiltered_lines(image: bytes) -> np.ndarray | None:
    """The lines of a PNG as `encode_png` writes it; None for any other image, which is Pillow's."""
    if image[:16] != _PNG_START + b"\0\0\0\rIHDR" or image[24:29] != _RGB8 or image[37:41] != b"IDAT":
        return None
    width, height, length = *struct.unpack(">II", image[16:24]), *struct.unpack(">I", image[33:37])
    if image[45 + length :] != _PNG_END:  # several IDAT, or cut off
        return None
    expected = height * (1 + 3 * width)
    check_pixels(height, width, image)
    data = image[41 : 41 + length]
    try:
        if length < _FEW_BYTES:  # half the time
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


_FEW_BYTES = 2**14  # of zlib's: they unpack to 17 MB at most, 1,032 times as many
_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = _chunk(b"IEND", b"")
_RGB8 = bytes((8, 2, 0, 0, 0))  # of the header: 8 bits, RGB, the only compression and filter method, not interlaced
