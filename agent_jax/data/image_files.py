"""Headers of encoded images: which may be read, their size and EXIF orientation.

    header --open_picture--> limit on its pixels, 8 bits a channel   --Pillow-->   EXIF orientation --upright--> pixels

The EXIF orientation (tag 0x0112) is applied everywhere, as image viewers do; sizes are those of the upright image.
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

# Pillow and its libraries raise these for damaged files; Warning, where warnings are errors.
PILLOW_ERRORS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError,
                 LookupError, TypeError, ArithmeticError, AttributeError, struct.error, zlib.error, Warning)

# Formats that Pillow decodes without starting a program, as it does for EPS.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA")
# Pillow's modes of at most 8 bits a channel, whose conversion to RGB loses nothing.
_MODES = ("1", "L", "P", "PA", "LA", "La", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr")
_ORIENTATION = 0x0112
_SIDEWAYS = 5  # orientations from here on swap height and width
_PNG_GREY_16 = (bytes((16, 0)), bytes((16, 4)))  # bit depth and colour type of a PNG header: grey, grey with alpha

_opening = threading.Lock()


@dataclasses.dataclass(frozen=True)
class PictureHeader:
    """Format, mode, size and orientation of an image."""

    format: str  # Pillow's name
    mode: str  # Pillow's name
    size: tuple[int, int]  # height and width of the upright image
    orientation: int  # EXIF: 1 if the pixels that Pillow decodes are upright, else 2 to 8


def read_header(image: bytes) -> PictureHeader:
    """The header of an encoded image; no pixel is decoded.

    Raises:
        ValueError: as `open_picture`.
    """
    with open_picture(image) as picture:
        orientation = orientation_of(image, picture)
        width, height = picture.size[::-1] if orientation >= _SIDEWAYS else picture.size
        return PictureHeader(str(picture.format), picture.mode, (height, width), orientation)


def open_picture(image: bytes) -> Image.Image:
    """Open encoded bytes with Pillow and check the header; pixels are decoded later.

    Raises:
        ValueError: Pillow cannot read it, its pixels take more memory than `limits` allows, or it has more than 8 bits
            a channel, for which the range from black to white is unknown.
    """
    try:
        with _opening:  # Pillow's own limit is fixed and warns of large photographs; ours is checked below
            default, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = Image.open(io.BytesIO(image), formats=_FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = default
    except PILLOW_ERRORS as error:
        raise unreadable(image, error) from error
    check_pixels(picture.height, picture.width, image)
    if picture.mode not in _MODES or (picture.format == "PNG" and image[24:26] in _PNG_GREY_16):
        raise ValueError(f"image: {picture.format} of mode {picture.mode!r} is not an 8-bit grey or colour image "
                         "but depth or another measurement; expected 8 bits a channel. Choose another camera, or "
                         "scale the values to uint8 by a known range and store those")
    return picture


def check_pixels(height: int, width: int, image: bytes) -> None:
    """Refuse an image whose RGB pixels take more memory than `limits` allows.

    Raises:
        ValueError: names its size and the limit.
    """
    check_unpacked(3 * height * width, len(image), f"image of {height} x {width} pixels")


def unreadable(image: bytes, error: Exception) -> ValueError:
    """The error for bytes for which Pillow raised `error`."""
    return ValueError(f"image: {len(image)} bytes that Pillow cannot read ({error}); expected a whole JPEG or PNG")


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels (height, width, 3) with EXIF orientation 1 to 8 applied, contiguous in memory."""
    if orientation >= _SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def orientation_of(image: bytes, picture: Image.Image) -> int:
    """EXIF orientation of an opened image, from its encoded bytes or Pillow's info."""
    if image[:2] == b"\xff\xd8":
        return jpeg_orientation(image)
    if picture.format == "PNG":
        return _png_orientation(image)
    if picture.format == "TIFF":  # Pillow applies it itself
        return 1
    return exif_orientation(picture.info.get("exif") or b"")


def jpeg_orientation(image: bytes) -> int:
    """EXIF orientation of a JPEG, from the segments before its pixels."""
    place, end = 2, len(image) - 3
    while place < end and image[place] == 0xFF:
        kind = image[place + 1]
        if kind in (0xDA, 0xD9):  # the pixels begin, or the file ends
            break
        if kind == 0xFF:  # padding between segments
            place += 1
            continue
        length = image[place + 2] << 8 | image[place + 3]
        if kind == 0xE1 and image.startswith(b"Exif\0\0", place + 4):
            return exif_orientation(image[place + 4 : place + 2 + length])
        place += 2 + length
    return 1


def _png_orientation(image: bytes) -> int:
    """EXIF orientation of a PNG, from its eXIf chunk."""
    place = 8
    while place + 8 <= len(image):
        length, kind = int.from_bytes(image[place : place + 4], "big"), image[place + 4 : place + 8]
        if kind == b"eXIf":
            return exif_orientation(image[place + 8 : place + 8 + length])
        place += 12 + length
    return 1


def exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF data (first directory of TIFF 6.0); 1 if it is missing, damaged or out of range."""
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
