"""DICOM cines: the ultrasound that comes with pydicom, and small ones that tests write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid


def ultrasound() -> Path:
    """30 frames of 240 x 320 in JPEG, YBR_FULL_422, 33.333 ms apart."""
    found = get_testdata_file("examples_ybr_color.dcm", download=False)
    assert isinstance(found, str), "pydicom without its test files"
    return Path(found)


def write_cine(path: Path, frames: np.ndarray, colour: str = "MONOCHROME2", **fields: Any) -> Path:
    """Write a cine of a patient with a name.

    Args:
        path: of the file.
        frames: uint8, uint16 or int16 (frames, height, width), or (frames, height, width, 3).
        colour: PhotometricInterpretation.
        fields: further ones, or others, of the header.
    """
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.SOPClassUID, header.SOPInstanceUID = UltrasoundMultiFrameImageStorage, generate_uid()
    header.PatientName, header.PatientID = "Doe^Jane", "SECRET-77"
    header.Modality = "US"
    header.NumberOfFrames, header.Rows, header.Columns = frames.shape[:3]
    header.SamplesPerPixel = 3 if frames.ndim == 4 else 1
    if frames.ndim == 4:
        header.PlanarConfiguration = 0
    header.PhotometricInterpretation = colour
    header.BitsAllocated = header.BitsStored = 8 * frames.dtype.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(frames.dtype.kind == "i")
    header.FrameTime = 50.0
    for name, value in fields.items():
        if value is None:
            del header[name]
        else:
            setattr(header, name, value)
    header.PixelData = frames.tobytes() + b"\0" * (frames.nbytes % 2)
    header.save_as(path, enforce_file_format=True)
    return path


def grey_cine(path: Path, frames: int = 12, size: tuple[int, int] = (16, 24), **fields: Any) -> Path:
    """Frame n is 10 n throughout."""
    return write_cine(path, np.repeat(np.arange(frames, dtype=np.uint8) * 10, size[0] * size[1])
                      .reshape(frames, *size), **fields)
