"""The grey range of monochrome frames, against pydicom's own rescaling and windowing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from cines import functional_group, lookup_table, write_cine
from pydicom.pixels import apply_rescale, apply_voi_lut, pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

from agent_jax.data.prepare.sources.video.dicom import read_dicom

FRAMES = np.stack([np.linspace(0, 900, 8 * 12).reshape(8, 12) + 5 * t for t in range(4)]).astype(np.uint16)


def greys(path: Path, frames: Any = range(4)) -> np.ndarray:
    images = np.stack(list(read_dicom(path, frames)))
    assert (images == images[..., :1]).all()
    return images[..., 0]


def windowed(path: Path, frame: int, **level: float) -> np.ndarray:
    """By pydicom, with the rescale and the window of that frame at the top level, where alone it looks."""
    header = pydicom.dcmread(path)
    for name, value in level.items():
        setattr(header, name, value)
    shown = apply_voi_lut(apply_rescale(pixel_array(path, index=frame), header), header, prefer_lut=False)
    ends = np.asarray([0, 2**header.BitsStored - 1])  # pydicom's windowing fills the range of the pixels
    if "ModalityLUTSequence" not in header:
        ends = apply_rescale(ends - (2 ** (header.BitsStored - 1) if header.PixelRepresentation else 0), header)
    low, high = ends
    return np.rint((shown - low) / (high - low) * 255).astype(np.uint8)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize("place", ["top", "shared", "per_frame"])
def test_window_applies_at_every_place(tmp_path, syntax, place):
    group = functional_group(window=(500, 1000), rescale=(1.0, 0.0))
    fields: dict[str, Any] = {
        "top": {"WindowCenter": 500, "WindowWidth": 1000},
        "shared": {"SharedFunctionalGroupsSequence": [group]},
        "per_frame": {"PerFrameFunctionalGroupsSequence": [group] * 4},
    }[place]
    path = write_cine(tmp_path / "a.dcm", FRAMES, syntax=syntax, **fields)
    found = greys(path, [2, 0, 3, 1])
    for frame, image in zip([2, 0, 3, 1], found, strict=True):
        np.testing.assert_array_equal(image, windowed(path, frame, WindowCenter=500, WindowWidth=1000))
    assert found.max() == round((915 - 499.5) / 999 * 255 + 127.5)


def test_each_frame_has_its_own_slope_and_window(tmp_path):
    slopes, widths = [0.5, 1.0, 1.5, 2.0], [300.0, 500.0, 900.0, 1400.0]
    groups = [functional_group(window=(width / 2, width), rescale=(slope, -10.0))
              for slope, width in zip(slopes, widths, strict=True)]
    path = write_cine(tmp_path / "a.dcm", FRAMES, PerFrameFunctionalGroupsSequence=groups)
    for frame, image in enumerate(greys(path)):
        np.testing.assert_array_equal(image, windowed(
            path, frame, WindowCenter=widths[frame] / 2, WindowWidth=widths[frame], RescaleSlope=slopes[frame],
            RescaleIntercept=-10.0))


def test_precedence_of_frame_then_shared_then_top_level(tmp_path):
    top = {"WindowCenter": 40, "WindowWidth": 80, "RescaleSlope": 3, "RescaleIntercept": 1}
    shared = functional_group(window=(300, 500), rescale=(1.0, 5.0))
    own = [functional_group(window=(500, 1000)), functional_group(rescale=(2.0, 0.0)), functional_group(),
           functional_group(window=(500, 1000), rescale=(0.5, 0.0))]
    path = write_cine(tmp_path / "a.dcm", FRAMES, SharedFunctionalGroupsSequence=[shared],
                      PerFrameFunctionalGroupsSequence=own, **top)
    for frame, (image, (centre, width, slope, intercept)) in enumerate(zip(greys(path), [
            (500, 1000, 1, 5), (300, 500, 2, 0), (300, 500, 1, 5), (500, 1000, 0.5, 0)], strict=True)):
        np.testing.assert_array_equal(image, windowed(path, frame, WindowCenter=centre, WindowWidth=width,
                                                      RescaleSlope=slope, RescaleIntercept=intercept))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_window_functions_agree_with_pydicom(tmp_path, function, dtype):
    path = write_cine(tmp_path / "a.dcm", FRAMES.astype(dtype) - dtype(0), WindowCenter=[400, 7], WindowWidth=[610, 7],
                      VOILUTFunction=function, RescaleSlope=1.25, RescaleIntercept=-30)
    for frame, image in enumerate(greys(path)):
        np.testing.assert_array_equal(image, windowed(path, frame))


@pytest.mark.parametrize(("bits", "first", "entries"), [
    (8, 0, np.minimum(np.arange(1024) // 4, 255)),  # more entries than 8 bits can count
    (12, 100, np.arange(700) * 5), (16, 0, 65535 - np.arange(1000) * 60),
])
def test_voi_lut_maps_to_the_range_of_its_bits(tmp_path, bits, first, entries):
    table = lookup_table(entries.tolist(), first, bits)
    found = greys(write_cine(tmp_path / "top.dcm", FRAMES, VOILUTSequence=[table]))
    expected = entries[np.clip(FRAMES.astype(int) - first, 0, len(entries) - 1)]
    np.testing.assert_array_equal(found, np.rint(expected * (255 / (2**bits - 1))))
    groups = [functional_group(VOILUTSequence=[table])] * 4
    np.testing.assert_array_equal(greys(write_cine(tmp_path / "own.dcm", FRAMES,
                                                   PerFrameFunctionalGroupsSequence=groups)), found)


def test_voi_lut_with_one_byte_per_entry_is_read(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [1024, 0, 8]
    table.add_new("LUTData", "OW", bytes(np.minimum(np.arange(1024) // 4, 255).astype(np.uint8)))
    np.testing.assert_array_equal(greys(write_cine(tmp_path / "a.dcm", FRAMES, VOILUTSequence=[table])), FRAMES // 4)


def test_voi_lut_applies_to_rescaled_values_and_a_window_has_precedence(tmp_path):
    table = lookup_table(range(0, 4000, 2), -500, 12)
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -400, "VOILUTSequence": [table]}
    found = greys(write_cine(tmp_path / "table.dcm", FRAMES, **rescale))
    np.testing.assert_array_equal(found, np.rint((FRAMES.astype(int) * 2 + 100).clip(0, 1999) * 2 / 4095 * 255))
    path = write_cine(tmp_path / "both.dcm", FRAMES, WindowCenter=500, WindowWidth=1000, **rescale)
    np.testing.assert_array_equal(greys(path)[1], windowed(path, 1))


def test_modality_lut_applies_before_the_window(tmp_path):
    table = lookup_table([min(3 * value, 4095) for value in range(1000)], 0, 16)
    table.ModalityLUTType = "US"
    path = write_cine(tmp_path / "a.dcm", FRAMES, ModalityLUTSequence=[table], WindowCenter=1000, WindowWidth=2000)
    np.testing.assert_array_equal(greys(path)[1], windowed(path, 1))


def test_more_than_8_bits_without_window_use_the_range_of_the_cine_and_warn(tmp_path, caplog):
    path = write_cine(tmp_path / "a.dcm", FRAMES + 100)
    found = greys(path)
    np.testing.assert_array_equal(found, np.rint(FRAMES / 915 * 255))
    assert greys(path, [3]).max() == 255
    assert caplog.text.count(f"{path}: names no window and no VOI LUT for its 16 bits; its own range, 100 to 1015") == 1
    slopes = [functional_group(rescale=(slope, 0.0)) for slope in (1.0, 1.0, 1.0, 0.5)]
    path = write_cine(tmp_path / "b.dcm", (FRAMES // 4).astype(np.uint8), PerFrameFunctionalGroupsSequence=slopes)
    assert [image.max() for image in greys(path)] == [253, 254, 255, 128]  # values of 225, 226, 227 and 114


def test_monochrome1_is_inverted(tmp_path):
    for number, fields in enumerate(({}, {"WindowCenter": 500, "WindowWidth": 1000},
                                     {"VOILUTSequence": [lookup_table(range(1000), 0, 10)]})):
        two, one = (greys(write_cine(tmp_path / f"{number}{colour}.dcm", FRAMES, colour, **fields))
                    for colour in ("MONOCHROME2", "MONOCHROME1"))
        np.testing.assert_array_equal(one, 255 - two)


@pytest.mark.parametrize(("fields", "message"), [
    ({"VOILUTSequence": [lookup_table(range(8), 0, 77)]}, "found a table of 77 bits"),
    ({"WindowCenter": "1e400", "WindowWidth": 100}, "WindowCenter: found 1e400, expected a finite number"),
    ({"WindowCenter": 5, "WindowWidth": 100, "VOILUTFunction": "ROUND"}, "ROUND"),
])
def test_invalid_grey_range_is_refused_with_the_frame(tmp_path, fields, message):
    with pytest.raises(ValueError, match=f"a.dcm, frame 1: cannot be decoded .*{message}"):
        list(read_dicom(write_cine(tmp_path / "a.dcm", FRAMES, **fields), [1]))
