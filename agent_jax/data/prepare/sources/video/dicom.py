"""Decodes the frames of a DICOM cine (a multi-frame image, as ultrasound machines write it), by pydicom.

    stored values --decode--> RGB, YBR or palette  ---------------------> uint8 RGB
                              monochrome  --dicom_grey--> 0..255 -------> uint8 RGB, three times the same

Only header fields that describe the pixels are read: nothing about the patient is returned. Text burnt into the pixels
remains.
"""

from __future__ import annotations

import functools
import logging
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.errors
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import iter_pixels, pixel_array

from agent_jax.data.limits import check_unpacked
from agent_jax.data.prepare.sources.video.decode import VideoInfo
from agent_jax.data.prepare.sources.video.dicom_grey import grey_scale, stored_span

# Errors of pydicom and its decoders for damaged files.
_DAMAGE = (ValueError, EOFError, OSError, RuntimeError, AttributeError, LookupError, NotImplementedError, TypeError,
           ArithmeticError, MemoryError, struct.error, zlib.error, pydicom.errors.InvalidDicomError,
           pydicom.errors.BytesLengthException)
_COLOURS = {1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
            3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")}
# Memory per pixel while a frame is decoded, converted and windowed, at float64.
_BYTES_PER_PIXEL = 48
_CHUNK = 2**20


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's prefix."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def dicom_info(path: Path) -> VideoInfo:
    """Number, rate and size of the frames; decodes none. The rate is 0 if the file states none.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not a DICOM file, no pixels, a single image, an unsupported kind of pixels, or more of them than
            the file can hold or the memory bound allows.
    """
    header = _header(path)
    try:
        frames, rate_hz = int(header.get("NumberOfFrames") or 1), _rate(header)
    except _DAMAGE as error:
        raise ValueError(f"{path}: cannot be read as DICOM ({error}); found a NumberOfFrames or FrameTime that is not "
                         "a number") from error
    if frames < 2:
        raise ValueError(f"{path}: holds a single image, expected a cine of several frames")
    if frames > path.stat().st_size:
        raise ValueError(f"{path}: found NumberOfFrames={frames:,}, expected at most one for each of the file's "
                         f"{path.stat().st_size:,} bytes; the file is damaged")
    return VideoInfo(frames, rate_hz, int(header.Rows), int(header.Columns))


def read_dicom(path: Path, frames: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of the given numbers, in that order, as uint8 (height, width, 3); one is held at a time.

    Raises:
        ValueError: an error of `dicom_info`; a frame cannot be decoded, or no decoder for its compression is installed.
    """
    header = _header(path)
    if not len(frames):  # pydicom would read all
        return
    done = 0
    try:
        for image in _decoded(path, header, list(frames)):
            yield _rgb(image, header, frames[done], path)
            done += 1
    except _DAMAGE as error:
        where = f"frame {frames[done]}" if done < len(frames) else "the end"
        kind = header.file_meta.TransferSyntaxUID.name
        raise ValueError(f"{path}, {where}: cannot be decoded as {kind} ({error}); the file is damaged or cut off, or "
                         "pydicom lacks the decoder: pip install pylibjpeg[all]") from error


def _header(path: Path) -> Any:
    """The header without the pixels, which must be of a supported kind."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a DICOM file")
    try:
        _check_inflated(path)
        header = pydicom.dcmread(path, stop_before_pixels=True)
        samples, colour = int(header.get("SamplesPerPixel") or 0), str(header.get("PhotometricInterpretation"))
        shown = colour in _COLOURS.get(samples, ()) and int(header.BitsAllocated) in (8, 16)
        rows, columns, _ = int(header.Rows), int(header.Columns), header.file_meta.TransferSyntaxUID
    except _DAMAGE as error:
        raise ValueError(f"{path}: cannot be read as DICOM ({error}); expected a whole file with an image") from error
    if not shown:
        raise ValueError(f"{path}: found pixels of {samples} x {header.BitsAllocated} bits, {colour}, expected "
                         "monochrome, palette, RGB or YBR of 8 or 16 bits")
    check_unpacked(rows * columns * _BYTES_PER_PIXEL, path.stat().st_size, f"{path}: frames of {rows} x {columns}")
    return header


def _decoded(path: Path, header: Any, frames: list[int]) -> Iterator[np.ndarray]:
    """Stored values; colours as RGB."""
    syntax = header.file_meta.TransferSyntaxUID
    source = pydicom.dcmread(path) if syntax.is_deflated else path  # pydicom cannot inflate while it reads by frames
    if header.PhotometricInterpretation == "YBR_FULL_422" and not syntax.is_encapsulated:
        # pydicom 3.0's iterator reads only the first frame as one of half the width.
        return (pixel_array(source, index=frame) for frame in frames)
    return iter_pixels(source, indices=frames)


def _check_inflated(path: Path) -> None:
    """Refuse a deflated file that unpacks beyond the memory bound; pydicom inflates it in one piece."""
    meta = read_file_meta_info(path)
    if not meta.TransferSyntaxUID.is_deflated:
        return
    size, inflated, inflate = path.stat().st_size, 0, zlib.decompressobj(-zlib.MAX_WBITS)
    with path.open("rb") as file:
        file.seek(128 + 4 + 12 + meta.FileMetaInformationGroupLength)  # preamble, prefix, the length's own element
        packed = file.read(_CHUNK)
        while packed and not inflate.eof:
            inflated += len(inflate.decompress(packed, _CHUNK))
            check_unpacked(inflated, size, f"{path}: deflated")
            packed = inflate.unconsumed_tail or file.read(_CHUNK)


def _rate(header: Any) -> float:
    """Frames per second as recorded, else as recommended for display; 0: not stated."""
    vector = header.get("FrameTimeVector")
    rate_hz = float(header.get("CineRate") or header.get("RecommendedDisplayFrameRate") or 0)
    if header.get("FrameTime"):
        rate_hz = 1000 / float(header.FrameTime)
    elif vector is not None and len(vector) > 1 and math.fsum(vector) > 0:  # intervals; the first is 0
        rate_hz = 1000 * (len(vector) - 1) / math.fsum(float(value) for value in list(vector)[1:])
    if not 0 <= rate_hz < math.inf:
        raise ValueError(f"found a rate of {rate_hz} frames a second, expected a positive number")
    return rate_hz


def _rgb(image: np.ndarray, header: Any, frame: int, path: Path) -> np.ndarray:
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return _coloured(image, header)
    if image.ndim == 3:
        return image if image.dtype == np.uint8 else (image >> max(int(header.BitsStored) - 8, 0)).astype(np.uint8)
    scale = grey_scale(header, frame)
    span = (0.0, 0.0)
    if scale.needs_span:
        span = stored_span(header) or _own_span(path, path.stat().st_mtime_ns)
    grey = scale.grey(image, span)
    if header.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, axis=2)


def _coloured(image: np.ndarray, header: Any) -> np.ndarray:
    colours = apply_color_lut(image, _palette(image, header))[..., :3]  # a fourth table is the opacity
    if colours.dtype == np.uint8:
        return colours
    # Tables of 8 bits may be stored in 16, with the upper ones empty.
    return (colours >> (int(header.RedPaletteColorLookupTableDescriptor[2]) - 8)).astype(np.uint8)


def _palette(image: np.ndarray, header: Any) -> Any:
    """The header, or, for 16 bit pixels with tables of 1 byte per entry, tables of 2 bytes, which pydicom requires."""
    entries, first, bits = header.RedPaletteColorLookupTableDescriptor
    table = header.get("RedPaletteColorLookupTableData")
    if image.itemsize == 1 or table is None or len(table) >= 2 * (entries or 2**16):
        return header
    made = pydicom.Dataset()
    for name in ("Red", "Green", "Blue"):
        made.add_new(f"{name}PaletteColorLookupTableDescriptor", "US" if first >= 0 else "SS", [entries, first, bits])
        table = np.frombuffer(header[f"{name}PaletteColorLookupTableData"].value, np.uint8)
        made.add_new(f"{name}PaletteColorLookupTableData", "OW", table.astype(np.uint16).tobytes())
    return made


@functools.lru_cache(maxsize=16)  # a table may name a cine several times
def _own_span(path: Path, _modified_ns: int) -> tuple[float, float]:
    """Least and largest value of all frames, which are decoded again for it."""
    header = _header(path)
    ends = [math.inf, -math.inf]
    frames = list(range(int(header.get("NumberOfFrames") or 1)))
    for number, image in zip(frames, _decoded(path, header, frames), strict=True):
        values = grey_scale(header, number).values(image)
        ends = [min(ends[0], float(values.min())), max(ends[1], float(values.max()))]
    logging.getLogger(__name__).warning("%s: names no window and no VOI LUT for its %d bits; its own range, %g to %g, "
                                        "is shown as 0 to 255", path, header.BitsStored, *ends)
    return ends[0], ends[1]
