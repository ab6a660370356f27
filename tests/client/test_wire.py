"""Messages between client and server: arrays in openpi's format, and checks of everything in a message."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_jax.client import wire


def array(data: Any = b"\1\2\3", dtype: Any = "|u1", shape: Any = (3,), **more: Any) -> bytes:
    found = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return msgpack.packb({"x": found | {key.encode(): value for key, value in more.items()}})


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
                                   "float16", "float32", "float64", ">f4", ">i2"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 1, 3)])
def test_arrays_are_decoded_unchanged(dtype: str, shape: tuple[int, ...]):
    sent = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    found = wire.unpack(wire.pack({"x": sent}))["x"]
    np.testing.assert_array_equal(found, sent)
    assert (found.shape, found.dtype) == (sent.shape, sent.dtype.newbyteorder("="))


def test_arrays_and_scalars_have_openpis_format():
    assert msgpack.unpackb(wire.pack({"x": np.uint8([1, 2, 3]), "y": np.float32(0.5)})) == {
        "x": {b"__ndarray__": True, b"data": b"\1\2\3", b"dtype": "|u1", b"shape": [3]},
        "y": {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}}
    found = wire.unpack(msgpack.packb({"y": {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}}))["y"]
    assert found == np.float32(0.5)
    assert found.dtype == np.float32


def test_an_array_that_is_not_contiguous_is_sent_in_index_order():
    sent = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(2, 1, 0)
    np.testing.assert_array_equal(wire.unpack(wire.pack({"x": sent}))["x"], sent)


@pytest.mark.parametrize("value", [np.array([None, 1]), np.array(["a"]), np.array([1j]), object(), 1 << 70,
                                   np.zeros(2, "f4,i4")], ids=lambda value: type(value).__name__)
def test_arrays_of_objects_texts_and_records_are_errors(value: Any):
    with pytest.raises(ValueError, match="expected"):
        wire.pack({"x": value})


@pytest.mark.parametrize(("content", "message"), [
    (array(shape=(4,)), "3 bytes for uint8.4., expected 4"),
    (array(shape=(1 << 40, 1 << 40)), "expected 1208925819614629174706176"),
    (array(shape=(-1, -3)), "whole numbers"),
    (array(shape=(3.0,)), "whole numbers"),
    (array(shape=(True, 3)), "whole numbers"),
    (array(shape=[3] + [1] * 8), "at most 8"),
    (array(data="abc"), "bytes"),
    (array(dtype="|O", data=b"\0" * 24), "dtype '|O', expected one of"),
    (array(dtype="<U1", data=b"\0" * 12), "dtype '<U1', expected one of"),
    (array(dtype="u1,f8", data=b"\0" * 27), "expected one of"),
    (array(dtype=[["f", "<f8"]], data=b"\0" * 24), "expected one of"),
    (array(dtype="|b1"), "neither 0 nor 1"),
    (array(more=1), "found the keys"),
    (msgpack.packb({"x": {b"__npgeneric__": True, b"data": "7", b"dtype": "|u1"}}), "found data of str"),
    (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 700, b"dtype": "|u1"}}), "does not fit uint8"),
    (msgpack.packb([1, 2]), "found list"),
    (msgpack.packb({b"x": 1}), "text keys"),
    (msgpack.packb({1: 1}), "expected one msgpack map"),
    (msgpack.packb({"x": 1}) + b"\0", "expected one msgpack map"),
    (msgpack.packb({"x": 1})[:-1], "expected one msgpack map"),
    (b"", "expected one msgpack map"),
    (b"\xc1", "expected one msgpack map"),
    (b"\x81\xa1\xff\x01", "expected one msgpack map"),
    (b"\x91" * 5000, "nested too deeply"),
    (b"\x81\xa1x" + b"\xdd\x7f\xff\xff\xff", "exceeds max_array_len"),
    (b"\xdf\x7f\xff\xff\xff", "exceeds max_map_len"),
], ids=range(26))
def test_invalid_messages_are_errors(content: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        wire.unpack(content)


@given(st.binary(max_size=64))
def test_any_bytes_raise_at_most_a_value_error(content: bytes):
    with contextlib.suppress(ValueError):
        wire.unpack(content)
