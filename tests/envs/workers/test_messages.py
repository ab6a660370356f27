from __future__ import annotations

import io

import numpy as np
import pytest

from agent_jax.envs.workers.messages import receive, send


def test_what_is_sent_is_received_with_its_types_and_shapes() -> None:
    arrays = {"image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "scalar": np.float32(1.5), "none": np.zeros(0),
              "flag": np.array(True), "strided": np.arange(6)[::2]}
    stream = io.BytesIO()
    send(stream, {"a": [1, "x"]}, {name: np.asarray(array) for name, array in arrays.items()})
    send(stream, {"b": None})
    stream.seek(0)
    fields, found = receive(stream)
    assert fields == {"a": [1, "x"]}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (np.asarray(array).dtype, np.shape(array))
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.writeable
    assert receive(stream) == ({"b": None}, {})


def test_an_end_in_the_middle_is_told_and_objects_are_refused() -> None:
    stream = io.BytesIO()
    send(stream, {}, {"image": np.zeros(10)})
    for length in (0, 2, 20, len(stream.getvalue()) - 1):
        with pytest.raises(EOFError):
            receive(io.BytesIO(stream.getvalue()[:length]))
    with pytest.raises(ValueError, match="array 'text' is of <U1, expected numbers"):
        send(io.BytesIO(), {}, {"text": np.array("a")})
