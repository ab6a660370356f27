from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from cines import grey_cine, ultrasound, write_cine
from PIL import Image
from pydicom.encaps import generate_frames

from agent_jax.data.dicom import dicom_info, is_dicom, read_dicom
from agent_jax.data.video import VideoInfo


def test_a_real_ultrasound_is_decoded_to_the_colours_of_its_jpegs():
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


def test_frames_come_in_the_order_asked_for(tmp_path):
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
def test_monochrome_is_rescaled_and_windowed_to_eight_bits(tmp_path, values, fields, expected):
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


def test_no_frames_are_decoded_where_none_are_asked_for(tmp_path):
    assert list(read_dicom(grey_cine(tmp_path / "a.dcm"), [])) == []


@pytest.mark.parametrize(("fields", "rate_hz"), [
    ({"FrameTime": 40.0}, 25.0), ({"FrameTime": None, "FrameTimeVector": [0.0, *[20.0] * 11]}, 50.0),
    ({"FrameTime": None, "CineRate": 15}, 15.0), ({"FrameTime": None, "RecommendedDisplayFrameRate": 12}, 12.0),
    ({"FrameTime": None}, 0.0),
])
def test_the_rate_is_what_the_header_says_of_it(tmp_path, fields, rate_hz):
    assert dicom_info(grey_cine(tmp_path / "a.dcm", **fields)).rate_hz == pytest.approx(rate_hz)


def test_what_is_no_cine_is_refused_in_words(tmp_path):
    (tmp_path / "text.dcm").write_text("no dicom" * 100)
    grey_cine(tmp_path / "single.dcm", frames=1)
    write_cine(tmp_path / "deep.dcm", np.zeros((2, 4, 4), np.uint32))
    for name, words in (("text", "cannot be read as DICOM"), ("single", "holds a single image"),
                        ("deep", "found pixels of 1 x 32 bits")):
        with pytest.raises(ValueError, match=f"{name}.dcm: {words}"):
            dicom_info(tmp_path / f"{name}.dcm")
    with pytest.raises(FileNotFoundError, match=r"none.dcm: not found"):
        dicom_info(tmp_path / "none.dcm")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.9, 0.999])
def test_a_cine_that_is_cut_off_is_refused_wherever_the_cut_is(tmp_path, share):
    content = ultrasound().read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut.dcm(, frame \d+)?: cannot be (read|decoded) as"):
        list(read_dicom(path, range(30)))


def test_a_dicom_file_is_told_by_its_mark_whatever_it_is_called(tmp_path):
    path = grey_cine(tmp_path / "IM0001")
    (tmp_path / "a.dcm").write_text("no")
    assert [is_dicom(file) for file in (path, tmp_path / "a.dcm", tmp_path, tmp_path / "none")] == [True] + [False] * 3
