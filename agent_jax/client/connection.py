"""The robot's end of a connection to `python -m agent_jax.serve`; needs NumPy, msgpack and websockets alone.

    with Client("ws://robot-server:8000", token=token) as client:
        client.reset()
        action = client.act(image, "push the red block left", {"effector_translation": position})

A connection is one episode at a time: the server's history of it begins at `reset` and ends with the connection.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from agent_jax.client import wire
from agent_jax.client.pictures import advice, as_array, is_image

# An image, or one a camera; arrays of NumPy, jax or torch, or RGB pictures of Pillow.
Images = np.ndarray | Mapping[str, np.ndarray] | Sequence[np.ndarray]

TOKEN_VARIABLE = "AGENT_JAX_TOKEN"  # of the environment, for both ends; a command line can be read by others

_RETRY_S = 0.2  # between attempts to connect
_UNAUTHORISED = 401
_NOT_YET = 503  # the server warms up, drains, or is full


class BadRequestError(ValueError):
    """The server refused an observation; what is wrong with it is the message. The connection goes on."""


class ServerError(RuntimeError):
    """The server answered with an error that is not the observation's; `code` says which."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Client:
    """A connection to a policy server, for one robot. Not for use by several threads at once."""

    def __init__(self, url: str, *, token: str = "", connect_timeout: float = 30.0, timeout: float = 30.0,
                 reconnect: Literal["reset", "always", "never"] = "reset") -> None:
        """Connect, and read the server's metadata.

        Args:
            url: ws://HOST:PORT, or wss:// through a proxy that has a certificate.
            token: what the server's --token_file holds; "": it asks for none.
            connect_timeout: seconds to go on trying while the server is not there yet, warms up or is full.
            timeout: seconds to wait for a reply.
            reconnect: after a connection is lost, whose history is lost with it: "reset" raises ConnectionError until
                the next `reset`, which connects anew; "always" connects anew at the next call and begins a new history
                (`histories` counts them); "never" raises.

        Raises:
            ValueError: the url is none.
            ConnectionError: no server within `connect_timeout`, or it refuses this client, as for its token.
        """
        if reconnect not in ("reset", "always", "never"):
            raise ValueError(f"reconnect={reconnect!r}: expected 'reset', 'always' or 'never'")
        self.url, self.timeout, self.connect_timeout = url, timeout, connect_timeout
        self.metadata: dict[str, Any] = {}
        self.timing: dict[str, float] = {}  # of the last action: the server's milliseconds, and round_trip_ms
        self.clamped: list[str] = []  # components of the last action that the server's limits changed
        self.histories = 0  # episodes begun at the server: connections and resets
        self._reconnect, self._token = reconnect, token
        self._open = contextlib.ExitStack()  # holds the connection, and closes it
        self._connection: ClientConnection | None = self._connected()

    def act(self, images: Images, instruction: str, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The next action, which the server takes to be executed.

        Args:
            images: uint8 (height, width, 3), what is seen now; with several cameras a mapping by
                `metadata["cameras"]`, or a sequence in that order.
            instruction: a text.
            state: values by the keys of `metadata["state_fields"]`, where it has some.

        Returns:
            Values by the keys of `metadata["action_fields"]`, in the environment's units.

        Raises:
            BadRequestError: a ValueError: the server refused the observation.
            ServerError: another error of the server: its `code` says which.
            TimeoutError: no reply within `timeout`; the connection is closed, since the reply may come later.
            ConnectionError: the connection is lost, and with it the episode's history.
        """
        message = {"images": _pixels(images), "instruction": instruction,
                   "state": None if state is None else dict(state)}
        begun = time.perf_counter()
        reply = self._asked(message, anew=self._reconnect == "always")
        self.timing = {**reply["server_timing"], "round_trip_ms": 1e3 * (time.perf_counter() - begun)}
        self.clamped = reply["clamped"]
        return reply["action"]

    def reset(self) -> None:
        """Begin an episode: the server forgets what this connection saw.

        Raises:
            ServerError, TimeoutError, ConnectionError: see `act`.
        """
        if self._connection is None and self._reconnect != "never":
            self._connection = self._connected()
            return
        try:
            self._asked({"type": "reset"}, anew=False)
        except ConnectionError:
            if self._reconnect == "never":
                raise
            self._connection = self._connected()
            return
        self.histories += 1

    def close(self) -> None:
        """End the connection; the server forgets its history."""
        self._connection = None
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _asked(self, message: dict[str, Any], *, anew: bool) -> dict[str, Any]:
        """The reply to a message."""
        content = wire.pack(message)
        most = self.metadata["max_message_bytes"]
        if len(content) > most:  # the server would end the connection
            raise BadRequestError(f"the observation has {len(content)} bytes, expected at most {most}; resize the "
                                  f"images to {self.metadata['image_size']} pixels, or raise --max_message_bytes")
        if self._connection is None:
            if not anew:
                raise ConnectionError(f"{self.url}: the connection is lost and with it the history of the episode; "
                                      "call reset() to connect anew")
            self._connection = self._connected()
        try:
            return self._exchanged(self._connection, content)
        except ConnectionError:
            if not anew:
                raise
        self._connection = self._connected()
        return self._exchanged(self._connection, content)

    def _exchanged(self, connection: ClientConnection, content: bytes) -> dict[str, Any]:
        try:
            connection.send(content)
            reply = connection.recv(timeout=self.timeout)
        except TimeoutError:
            self.close()
            raise TimeoutError(f"{self.url}: no reply within {self.timeout} s") from None
        except ConnectionClosed as error:
            self.close()
            raise ConnectionError(f"{self.url}: the connection was closed: {error}") from None
        return _read(reply)

    def _connected(self) -> ClientConnection:
        """A new connection whose metadata is read."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
        end, said = time.monotonic() + self.connect_timeout, ""
        while True:
            left = max(end - time.monotonic(), 0.1)
            try:
                # Pictures do not compress, and replies are small.
                connection = self._open.enter_context(connect(
                    self.url, additional_headers=headers, open_timeout=left, compression=None, max_size=None,
                    proxy=None))
                break
            except InvalidURI as error:
                raise ValueError(f"url={self.url!r}: {error}; expected ws://HOST:PORT") from None
            except InvalidStatus as error:
                said = f"{error.response.status_code} {_text(error.response.body)}"
                if error.response.status_code == _UNAUTHORISED:
                    raise ConnectionError(f"{self.url}: refused: {said}. Pass it as Client(token=...), or to the demo "
                                          f"by --token_file or {TOKEN_VARIABLE}") from None
                if error.response.status_code != _NOT_YET:
                    raise ConnectionError(f"{self.url}: refused: {said}") from None
            except (OSError, InvalidHandshake) as error:
                said = str(error)
            if time.monotonic() + _RETRY_S > end:
                raise ConnectionError(f"{self.url}: no server within {self.connect_timeout} s ({said})")
            time.sleep(_RETRY_S)
        try:
            self.metadata = _read(connection.recv(timeout=self.timeout))
        except (ConnectionClosed, TimeoutError, ServerError) as error:
            self.close()
            raise ConnectionError(f"{self.url}: the server ended the connection: {error}") from None
        if self.metadata.get("protocol") != wire.PROTOCOL:
            self.close()
            raise ConnectionError(f"{self.url}: speaks protocol {self.metadata.get('protocol')}, expected "
                                  f"{wire.PROTOCOL}: client and server are of different versions")
        self.histories += 1
        return connection


def _pixels(images: Images) -> Any:
    """The images as arrays.

    Raises:
        BadRequestError: they are of a kind that cannot be sent.
    """
    try:
        if isinstance(images, Mapping):
            return {name: as_array(image) for name, image in images.items()}
        if is_image(images):
            return as_array(images)
        if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
            return [as_array(image) for image in images]
    except ValueError as error:
        raise BadRequestError(f"images: {error}") from error
    raise BadRequestError(f"images: found a {type(images).__name__}, expected uint8[height, width, 3], a mapping of "
                          f"them by camera, or a sequence{advice(images)}")


def _text(body: bytes | bytearray | None) -> str:
    return (body or b"").decode(errors="replace").strip()


def _read(reply: str | bytes) -> dict[str, Any]:
    """A reply; an error comes as text."""
    if isinstance(reply, bytes):
        return wire.unpack(reply)
    found: Any = {}
    with contextlib.suppress(ValueError):
        found = json.loads(reply)
    if not isinstance(found, dict) or "error" not in found:
        raise ServerError("unknown", reply)
    if found["error"] == "bad_request":
        raise BadRequestError(found["message"])
    raise ServerError(found["error"], found["message"])
