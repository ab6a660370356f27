"""The client of `python -m agent_jax.serve`; needs only NumPy, msgpack and websockets.

    with Client("ws://robot-server:8000", token=token) as client:
        client.reset()
        action = client.act(image, "push the red block left", {"effector_translation": position})

A connection has one episode at a time: the server's history begins at `reset` and ends with the connection.
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

# One image, or one for each camera; arrays of NumPy, jax or torch, or RGB images of Pillow.
Images = np.ndarray | Mapping[str, np.ndarray] | Sequence[np.ndarray]

TOKEN_VARIABLE = "AGENT_JAX_TOKEN"  # environment variable of both ends; other users can see a command line

_RETRY_S = 0.2  # between attempts to connect
_UNAUTHORISED = 401
_UNAVAILABLE = 503  # the server warms up, drains, or is full


class BadRequestError(ValueError):
    """The server refused an observation; the message says why. The connection stays open."""


class ServerError(RuntimeError):
    """An error of the server that the observation did not cause; `code` is its kind."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Client:
    """A connection to a policy server for one robot. Not thread-safe."""

    def __init__(self, url: str, *, token: str = "", connect_timeout: float = 30.0, timeout: float = 30.0,
                 reconnect: Literal["reset", "always", "never"] = "reset") -> None:
        """Connect, and read the server's metadata.

        Args:
            url: ws://HOST:PORT, or wss:// through a proxy with a certificate.
            token: the content of the server's --token_file; "": none.
            connect_timeout: seconds to retry while the server does not exist, warms up or is full.
            timeout: seconds to wait for a reply.
            reconnect: after a lost connection, whose history is lost too: "reset" raises ConnectionError until the
                next `reset`, which reconnects; "always" reconnects at the next call and begins a new history
                (`histories` counts them); "never" raises.

        Raises:
            ValueError: an invalid url.
            ConnectionError: no server within `connect_timeout`, or it refuses this client, e.g. because of its token.
        """
        if reconnect not in ("reset", "always", "never"):
            raise ValueError(f"reconnect={reconnect!r}: expected 'reset', 'always' or 'never'")
        self.url, self.timeout, self.connect_timeout = url, timeout, connect_timeout
        self.metadata: dict[str, Any] = {}
        self.timing: dict[str, float] = {}  # of the last reply: the server's milliseconds, and round_trip_ms
        self.clamped: list[str] = []  # components of the last action changed by the server's limits
        self.surprise: list[float] = []  # of the last observation, one for each camera; [] if it was not asked for
        self.histories = 0  # episodes begun at the server: connections and resets
        self._reconnect, self._token = reconnect, token
        self._open = contextlib.ExitStack()  # closes the connection
        self._connection: ClientConnection | None = self._connect()

    def act(self, images: Images, instruction: str, state: Mapping[str, Any] | None = None, *,
            surprise: bool = False) -> Any:
        """The next action, or the list of the next actions; the server assumes that they are executed.

        Args:
            images: the current image, uint8 (height, width, 3); with several cameras a mapping by
                `metadata["cameras"]`, or a sequence in that order.
            instruction: a text.
            state: values by the keys of `metadata["state_fields"]`, if there are any.
            surprise: also measure how badly the model reconstructs the images (`self.surprise`); needs a server with
                `metadata["surprise_masks"]` above 0.

        Returns:
            Values by the keys of `metadata["action_fields"]`, in the environment's units. If the policy has several
            actions per image (`metadata["actions_per_image"]`): a list of `metadata["replan_every"]` of these, in
            order; it ends with the action that ends the episode.

        Raises:
            BadRequestError: (a ValueError) the server refused the observation.
            ServerError: another error of the server.
            TimeoutError: no reply within `timeout`; the connection is closed, since the reply may come later.
            ConnectionError: the connection and the episode's history are lost.
        """
        message = {"images": _pixels(images), "instruction": instruction,
                   "state": None if state is None else dict(state), **({"surprise": True} if surprise else {})}
        begun = time.perf_counter()
        reply = self._request(message, reconnect=self._reconnect == "always")
        self.timing = {**reply["server_timing"], "round_trip_ms": 1e3 * (time.perf_counter() - begun)}
        self.clamped, self.surprise = reply["clamped"], reply.get("surprise", [])
        return reply["action"]

    def say(self, images: Images | Sequence[Images], prompt: str, *, domain: str = "", max_tokens: int = 0,
            temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> dict[str, Any]:
        """A text about an image or a clip; the episode does not change.

        Args:
            images: one image uint8 (height, width, 3), or a sequence or array of several, in order of time; with
                several cameras a mapping or sequence of them in place of each.
            prompt: a question, or what precedes a caption.
            domain: one of `metadata["text_domains"]`; may be empty if there is one.
            max_tokens: of the text; 0: the domain's `max_answer`.
            temperature: 0: the most probable tokens; otherwise of sampling.
            top_p: sample among the fewest most probable tokens that together have this probability.
            seed: of sampling.

        Returns:
            "text", "ids", "log_probability", and "complete": whether it ended by itself.

        Raises:
            BadRequestError, ServerError, TimeoutError, ConnectionError: see `act`.
        """
        message = {"type": "say", "images": _clip_pixels(images), "prompt": prompt, "domain": domain,
                   "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        begun = time.perf_counter()
        reply = self._request(message, reconnect=self._reconnect == "always")
        self.timing = {**reply["server_timing"], "round_trip_ms": 1e3 * (time.perf_counter() - begun)}
        return {name: reply[name] for name in ("text", "ids", "log_probability", "complete")}

    def reset(self) -> None:
        """Begin an episode: the server drops this connection's history.

        Raises:
            ServerError, TimeoutError, ConnectionError: see `act`.
        """
        if self._connection is None and self._reconnect != "never":
            self._connection = self._connect()
            return
        try:
            self._request({"type": "reset"}, reconnect=False)
        except ConnectionError:
            if self._reconnect == "never":
                raise
            self._connection = self._connect()
            return
        self.histories += 1

    def close(self) -> None:
        """Close the connection; the server drops its history."""
        self._connection = None
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _request(self, message: dict[str, Any], *, reconnect: bool) -> dict[str, Any]:
        """Send a message; returns the reply."""
        content = wire.pack(message)
        limit = self.metadata["max_message_bytes"]
        if len(content) > limit:  # the server would close the connection
            raise BadRequestError(f"the observation has {len(content)} bytes, expected at most {limit}; resize the "
                                  f"images to {self.metadata['image_size']} pixels, or raise --max_message_bytes")
        if self._connection is None:
            if not reconnect:
                raise ConnectionError(f"{self.url}: the connection is lost and with it the history of the episode; "
                                      "call reset() to reconnect")
            self._connection = self._connect()
        try:
            return self._exchange(self._connection, content)
        except ConnectionError:
            if not reconnect:
                raise
        self._connection = self._connect()
        return self._exchange(self._connection, content)

    def _exchange(self, connection: ClientConnection, content: bytes) -> dict[str, Any]:
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

    def _connect(self) -> ClientConnection:
        """Open a connection and read the metadata."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
        end, reason = time.monotonic() + self.connect_timeout, ""
        while True:
            left = max(end - time.monotonic(), 0.1)
            try:
                # No compression: images hardly compress, and replies are small.
                connection = self._open.enter_context(connect(
                    self.url, additional_headers=headers, open_timeout=left, compression=None, max_size=None,
                    proxy=None))
                break
            except InvalidURI as error:
                raise ValueError(f"url={self.url!r}: {error}; expected ws://HOST:PORT") from None
            except InvalidStatus as error:
                text = (error.response.body or b"").decode(errors="replace").strip()
                reason = f"{error.response.status_code} {text}"
                if error.response.status_code == _UNAUTHORISED:
                    raise ConnectionError(f"{self.url}: refused: {reason}. Pass the token as Client(token=...), or "
                                          f"to the demo by --token_file or {TOKEN_VARIABLE}") from None
                if error.response.status_code != _UNAVAILABLE:
                    raise ConnectionError(f"{self.url}: refused: {reason}") from None
            except (OSError, InvalidHandshake) as error:
                reason = str(error)
            if time.monotonic() + _RETRY_S > end:
                raise ConnectionError(f"{self.url}: no server within {self.connect_timeout} s ({reason})")
            time.sleep(_RETRY_S)
        try:
            self.metadata = _read(connection.recv(timeout=self.timeout))
        except (ConnectionClosed, TimeoutError, ServerError) as error:
            self.close()
            raise ConnectionError(f"{self.url}: the server closed the connection: {error}") from None
        if self.metadata.get("protocol") != wire.PROTOCOL:
            self.close()
            raise ConnectionError(f"{self.url}: found protocol {self.metadata.get('protocol')}, expected "
                                  f"{wire.PROTOCOL}; install the same version for client and server")
        self.histories += 1
        return connection


def _pixels(images: Images) -> Any:
    """The images as arrays.

    Raises:
        BadRequestError: an unsupported kind.
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


def _clip_pixels(images: Any) -> Any:
    """One image or several, as arrays; errors as `_pixels`."""
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)) and not is_image(images):
        return [_pixels(image) for image in images]
    return _pixels(images)


def _read(reply: str | bytes) -> dict[str, Any]:
    """Decode a reply, or raise the error that a text message contains."""
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
