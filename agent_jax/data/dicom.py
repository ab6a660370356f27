"""Frames of a DICOM cine (a multi-frame image, as ultrasound machines write it), by pydicom.

    stored values --decode--> RGB, YBR or palette  ----------------------------> uint8 RGB
                              monochrome  --rescale--> --window--> 0..255 -----> uint8 RGB, three times the same

Of the header only what describes the pixels is read: nothing about the patient is returned. What is burnt into the
pixels stays there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.errors
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import iter_pixels

from agent_jax.data.video import VideoInfo

# What pydicom and the decoders behind it raise at damaged files.
_DAMAGE = (ValueError, EOFError, OSError, RuntimeError, AttributeError, KeyError, NotImplementedError, TypeError)
_COLOURS = {1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
            3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")}


def is_dicom(path: Path) -> bool:
    """Whether the file carries DICOM's mark."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def dicom_info(path: Path) -> VideoInfo:
    """Number, rate and size of the frames; decodes none. The rate is 0 where the file names none.

    Raises:
        ValueError: no DICOM file, no pixels, a single image, or pixels of a kind that cannot be shown.
    """
    header = _header(path)
    frames = int(header.get("NumberOfFrames") or 1)
    if frames < 2:
        raise ValueError(f"{path}: holds a single image, expected a cine of several frames")
    return VideoInfo(frames, _rate(header), int(header.Rows), int(header.Columns))


def read_dicom(path: Path, frames: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of the given numbers, in that order, as uint8 (height, width, 3); one is held at a time.

    Raises:
        ValueError: what `dicom_info` refuses; a frame cannot be decoded, or no decoder of its compression is installed.
    """
    header = _header(path)
    if not len(frames):  # pydicom takes no numbers for all
        return
    done = 0
    try:
        for image in iter_pixels(path, indices=list(frames)):
            yield _rgb(image, header)
            done += 1
    except _DAMAGE as error:
        where = f"frame {frames[done]}" if done < len(frames) else "the end"
        kind = header.file_meta.TransferSyntaxUID.name
        raise ValueError(f"{path}, {where}: cannot be decoded as {kind} ({error}); the file is damaged or cut off, or "
                         "pydicom lacks the decoder: pip install pylibjpeg[all]") from error


def _header(path: Path) -> Any:
    """What the file says but its pixels, which must be of a kind that can be shown."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a DICOM file")
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        samples, colour = int(header.get("SamplesPerPixel") or 0), str(header.get("PhotometricInterpretation"))
        shown = colour in _COLOURS.get(samples, ()) and int(header.BitsAllocated) in (8, 16)
        _ = header.Rows, header.Columns, header.file_meta.TransferSyntaxUID
    except (pydicom.errors.InvalidDicomError, *_DAMAGE) as error:
        raise ValueError(f"{path}: cannot be read as DICOM ({error}); expected a whole file with an image") from error
    if not shown:
        raise ValueError(f"{path}: found pixels of {samples} x {header.BitsAllocated} bits, {colour}, expected "
                         "monochrome, palette, RGB or YBR of 8 or 16 bits")
    return header


def _rate(header: Any) -> float:
    """Frames a second, or 0. As recorded if the header says so, else as it is to be shown."""
    vector = header.get("FrameTimeVector")
    if header.get("FrameTime"):
        return 1000 / float(header.FrameTime)
    if vector is not None and len(vector) > 1 and math.fsum(vector) > 0:  # times since the frame before, the first 0
        return 1000 * (len(vector) - 1) / math.fsum(float(value) for value in list(vector)[1:])
    return float(header.get("CineRate") or header.get("RecommendedDisplayFrameRate") or 0)


def _rgb(image: np.ndarray, header: Any) -> np.ndarray:
    if header.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(image, header)  # of the tables' own depth
        return colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)
    if image.ndim == 3:
        return image if image.dtype == np.uint8 else (image >> (int(header.BitsStored) - 8)).astype(np.uint8)
    slope, intercept = (float(header.get(key, neutral)) for key, neutral in (("RescaleSlope", 1),
                                                                           ("RescaleIntercept", 0)))
    centre, width = (header.get(key) for key in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None:
        centre, width = (float(value[0] if isinstance(value, Sequence) else value) for value in (centre, width))
        low, high = centre - width / 2, centre + width / 2
    else:
        bits, signed = int(header.BitsStored), int(header.PixelRepresentation)
        least = -(2 ** (bits - 1)) if signed else 0
        low, high = (value * slope + intercept for value in (least, least + 2**bits - 1))
    share = np.clip((image * slope + intercept - low) / max(high - low, 1e-6), 0, 1)
    if header.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    return np.repeat(np.rint(share * 255).astype(np.uint8)[..., None], 3, axis=2)
