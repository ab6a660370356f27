"""The one preprocessing of images: training, evaluation, acting and export all call `prepare_image`.

    encoded bytes or uint8 (height, width, 3)  ->  uint8 (size, size, 3)

The resize is Pillow's bilinear filter, whose support grows with the reduction (antialiased), as torchvision's
`Resize((size, size))` applies it to a PIL image. It is computed by fast_image_resize (cykooz_resizer), in fixed point
as there but with the processor's vector instructions: a quarter of Pillow's time, and some pixels rounded by one level
differently. JPEG is decoded by libjpeg-turbo, which Pillow contains as well, without Pillow's preparations. No crop, as
in the paper. Normalisation by CLIP's mean and standard deviation happens on the device.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import simplejpeg
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image, UnidentifiedImageError

# Pixels of an image that an agent acts on. The resize first makes as many lines as are wanted, at the width that is
# given: of an image of 8 MB and one line, 2 GB.
LONGEST_SIDE = 8192

_KEPT_BYTES = 2**22  # a larger image's buffers are given back; to make them anew is little beside resizing it


def prepare_image(image: np.ndarray | bytes, size: int) -> np.ndarray:
    """The image as the encoder takes it.

    Args:
        image: uint8 (height, width, 3), or the bytes of a JPEG, PNG or other file Pillow reads; grey and palette files
            are converted to RGB.
        size: height and width wanted, in pixels; 0: as it is.

    Returns:
        uint8 (size, size, 3); the very pixels of `image` where it has that size already.

    Raises:
        ValueError: for an array of another dtype or shape, or bytes that hold no image.
    """
    picture = _opened(image) if isinstance(image, bytes) else image
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"image: found {picture.dtype}{list(picture.shape)}, expected uint8[height, width, 3]")
        if not size or picture.shape[:2] == (size, size):
            return picture
        return resize(picture, (size, size))
    pixels = np.asarray(picture)
    return pixels if not size or picture.size == (size, size) else resize(pixels, (size, size))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The uint8 (height, width, 3) image at another `size` (height, width), by the filter that is said above."""
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


def _opened(image: bytes) -> np.ndarray | Image.Image:
    """The decoded RGB image, as whichever is at hand."""
    if image[:3] == _JPEG_START:
        try:
            if simplejpeg.decode_jpeg_header(image)[2] != "CMYK":  # which Pillow turns into RGB in a way of its own
                return simplejpeg.decode_jpeg(image)
        except ValueError:  # of an uncommon kind, or damaged: Pillow reads it or says why not
            pass
    lines = _unfiltered_lines(image)
    if lines is not None:
        return lines[:, 1:].reshape(len(lines), -1, 3)
    try:
        picture = Image.open(io.BytesIO(image))
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # SyntaxError: Pillow's word for a broken PNG
        raise ValueError(f"image: {len(image)} bytes that Pillow cannot read ({error}); expected a whole JPEG or "
                         "PNG") from error
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _unfiltered_lines(image: bytes) -> np.ndarray | None:
    """The lines of a PNG as `encode_png` writes it; None for any other image, which is Pillow's."""
    if image[:16] != _PNG_START + b"\0\0\0\rIHDR" or image[24:29] != _RGB8 or image[37:41] != b"IDAT":
        return None
    width, height, length = *struct.unpack(">II", image[16:24]), *struct.unpack(">I", image[33:37])
    if image[45 + length :] != _PNG_END:  # several IDAT, or cut off
        return None
    try:
        lines = zlib.decompress(image[41 : 41 + length])
    except zlib.error:
        return None
    if len(lines) != height * (1 + 3 * width):
        return None
    lines = np.frombuffer(lines, np.uint8).reshape(height, 1 + 3 * width)
    return None if lines[:, 0].any() else lines


_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = _chunk(b"IEND", b"")
_RGB8 = bytes((8, 2, 0, 0, 0))  # of the header: 8 bits, RGB, the only compression and filter method, not interlaced
