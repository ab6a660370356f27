from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from agent_jax.data.image_files import exif_orientation, read_header
from agent_jax.data.images import encode_jpeg, encode_png, prepare_image

UPRIGHT = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
# UPRIGHT as a camera stores it for each EXIF orientation.
STORED = {1: UPRIGHT, 2: UPRIGHT[:, ::-1], 3: UPRIGHT[::-1, ::-1], 4: UPRIGHT[::-1], 5: UPRIGHT.swapaxes(0, 1),
          6: np.rot90(UPRIGHT), 7: UPRIGHT[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(UPRIGHT, -1)}


def encoded(image: Image.Image, kind: str, orientation: int = 0, **options) -> bytes:
    """The image in format `kind`, with an EXIF orientation unless that is 0."""
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_read_upright(kind, orientation):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    image = encoded(stored, kind, orientation, **({"lossless": True} if kind == "webp" else {}))
    np.testing.assert_array_equal(prepare_image(image, 0), UPRIGHT)
    header = read_header(image)
    assert header.size == (2, 3)
    assert kind == "tiff" or header.orientation == orientation  # Pillow applies that of a TIFF


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_oriented_as_by_pillow_with_any_decoder(mode, orientation):
    pixels = np.random.default_rng(orientation).integers(0, 256, (17, 30, 3), dtype=np.uint8)
    image = encoded(Image.fromarray(pixels).convert(mode), "jpeg", orientation)
    pillows = ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB")
    np.testing.assert_array_equal(prepare_image(image, 0), np.asarray(pillows))
    assert read_header(image).size == pillows.size[::-1]


def test_a_rotated_image_is_resized_after_the_rotation():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    image = encoded(Image.fromarray(np.ascontiguousarray(np.rot90(pixels))), "png", 6)
    np.testing.assert_array_equal(prepare_image(image, 16), prepare_image(pixels, 16))


def test_exif_after_the_pixels_of_a_png_and_after_other_segments_of_a_jpeg_is_found():
    png = encoded(Image.fromarray(np.ascontiguousarray(STORED[8])), "png", 8)
    place = png.index(b"eXIf") - 4
    chunk = png[place : place + 12 + int.from_bytes(png[place : place + 4], "big")]
    late = png.replace(chunk, b"").replace(png[-12:], chunk + png[-12:])
    assert late.index(b"eXIf") > late.index(b"IDAT")
    assert read_header(late).orientation == 8
    np.testing.assert_array_equal(prepare_image(late, 0), UPRIGHT)
    jpeg = encoded(Image.fromarray(UPRIGHT), "jpeg", 3, icc_profile=bytes(70_000), comment=b"Exif\0\0 of no segment")
    moved = jpeg.index(b"\xff\xe1")
    length = int.from_bytes(jpeg[moved + 2 : moved + 4], "big") + 2
    exif, rest = jpeg[moved : moved + length], jpeg[:moved] + jpeg[moved + length :]
    tables = rest.index(b"\xff\xdb")
    assert read_header(rest).orientation == 1
    assert read_header(rest[:tables] + exif + rest[tables:]).orientation == 3


@pytest.mark.parametrize("damage", [
    lambda exif: exif[:12], lambda exif: exif[:4] + b"\xff" * 4, lambda exif: b"xx" + exif[2:], lambda exif: b"",
    lambda exif: exif.replace(struct.pack("<HHIH", 0x0112, 3, 1, 6), struct.pack("<HHIH", 0x0112, 3, 1, 9)),
    lambda exif: exif.replace(struct.pack("<HHIH", 0x0112, 3, 1, 6), struct.pack("<HHIH", 0x0112, 3, 1, 0)),
    lambda exif: exif.replace(struct.pack("<HHIH", 0x0112, 3, 1, 6), struct.pack("<HHIH", 0x0112, 2, 1, 6))])
def test_damaged_exif_is_ignored(damage):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    little = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHxx", 0x0112, 3, 1, 6) + bytes(4)
    assert exif_orientation(content) == exif_orientation(little) == 6
    assert exif_orientation(damage(little)) == 1


GREY_16 = np.linspace(300, 4000, 48).reshape(6, 8)


def grey_16_with_alpha() -> bytes:
    """A PNG of 16-bit grey and alpha, which Pillow can read but not write."""
    lines = b"".join(b"\0" + np.stack([row, row], 1).astype(">u2").tobytes() for row in GREY_16)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 8, 6, 16, 4, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks)


@pytest.mark.parametrize("image", [
    encoded(Image.fromarray(GREY_16.astype(np.uint16)), "png"),
    encoded(Image.fromarray(GREY_16.astype(np.uint16)), "tiff"),
    encoded(Image.fromarray(GREY_16.astype(np.int32)), "tiff"),
    encoded(Image.fromarray(GREY_16.astype(np.float32)), "tiff"),
    encoded(Image.fromarray(GREY_16.astype(np.int32)), "ppm"),
    grey_16_with_alpha(),
], ids=["png I;16", "tiff I;16", "tiff I", "tiff F", "pgm I", "png LA;16"])
def test_values_of_more_than_8_bits_are_refused(image):
    for read in (read_header, lambda image: prepare_image(image, 0)):
        with pytest.raises(ValueError, match=r"image: .* of mode .*; expected 8 bits a channel\. .*scale"):
            read(image)


def test_colours_of_16_bits_are_scaled_to_8_bits():
    values = np.asarray([[[0, 255, 256], [32768, 65280, 65535]]])
    lines = b"\0" + values.astype(">u2").tobytes()
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")))
    np.testing.assert_array_equal(prepare_image(image, 0), values // 256)


def test_grey_of_few_bits_and_transparent_palettes_are_converted_exactly():
    lines = b"\0" + bytes([0b00011011])
    image = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)), (b"IDAT", zlib.compress(lines)),
                              (b"IEND", b"")))
    np.testing.assert_array_equal(prepare_image(image, 0)[0, :, 1], [0, 85, 170, 255])
    palette = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    palette.putpalette(list(range(36)))
    for transparency in (3, bytes([0, 128, 255])):
        found = prepare_image(encoded(palette, "png", transparency=transparency), 0)
        np.testing.assert_array_equal(found.reshape(12, 3), np.arange(36).reshape(12, 3))


def png_of_header(height: int, width: int, kind: bytes, data: bytes) -> bytes:
    """A PNG with this size in its header and these data."""
    whole = bytearray(encode_png(np.zeros((1, 1, 3), np.uint8)))
    whole[16:24], whole[24:26] = struct.pack(">II", width, height), kind
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    end = whole[-12:]
    chunk = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    return bytes(whole[:33] + chunk + end)


def jpeg_of_header(height: int, width: int) -> bytes:
    whole = bytearray(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    place = whole.index(b"\xff\xc0")
    whole[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(whole)


@pytest.mark.parametrize("image", [
    jpeg_of_header(30_000, 30_000), jpeg_of_header(65_000, 65_000),
    png_of_header(20_000, 20_000, bytes((8, 0)), zlib.compress(bytes(100))),
    png_of_header(20_000, 20_000, bytes((8, 2)), zlib.compress(bytes(100))),
    encoded(Image.new("1", (20_000, 20_000)), "tiff", compression="group4"),
], ids=["jpeg", "jpeg of the largest size", "png grey", "png as encode_png", "tiff"])
def test_a_small_file_with_many_pixels_is_refused_before_decoding(image):
    assert len(image) < 100_000
    for read in (read_header, lambda image: prepare_image(image, 16)):
        with pytest.raises(ValueError, match=r"image of \d+ x \d+ pixels: .* unpack to .*AGENT_JAX_MAX_READ_MB=\d+"):
            read(image)


def test_an_image_beyond_pillows_limit_and_within_ours_is_read():
    image = encoded(Image.new("1", (9_500, 9_500), 1), "png")  # 90 million: Pillow alone warns
    assert read_header(image).size == (9_500, 9_500)


def test_the_limit_can_be_changed(monkeypatch):
    image = encoded(Image.new("L", (900, 900), 200), "png")
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "2")
    with pytest.raises(ValueError, match="AGENT_JAX_MAX_READ_MB=3"):
        prepare_image(image, 8)
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "3")
    assert (prepare_image(image, 8) == 200).all()


def test_a_png_is_not_unpacked_beyond_the_size_in_its_header(monkeypatch):
    data = zlib.compress(bytes(2**25))
    image = png_of_header(4, 4, bytes((8, 2)), data)
    unpacker, made = zlib.decompressobj, []

    class Counting:
        def __init__(self) -> None:
            self._unpacker = unpacker()

        def decompress(self, data: bytes, most: int) -> bytes:
            lines = self._unpacker.decompress(data, most)
            made.append(len(lines))
            return lines

        @property
        def eof(self) -> bool:
            return self._unpacker.eof

    monkeypatch.setattr("agent_jax.data.images.zlib.decompressobj", Counting)
    assert prepare_image(image, 0).tolist() == np.zeros((4, 4, 3)).tolist()  # its first lines, as other readers do
    assert made == [4 * 13 + 1]


def test_an_image_whose_resize_takes_gigabytes_is_refused():
    with pytest.raises(ValueError, match=r"image of 1 x 3000000 pixels resized to 224 x 224: .*AGENT_JAX_MAX_READ_MB"):
        prepare_image(encode_png(np.zeros((1, 3_000_000, 3), np.uint8)), 224)


def test_a_format_that_needs_another_program_is_refused():
    with pytest.raises(ValueError, match="cannot read"):
        prepare_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", 0)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_damaged_images_raise_only_value_error(kind):
    rng = np.random.default_rng(0)
    whole = encoded(Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)), kind, 6 * (kind != "gif"))
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            damaged[place] = rng.integers(0, 256)
        for read in (read_header, lambda image: prepare_image(image, 8)):
            with contextlib.suppress(ValueError):
                read(bytes(damaged))
