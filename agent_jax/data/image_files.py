"""Encoded pictures, before their pixels are decoded: what may be read, how large it is, and which way it stands.

    header --open_picture--> bound on its pixels, 8 bits a channel   --Pillow-->   EXIF orientation --upright--> pixels

Orientation is EXIF's (tag 0x0112): what a camera that was held sideways writes next to the pixels. It is followed
everywhere, as picture viewers do; sizes are those of the upright picture.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import threading
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from agent_jax.data.limits import check_unpacked

# What Pillow and its libraries raise for damaged files; Warning, where warnings are errors.
PILLOW_ERRORS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError,
                 LookupError, TypeError, ArithmeticError, AttributeError, struct.error, zlib.error, Warning)

# Decoded by Pillow and its libraries alone; others, as EPS, start a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA")
# Pillow's modes of 8 bits a channel or fewer; their conversion to RGB cuts nothing off.
_MODES = ("1", "L", "P", "PA", "LA", "La", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr")
_ORIENTATION = 0x0112
_SIDEWAYS = 5  # the orientations from here on exchange height and width
_PNG_GREY_16 = (bytes((16, 0)), bytes((16, 4)))  # bit depth and colour type of a PNG header: grey, grey with alpha

_opening = threading.Lock()


@dataclasses.dataclass(frozen=True)
class PictureHeader:
    """What a picture's header says."""

    format: str  # Pillow's name
    mode: str  # Pillow's name
    size: tuple[int, int]  # height and width of the upright picture
    orientation: int  # EXIF: 1 where the pixels that Pillow decodes stand upright, else 2 to 8


def read_header(image: bytes) -> PictureHeader:
    """The header of an encoded picture; no pixel is decoded.

    Raises:
        ValueError: as `open_picture`.
    """
    with open_picture(image) as picture:
        orientation = orientation_of(image, picture)
        width, height = picture.size[::-1] if orientation >= _SIDEWAYS else picture.size
        return PictureHeader(str(picture.format), picture.mode, (height, width), orientation)


def open_picture(image: bytes) -> Image.Image:
    """Pillow's picture of encoded bytes, its header checked and its pixels not yet decoded.

    Raises:
        ValueError: Pillow cannot read it, it has more pixels than memory may be taken for (`limits`), or more than 8
            bits a channel without a range that says what is black and what is white.
    """
    try:
        with _opening:  # Pillow's own bound warns of honest photographs and cannot be raised; ours is checked below
            pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = Image.open(io.BytesIO(image), formats=_FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = pillows
    except PILLOW_ERRORS as error:
        raise unreadable(image, error) from error
    check_pixels(picture.height, picture.width, image)
    if picture.mode not in _MODES or (picture.format == "PNG" and image[24:26] in _PNG_GREY_16):
        raise ValueError(f"image: {picture.format} of mode {picture.mode!r} holds no 8-bit grey or colour values, but "
                         "depth or other measurements; expected 8 bits a channel. Choose another camera, or scale the "
                         "values to uint8 yourself by a range that you know, and store those")
    return picture


def check_pixels(height: int, width: int, image: bytes) -> None:
    """Refuse a picture whose RGB pixels take more memory than `limits` allows.

    Raises:
        ValueError: names its size and the bound.
    """
    check_unpacked(3 * height * width, len(image), f"image of {height} x {width} pixels")


def unreadable(image: bytes, error: Exception) -> ValueError:
    """The error for bytes that Pillow refused with `error`."""
    return ValueError(f"image: {len(image)} bytes that Pillow cannot read ({error}); expected a whole JPEG or PNG")


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels (height, width, 3) as a viewer shows them: EXIF orientation 1 to 8 applied, in one block of memory."""
    if orientation >= _SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def orientation_of(image: bytes, picture: Image.Image) -> int:
    """EXIF orientation of an opened picture, from its encoded bytes or what Pillow has read of them."""
    if image[:2] == b"\xff\xd8":
        return jpeg_orientation(image)
    if picture.format == "PNG":
        return _png_orientation(image)
    if picture.format == "TIFF":  # Pillow turns its size and pixels itself
        return 1
    return exif_orientation(picture.info.get("exif") or b"")


def jpeg_orientation(image: bytes) -> int:
    """EXIF orientation of a JPEG: found in the segments before its pixels, in microseconds."""
    place, end = 2, len(image) - 3
    while place < end and image[place] == 0xFF:
        kind = image[place + 1]
        if kind in (0xDA, 0xD9):  # the pixels begin, or the file ends
            break
        if kind == 0xFF:  # filling between segments
            place += 1
            continue
        length = image[place + 2] << 8 | image[place + 3]
        if kind == 0xE1 and image.startswith(b"Exif\0\0", place + 4):
            return exif_orientation(image[place + 4 : place + 2 + length])
        place += 2 + length
    return 1


def _png_orientation(image: bytes) -> int:
    """EXIF orientation of a PNG, from the chunk eXIf, wherever it lies."""
    place = 8
    while place + 8 <= len(image):
        length, kind = int.from_bytes(image[place : place + 4], "big"), image[place + 4 : place + 8]
        if kind == b"eXIf":
            return exif_orientation(image[place + 8 : place + 8 + length])
        place += 12 + length
    return 1


def exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF data (TIFF 6.0's first directory); 1 where it is missing, damaged or out of range."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1  # 3: a short
    except struct.error:  # the data end before the directory does
        pass
    return 1
