"""Messages of robots: every error is answered with a message to its robot, and changes nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from served import Served, make_image, served, table_policy, twin
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from agent_jax.client import BadRequestError, Client, wire

TEXT = "push the red block left"
STATE = {"effector_target_translation": np.float32([0.3, 0.1]), "effector_translation": np.float32([0.2, 0.0])}
ACT = {"images": make_image(), "instruction": TEXT, "state": STATE}
BAD = {
    "height": ({"images": np.zeros((0, 16, 3), np.uint8)}, "uint8[height, width, 3]"),
    "channels": ({"images": np.zeros((16, 16, 4), np.uint8)}, "uint8[height, width, 3]"),
    "dtype": ({"images": np.zeros((16, 16, 3), np.float32)}, "found float32"),
    "advice": ({"images": np.zeros((3, 16, 16), np.uint8)}, "pass np.transpose(image, (1, 2, 0))"),
    "side": ({"images": np.zeros((1, 8193, 3), np.uint8)}, "sides of at most 8192 pixels"),
    "no image": ({"images": "picture"}, "images: expected an array"),
    "camera": ({"images": {"wrist": make_image()}}, "sees through rgb"),
    "no camera": ({"images": []}, "sees through rgb"),
    "instruction": ({"instruction": 7}, "expected a text"),
    "long instruction": ({"instruction": "x" * 81}, "max_text=80"),
    "longer instruction": ({"instruction": "x" * 20_000}, "at most 80 tokens"),
    "nan": ({"state": STATE | {"effector_translation": np.float32([np.nan, 0])}}, "finite"),
    "inf": ({"state": STATE | {"effector_translation": [float("inf"), 0.0]}}, "finite"),
    "no state": ({"state": None}, "state"),
    "half a state": ({"state": {"effector_translation": [0.0, 0.0]}}, "effector_target_translation"),
    "state's shape": ({"state": STATE | {"effector_translation": [0.0]}}, "expected shape (2,)"),
    "ragged state": ({"state": STATE | {"effector_translation": [[0.0], 0.0]}}, "array of numbers"),
    "state's type": ({"state": [1, 2]}, "expected a map"),
    "state's key": ({"state": STATE | {"speed": 1.0}}, "unknown keys speed"),
    "text in a state": ({"state": STATE | {"effector_translation": "0 0"}}, "expected numbers"),
    "field": ({"imgaes": make_image()}, "unknown fields imgaes"),
    "type": ({"type": "forget"}, "type: found 'forget'"),
}


@pytest.fixture(scope="module")
def robots() -> Iterator[Served]:
    with served(twin(table_policy()), max_message_bytes=50_000) as running:
        yield running


def request(connection: ClientConnection, content: bytes | str) -> Any:
    connection.send(content)
    reply = connection.recv(timeout=30)
    return json.loads(reply) if isinstance(reply, str) else wire.unpack(reply)


def test_invalid_observations_are_answered_with_an_error_and_change_nothing(robots: Served):
    images = [make_image(seed) for seed in range(6)]
    alone = twin(table_policy())
    expected = [alone.act([image], [TEXT], [0], [STATE])[0]["action"] for image in images]
    with Client(robots.url) as good, connect(robots.url, compression=None) as bad:
        bad.recv()
        found = []
        for image, mistakes in zip(images, np.array_split(list(BAD), len(images)), strict=True):
            for mistake in mistakes:
                change, message = BAD[mistake]
                reply = request(bad, wire.pack({**ACT, **change}))
                assert reply.get("error") == "bad_request", (mistake, reply)
                assert message in reply["message"], (mistake, reply)
            found.append(good.act(image, TEXT, STATE)["action"])
            if len(found) <= len(images):  # the connection continues with an unchanged history
                reply = request(bad, wire.pack({**ACT, "images": {"rgb": image}}))
                np.testing.assert_array_equal(reply["action"]["action"], found[-1])
    np.testing.assert_array_equal(found, expected)


def test_echoed_data_are_shortened_and_one_line_of_the_log(robots: Served, caplog: pytest.LogCaptureFixture):
    forged = "wrist\nrobot 7: connected\x1b[0m"
    changes = {"type": {"type": "x" * 40_000}, "camera": {"images": {forged: make_image()}},
               "nan": {"state": STATE | {"effector_translation": np.full(20_000, np.nan, np.float16)}}}
    with caplog.at_level(logging.INFO), connect(robots.url, compression=None) as connection:
        connection.recv()
        replies = {name: request(connection, wire.pack({**ACT, **change})) for name, change in changes.items()}
    assert all(reply["error"] == "bad_request" and len(reply["message"]) <= 1005 for reply in replies.values())
    assert "expected finite numbers" in replies["nan"]["message"]
    assert replies["camera"]["message"].count(r"wrist\nrobot 7: connected\x1b[0m") == 1
    assert all(text.isprintable() and len(text) < 1100 for text in caplog.messages if "bad_request" in text)


@pytest.mark.parametrize("content", ["{}", b"", b"\xc1", b"\x81\xa1x", msgpack.packb([1]), msgpack.packb({"type": [1]}),
                                     msgpack.packb({"images": {b"__ndarray__": True}})],
                         ids=["text", "nothing", "no msgpack", "cut off", "list", "type", "array"])
def test_malformed_messages_are_answered_and_the_connection_stays_open(robots: Served, content: bytes | str):
    with connect(robots.url, compression=None) as connection:
        connection.recv()
        assert request(connection, content)["error"] == "bad_request"
        assert request(connection, wire.pack(ACT))["type"] == "action"


def test_an_oversized_message_closes_only_its_connection_and_the_client_does_not_send_it(robots: Served):
    large = np.zeros((200, 200, 3), np.uint8)
    with Client(robots.url) as other, connect(robots.url, compression=None) as connection:
        connection.recv()
        connection.send(wire.pack({**ACT, "images": large}))
        with pytest.raises(ConnectionClosed, match="1009"):
            connection.recv(timeout=30)
        with pytest.raises(BadRequestError, match=r"120\d\d\d bytes, .* 50000; .* 16 pixels"):
            other.act(large, TEXT, STATE)
        other.act(make_image(), TEXT, STATE)
