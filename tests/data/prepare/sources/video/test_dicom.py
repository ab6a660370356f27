from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from cines import grey_cine, ultrasound, write_cine
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_voi_lut, pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from agent_jax.data.prepare.sources.video.decode import VideoInfo
from agent_jax.data.prepare.sources.video.dicom import dicom_info, is_dicom, read_dicom


def test_real_ultrasound_has_the_colours_of_its_jpegs():
    path = ultrasound()
    info = dicom_info(path)
    assert (info.frames, info.height, info.width) == (30, 240, 320)
    assert info.rate_hz == pytest.approx(30.0, rel=1e-4)
    encoded = list(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=30))
    for number, image in zip((0, 17, 29), read_dicom(path, [0, 17, 29]), strict=True):
        with Image.open(io.BytesIO(encoded[number])) as picture:
            expected = np.asarray(picture.convert("RGB"))
        assert image.dtype == np.uint8
        assert np.abs(image.astype(int) - expected).max() <= 2  # pydicom converts from YBR by itself, in floats


def pictures(shape: tuple[int, ...], bits: int = 8) -> np.ndarray:
    """Smooth, so that JPEG keeps it, and another for each frame."""
    t, y, x, *c = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    return ((30 * t + 5 * y + 7 * x + sum(40 * part for part in c)) % 200 * 2 ** (bits - 8)).astype(f"uint{bits}")


SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
            RLELossless]
ORDER = [3, 0, 4, 1, 1, 2]


def as_pydicom_has_them(path: Path) -> list[np.ndarray]:
    """The frames in `ORDER`, decoded by pydicom one by one, and by its own tables and windows."""
    header = pydicom.dcmread(path)
    found = []
    for frame in ORDER:
        image = pixel_array(header, index=frame)
        if header.PhotometricInterpretation == "PALETTE COLOR":
            image = apply_color_lut(image, header)
        elif header.SamplesPerPixel == 1:
            low, high = 0, 2**header.BitsStored - 1
            image = np.rint((apply_voi_lut(image, header) - low) / (high - low) * 255).astype(np.uint8)
            image = 255 - image if header.PhotometricInterpretation == "MONOCHROME1" else image
            image = np.repeat(image[..., None], 3, axis=2)
        found.append((image >> 8 if image.dtype.itemsize == 2 else image).astype(np.uint8))
    return found


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("colour", "bits"), [
    ("MONOCHROME1", 8), ("MONOCHROME2", 8), ("MONOCHROME2", 16), ("RGB", 8), ("RGB", 16), ("YBR_FULL", 8),
    ("PALETTE COLOR", 8), ("PALETTE COLOR", 16),
])
def test_every_syntax_and_colour_agrees_with_pydicom(tmp_path, syntax, colour, bits):
    samples = (3,) if colour in ("RGB", "YBR_FULL") else ()
    fields: dict[str, Any] = {}
    if colour == "PALETTE COLOR":
        ramp = np.arange(2**bits, dtype=np.uint32)
        fields = {f"{name}PaletteColorLookupTable{part}": value
                  for name, step in (("Red", 37), ("Green", 101), ("Blue", 233))
                  for part, value in (("Descriptor", [2**bits % 2**16, 0, 16]),
                                      ("Data", (ramp * step).astype(np.uint16).tobytes()))}
    elif bits == 16 and not samples:
        fields = {"WindowCenter": 20000, "WindowWidth": 30000}
    path = write_cine(tmp_path / "a.dcm", pictures((5, 9, 11, *samples), bits), colour, syntax, **fields)
    np.testing.assert_array_equal(list(read_dicom(path, ORDER)), as_pydicom_has_them(path))


@pytest.mark.parametrize(("colour", "syntax"), [
    ("MONOCHROME2", JPEGBaseline8Bit), ("MONOCHROME1", JPEGBaseline8Bit), ("YBR_FULL", JPEGBaseline8Bit),
    ("YBR_FULL_422", JPEGBaseline8Bit), ("MONOCHROME2", JPEG2000Lossless), ("YBR_RCT", JPEG2000Lossless),
])
def test_jpeg_and_jpeg_2000_agree_with_pydicom(tmp_path, colour, syntax):
    images = pictures((5, 16, 24) if colour.startswith("MONO") else (5, 16, 24, 3))
    path = write_cine(tmp_path / "a.dcm", images, colour, syntax)
    found = list(read_dicom(path, ORDER))
    np.testing.assert_array_equal(found, as_pydicom_has_them(path))
    if syntax == JPEG2000Lossless:
        shown = images[ORDER] if images.ndim == 4 else np.repeat(images[ORDER][..., None], 3, axis=3)
        np.testing.assert_array_equal(found, shown)


def test_uncompressed_ybr_422_agrees_with_pydicom(tmp_path):
    path = write_cine(tmp_path / "a.dcm", pictures((5, 8, 12, 3)), "YBR_FULL_422")
    header = pydicom.dcmread(path)
    header.PixelData = pictures((5, 8, 12, 2)).tobytes()  # two luminances, then both colours, for each pair
    header.save_as(path)
    np.testing.assert_array_equal(list(read_dicom(path, ORDER)), as_pydicom_has_them(path))


def test_frames_come_in_the_requested_order(tmp_path):
    path = grey_cine(tmp_path / "a.dcm")
    assert dicom_info(path) == VideoInfo(12, 20.0, 16, 24)
    images = list(read_dicom(path, [3, 0, 11]))
    assert [image.shape for image in images] == [(16, 24, 3)] * 3
    assert [image[0, 0].tolist() for image in images] == [[30] * 3, [0] * 3, [110] * 3]


@pytest.mark.parametrize(("values", "fields", "expected"), [
    (np.array([0, 128, 255], np.uint8), {"colour": "MONOCHROME1"}, [255, 127, 0]),
    (np.array([0, 50, 150, 250], np.uint8), {"WindowCenter": 100, "WindowWidth": 100}, [0, 0, 255, 255]),
    (np.array([-1000, 0, 40, 1000], np.int16), {"WindowCenter": [40, 7], "WindowWidth": [400, 7]}, [0, 102, 128, 255]),
    (np.array([0, 1024, 1064], np.uint16), {"RescaleIntercept": -1024, "RescaleSlope": 1, "WindowCenter": 40,
                                           "WindowWidth": 400}, [0, 102, 128]),
    (np.array([0, 2048, 4095], np.uint16), {"BitsStored": 12, "HighBit": 11}, [0, 128, 255]),
    (np.array([-32768, 0, 32767], np.int16), {}, [0, 128, 255]),
])
def test_monochrome_is_rescaled_and_windowed_to_8_bits(tmp_path, values, fields, expected):
    frames = np.repeat(values, 16).reshape(-1, 4, 4)
    images = list(read_dicom(write_cine(tmp_path / "a.dcm", frames, **fields), range(len(values))))
    assert [image[1, 2].tolist() for image in images] == [[value] * 3 for value in expected]


def test_rgb_and_palettes_are_shown_in_colour(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    np.testing.assert_array_equal(list(read_dicom(write_cine(tmp_path / "a.dcm", rgb, "RGB"), [0, 1])), rgb)
    table = {f"{name}PaletteColorLookupTable{part}": value for name, step in (("Red", 1), ("Green", 2), ("Blue", 3))
             for part, value in (("Descriptor", [256, 0, 16]),
                                 ("Data", (np.arange(256, dtype=np.uint16) * step % 256 * 257).tobytes()))}
    path = write_cine(tmp_path / "b.dcm", np.full((2, 4, 4), 100, np.uint8), "PALETTE COLOR", **table)
    assert next(read_dicom(path, [0]))[0, 0].tolist() == [100, 200, 300 % 256]
    shallow = {key: [256, 0, 8] if key.endswith("Descriptor") else value[::2] for key, value in table.items()}
    path = write_cine(tmp_path / "c.dcm", np.full((2, 4, 4), 100, np.uint8), "PALETTE COLOR", **shallow)
    assert next(read_dicom(path, [0]))[0, 0].tolist() == [100, 200, 300 % 256]
    padded = {key: [256, 0, 8] if key.endswith("Descriptor") else (np.arange(256, dtype=np.uint16)).tobytes()
              for key in table}
    path = write_cine(tmp_path / "d.dcm", np.full((2, 4, 4), 100, np.uint8), "PALETTE COLOR", **padded)
    assert next(read_dicom(path, [0]))[0, 0].tolist() == [100, 100, 100]


def test_palette_of_16_bit_pixels_with_byte_tables(tmp_path):
    tables = {"Red": np.arange(1000) // 4, "Green": 255 - np.arange(1000) // 4, "Blue": np.arange(1000) % 256}
    fields = {f"{name}PaletteColorLookupTable{part}": value for name, table in tables.items()
              for part, value in (("Descriptor", [1000, 0, 8]), ("Data", table.astype(np.uint8).tobytes()))}
    frames = np.asarray([[[5, 700, 999, 3000]]] * 2, np.uint16)
    path = write_cine(tmp_path / "a.dcm", frames, "PALETTE COLOR", **fields)
    expected = [[table[min(value, 999)] for table in tables.values()] for value in (5, 700, 999, 3000)]
    assert next(read_dicom(path, [1]))[0].tolist() == expected


def test_empty_request_decodes_no_frames(tmp_path):
    assert list(read_dicom(grey_cine(tmp_path / "a.dcm"), [])) == []


@pytest.mark.parametrize(("fields", "rate_hz"), [
    ({"FrameTime": 40.0}, 25.0), ({"FrameTime": None, "FrameTimeVector": [0.0, *[20.0] * 11]}, 50.0),
    ({"FrameTime": None, "CineRate": 15}, 15.0), ({"FrameTime": None, "RecommendedDisplayFrameRate": 12}, 12.0),
    ({"FrameTime": None}, 0.0),
])
def test_rate_comes_from_the_header(tmp_path, fields, rate_hz):
    assert dicom_info(grey_cine(tmp_path / "a.dcm", **fields)).rate_hz == pytest.approx(rate_hz)


def test_files_that_are_not_cines_are_refused(tmp_path):
    (tmp_path / "text.dcm").write_text("no dicom" * 100)
    grey_cine(tmp_path / "single.dcm", frames=1)
    write_cine(tmp_path / "deep.dcm", np.zeros((2, 4, 4), np.uint32))
    for name, message in (("text", "cannot be read as DICOM"), ("single", "holds a single image"),
                        ("deep", "found pixels of 1 x 32 bits")):
        with pytest.raises(ValueError, match=f"{name}.dcm: {message}"):
            dicom_info(tmp_path / f"{name}.dcm")
    with pytest.raises(FileNotFoundError, match=r"none.dcm: not found"):
        dicom_info(tmp_path / "none.dcm")


@pytest.mark.parametrize(("fields", "message"), [
    ({"NumberOfFrames": 2**31 - 1}, "found NumberOfFrames=2,147,483,647, expected at most one for each of"),
    ({"FrameTime": [50.0, 40.0]}, "cannot be read as DICOM .*NumberOfFrames or FrameTime"),
    ({"FrameTime": "1e-320"}, "cannot be read as DICOM .*a rate of inf"),
    ({"FrameTime": -50}, "cannot be read as DICOM .*a rate of -20"),
    ({"Rows": 60000, "Columns": 60000}, "frames of 60000 x 60000: .*512 MB more than their size"),
])
def test_impossible_header_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=f"a.dcm: {message}"):
        dicom_info(grey_cine(tmp_path / "a.dcm", **fields))


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of values that it reads all the same
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit])
def test_flipped_byte_changes_pixels_or_raises_an_error_with_the_file(tmp_path, syntax):
    content = grey_cine(tmp_path / "whole.dcm", syntax=syntax).read_bytes()
    path, messages = tmp_path / "a.dcm", []
    for place in range(132, len(content), 1 + len(content) // 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            list(read_dicom(path, range(min(dicom_info(path).frames, 12))))
        except ValueError as error:
            messages.append(str(error))
    assert messages
    assert all("a.dcm" in message for message in messages)


def test_deflated_cine_beyond_the_memory_bound_is_refused(tmp_path, monkeypatch):
    path = write_cine(tmp_path / "a.dcm", np.zeros((40, 200, 200), np.uint8), syntax=DeflatedExplicitVRLittleEndian)
    assert len(list(read_dicom(path, [0, 39]))) == 2
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "1")
    with pytest.raises(ValueError, match=r"a.dcm: deflated: .* unpack to 1,.*AGENT_JAX_MAX_READ_MB=2"):
        dicom_info(path)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.9, 0.999])
def test_truncated_cine_is_refused_at_any_length(tmp_path, share):
    content = ultrasound().read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut.dcm(, frame \d+)?: cannot be (read|decoded) as"):
        list(read_dicom(path, range(30)))


def test_dicom_file_is_recognised_by_its_prefix(tmp_path):
    path = grey_cine(tmp_path / "IM0001")
    (tmp_path / "a.dcm").write_text("no")
    assert [is_dicom(file) for file in (path, tmp_path / "a.dcm", tmp_path, tmp_path / "none")] == [True] + [False] * 3
