"""DICOM cines: the ultrasound that comes with pydicom, and small generated ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)


def ultrasound() -> Path:
    """30 frames of 240 x 320 in JPEG, YBR_FULL_422, 33.333 ms apart."""
    found = get_testdata_file("examples_ybr_color.dcm", download=False)
    assert isinstance(found, str), "pydicom without its test files"
    return Path(found)


def write_cine(path: Path, frames: np.ndarray, colour: str = "MONOCHROME2", syntax: UID = ExplicitVRLittleEndian,
               **fields: Any) -> Path:
    """Write a cine of a patient with a name.

    Args:
        path: of the file.
        frames: uint8, uint16 or int16 (frames, height, width), or (frames, height, width, 3).
        colour: PhotometricInterpretation.
        syntax: how it is written: as it is in either order of bytes, deflated, RLE, JPEG or JPEG 2000.
        fields: further ones, or others, of the header.
    """
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    header.SOPClassUID, header.SOPInstanceUID = UltrasoundMultiFrameImageStorage, generate_uid(entropy_srcs=["cine"])
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
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
    if syntax in (JPEGBaseline8Bit, JPEG2000Lossless):
        header.PixelData = encapsulate([_picture(frame, syntax) for frame in frames])
        header["PixelData"].VR = "OB"
    else:
        content = frames.astype(frames.dtype.newbyteorder(">")) if syntax == ExplicitVRBigEndian else frames
        header.PixelData = content.tobytes() + b"\0" * (frames.nbytes % 2)
        header["PixelData"].VR = "OB" if frames.dtype.itemsize == 1 else "OW"
    if syntax == RLELossless:
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.compress(RLELossless, generate_instance_uid=False)
    header.save_as(path, enforce_file_format=True)
    return path


def _picture(frame: np.ndarray, syntax: UID) -> bytes:
    file = io.BytesIO()
    if syntax == JPEGBaseline8Bit:
        Image.fromarray(frame).save(file, "jpeg", quality=90)
    else:
        Image.fromarray(frame).save(file, "jpeg2000", irreversible=False, no_jp2=True)
    return file.getvalue()


def functional_group(*, window: tuple[float, float] | None = None, rescale: tuple[float, float] | None = None,
                     **voi: Any) -> pydicom.Dataset:
    """An item of a SharedFunctionalGroupsSequence or PerFrameFunctionalGroupsSequence.

    Args:
        window: centre and width.
        rescale: slope and intercept.
        voi: further fields of its FrameVOILUTSequence.
    """
    group = pydicom.Dataset()
    if window or voi:
        item = pydicom.Dataset()
        if window:
            item.WindowCenter, item.WindowWidth = window
        for name, value in voi.items():
            setattr(item, name, value)
        group.FrameVOILUTSequence = [item]
    if rescale:
        item = pydicom.Dataset()
        item.RescaleSlope, item.RescaleIntercept = rescale
        item.RescaleType = "US"
        group.PixelValueTransformationSequence = [item]
    return group


def lookup_table(entries: Sequence[int], first: int, bits: int) -> pydicom.Dataset:
    """An item of a VOILUTSequence or ModalityLUTSequence, its entries in 16 bits each."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return item


def grey_cine(path: Path, frames: int = 12, size: tuple[int, int] = (16, 24), **fields: Any) -> Path:
    """A cine whose frame n has the value 10 n everywhere."""
    return write_cine(path, np.repeat(np.arange(frames, dtype=np.uint8) * 10, size[0] * size[1])
                      .reshape(frames, *size), **fields)
