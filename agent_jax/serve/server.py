"""The websocket server: one policy for many connections.

    robot ==ws==> handler: metadata, then [message -> read_request -> prepare] -> Batcher -> limits -> reply
                                           prompt  -> Policy.say, between two batches -> reply
    GET /healthz: 200 when ready, 503 before and while it ends      GET /metrics: counts and timings as JSON

Each connection has its own history of the policy. An error is sent only to the robot whose message caused it.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import http
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from agent_jax.client import wire
from agent_jax.client.connection import TOKEN_VARIABLE
from agent_jax.runtime.processor import cores
from agent_jax.serve.batching import Batcher, PolicyFailedError
from agent_jax.serve.limits import ActionLimits, RateLimiter, RefusedActionError
from agent_jax.serve.metrics import ServerMetrics
from agent_jax.serve.options import ServeOptions
from agent_jax.serve.requests import ReceivedObservation, ReceivedPrompt, RefusedError, read_request

if TYPE_CHECKING:
    from agent_jax.convert.onnx.folder_policy import FolderPolicy
    from agent_jax.policy import Policy
    from agent_jax.policy.observation import Prepared

_log = logging.getLogger(__name__)


class Server:
    """Serves a policy until `stop`."""

    def __init__(self, policy: Policy | FolderPolicy, metadata: Mapping[str, Any], options: ServeOptions,
                 limits: ActionLimits | None, *, token: str = "") -> None:
        """Create a server; `run` starts it.

        Args:
            policy: the policy; no other code may call it from now on.
            metadata: of `handshake.metadata`; limits are added.
            options: address and limits.
            limits: of the actions; None: the policy's domain has none, and the server only says.
            token: the clients' secret; "": none.
        """
        self.policy, self.options, self.limits = policy, options, limits
        self.port = 0  # set in `run`
        self.phase = "starting"  # then "warming up", "ready", "draining"
        self.metrics = ServerMetrics()
        self.robots: set[int] = set()  # numbers of the connected ones
        self._token = token
        self._numbers = itertools.count(1)
        self._pending = 0  # requests
        self._stopped = asyncio.Event()
        self._readers = ThreadPoolExecutor(min(4, cores()), "prepare")
        self._batcher = Batcher(policy, max_batch=options.max_batch, max_wait_s=options.max_wait_ms / 1e3,
                                connected=lambda: len(self.robots), on_batch=self.metrics.batch)
        self._metadata = wire.pack({
            **metadata, "surprise_masks": options.surprise, "max_message_bytes": options.max_message_bytes,
            "max_rate_hz": options.max_rate_hz, "action_limits": limits.to_json() if limits else {}})

    def stop(self) -> None:
        """Answer the pending requests, then end; call it in the event loop's thread, e.g. in a signal handler."""
        self._stopped.set()

    async def run(self, on_phase: Callable[[str], None] = lambda phase: None) -> None:
        """Listen, warm up, serve until `stop`, drain.

        Args:
            on_phase: called with each new `phase`; `port` is set before the first call.

        Raises:
            OSError: the port is in use.
        """
        options = self.options
        async with serve(self._handle, options.host, options.port, process_request=self._admit, compression=None,
                         max_size=options.max_message_bytes, max_queue=1, ping_interval=options.ping_s,
                         ping_timeout=options.ping_s, close_timeout=options.ping_s, origins=[None],  # refuse web pages
                         server_header=None) as listening:
            self.port = next(iter(listening.sockets)).getsockname()[1]
            self._enter("warming up", on_phase)
            answering = asyncio.create_task(self._batcher.run())
            try:
                await self._batcher.call(self._warm_up)
                self._enter("ready", on_phase)
                stopped = asyncio.create_task(self._stopped.wait())
                await asyncio.wait({stopped, answering}, return_when=asyncio.FIRST_COMPLETED)
                self._enter("draining", on_phase)
                await self._drain()
                listening.close(code=CloseCode.GOING_AWAY, reason="the server shuts down")
                await listening.wait_closed()
            finally:
                answering.cancel()
                self._readers.shutdown(wait=False)
            (error,) = await asyncio.gather(answering, return_exceptions=True)
            if not isinstance(error, asyncio.CancelledError):  # it ended without being cancelled
                raise RuntimeError("the batching loop ended") from error

    def _warm_up(self) -> None:
        if self.policy.domain.spec:
            self.policy.warm_up(tuple(range(1, self.options.max_batch + 1)))
            if self.options.surprise:
                size = self.policy.domain.image_size
                black = np.zeros((size, size, 3), np.uint8)
                self.policy.surprise_of([[black for _ in self.policy.domain.cameras]], masks=self.options.surprise)
        for domain in self.policy.domains.values():
            if domain.layout == "answer":
                black = np.zeros((domain.image_size, domain.image_size, 3), np.uint8)
                self.policy.say([dict.fromkeys(domain.camera_names, black)], [""], domain=domain.name, max_tokens=1)

    def _enter(self, phase: str, on_phase: Callable[[str], None]) -> None:
        self.phase = phase
        on_phase(phase)

    async def _drain(self) -> None:
        end = time.monotonic() + self.options.drain_s
        while self._pending and time.monotonic() < end:
            await asyncio.sleep(0.01)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """The response to a plain HTTP request or a refused connection; None accepts the connection."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            status = http.HTTPStatus.OK if self.phase == "ready" else http.HTTPStatus.SERVICE_UNAVAILABLE
            return connection.respond(status, f"{self.phase}\n")
        headers = request.headers.get_all("Authorization")
        if not self._is_authorised(headers):
            found = "found another token" if headers else "found no token"
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, f"{found}, expected that of the server's "
                                                                    f"--token_file or {TOKEN_VARIABLE}\n")
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, json.dumps(self.metrics_json(), indent=2) + "\n")
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "application/json"
            return response
        if path != "/":
            return connection.respond(http.HTTPStatus.NOT_FOUND, "expected /, /healthz or /metrics\n")
        if self.phase != "ready":
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{self.phase}\n")
        if len(self.robots) >= self.options.max_connections:
            self.metrics.errors["connections"] += 1
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, self._full() + "\n")
        return None

    def _is_authorised(self, headers: list[str]) -> bool:
        if not self._token:
            return True
        # "Bearer" is the standard scheme, "Api-Key" that of openpi's client.
        scheme, _, token = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
        equal = hmac.compare_digest(token.encode("utf-8", "replace"), self._token.encode())
        return equal and scheme in ("Bearer", "Api-Key")

    def _full(self) -> str:
        return f"{self.options.max_connections} robots are connected, the maximum (--max_connections)"

    def metrics_json(self) -> dict[str, Any]:
        """The content of /metrics."""
        return {"phase": self.phase, "connected": len(self.robots), "under_way": self._pending,
                **self.metrics.summary()}

    async def _handle(self, connection: ServerConnection) -> None:
        """Serve one connection from its handshake to its end."""
        if len(self.robots) >= self.options.max_connections:  # several were admitted at once
            await connection.close(CloseCode.TRY_AGAIN_LATER, self._full())
            return
        number = next(self._numbers)
        self.robots.add(number)
        self.metrics.counts["connections"] += 1
        _log.info("robot %d: connected from %s", number, connection.remote_address)
        try:
            await connection.send(self._metadata)
            limiter = RateLimiter(self.options.max_rate_hz)
            async for content in connection:
                self._pending += 1
                try:
                    await connection.send(await self._reply(content, number, limiter))
                finally:
                    self._pending -= 1
        except ConnectionClosed as error:  # lost, or a violation of the protocol such as a message that is too large
            self.metrics.errors["connection_lost"] += 1
            _log.info("robot %d: lost: %s", number, error)
        finally:
            self.robots.discard(number)
            await self._batcher.call(self.policy.forget, [number])
            _log.info("robot %d: disconnected", number)

    async def _reply(self, content: str | bytes, number: int, limiter: RateLimiter) -> str | bytes:
        """The reply to one message: binary, or an error as text."""
        try:
            if wait := limiter.take():
                raise RefusedError("rate", f"more than {self.options.max_rate_hz:g} messages a second (--max_rate_hz); "
                                           f"send the next in {1e3 * wait:.0f} ms")
            if self.phase != "ready":
                raise RefusedError("draining", "the server shuts down")
            return wire.pack(await self._response(content, number))
        except RefusedError as error:
            self.metrics.errors[error.code] += 1
            _log.info("robot %d: %s: %s", number, error.code, error)
            return error.reply()

    async def _response(self, content: str | bytes, number: int) -> dict[str, Any]:
        begun = time.perf_counter()
        loop = asyncio.get_running_loop()
        # An exception must not end the connection: it becomes an error reply.
        (prepared,) = await asyncio.gather(loop.run_in_executor(self._readers, self._prepared, content),
                                           return_exceptions=True)
        if isinstance(prepared, ValueError):
            raise RefusedError("bad_request", str(prepared))
        if isinstance(prepared, BaseException):
            _log.error("robot %d: a message could not be read", number, exc_info=prepared)
            raise RefusedError("internal", "the message could not be read; see the server's log")
        if prepared is None:
            await self._batcher.call(self.policy.reset, [number])
            self.metrics.counts["resets"] += 1
            return {"type": "reset"}
        prepare_s = time.perf_counter() - begun
        if isinstance(prepared, ReceivedPrompt):
            return await self._say(prepared, prepare_s)
        assert self.limits is not None  # a policy without actions prepares nothing
        prepared, surprised = prepared
        try:
            answer = await self._batcher.act(prepared, number)
            several = isinstance(answer.action, list)
            action, changed = (self.limits.apply_all if several else self.limits.apply)(answer.action)
        except PolicyFailedError:
            raise RefusedError("internal", "the policy failed and the episode begins again; see the server's log"
                               ) from None
        except RefusedActionError as error:
            _log.warning("robot %d: action refused: %s", number, error)
            raise RefusedError("action_refused", str(error)) from None
        if changed:
            self.metrics.counts["clamped"] += 1
            _log.warning("robot %d: action clamped: %s", number, "; ".join(changed))
        more = await self._surprise(prepared) if surprised else {}
        timing = {"queue_ms": 1e3 * answer.queue_s, "prepare_ms": 1e3 * prepare_s, "policy_ms": 1e3 * answer.policy_s,
                  "total_ms": 1e3 * (time.perf_counter() - begun), "batch": answer.batch}
        self.metrics.action(timing, len(action) if several else 1)
        return {"type": "action", "action": action, "server_timing": timing, "clamped": changed, **more}

    async def _surprise(self, prepared: Prepared) -> dict[str, Any]:
        """What a reply has besides the action: {"surprise": an error for each camera}, between two batches."""
        masks = self.options.surprise
        measure = functools.partial(self.policy.surprise_of, [prepared.frames], masks=masks)
        (found,) = await asyncio.gather(self._batcher.call(measure), return_exceptions=True)
        if isinstance(found, BaseException):
            _log.error("the surprise of an observation failed", exc_info=found)
            raise RefusedError("internal", "the surprise failed, and the action is lost; see the server's log")
        return {"surprise": found[0].tolist()}

    async def _say(self, request: ReceivedPrompt, prepare_s: float) -> dict[str, Any]:
        """The reply to a prompt; the policy generates one text at a time."""
        begun = time.perf_counter()

        def say() -> tuple[Any, float]:
            started = time.perf_counter()
            (text,) = self.policy.say([request.images], [request.prompt], **request.options)
            return text, started

        (found,) = await asyncio.gather(self._batcher.call(say), return_exceptions=True)
        if isinstance(found, ValueError):
            raise RefusedError("bad_request", str(found))
        if isinstance(found, BaseException):
            _log.error("the policy failed on a prompt", exc_info=found)
            raise RefusedError("internal", "the policy failed; see the server's log")
        text, started = found
        ended = time.perf_counter()
        self.metrics.counts["texts"] += 1
        timing = {"queue_ms": 1e3 * (started - begun), "prepare_ms": 1e3 * prepare_s,
                  "policy_ms": 1e3 * (ended - started), "total_ms": 1e3 * (ended - begun + prepare_s)}
        return {"type": "text", "text": text.text, "ids": text.ids.tolist(), "log_probability": text.log_probability,
                "complete": text.complete, "server_timing": timing}

    def _prepared(self, content: str | bytes) -> Any:
        """(observation prepared for the policy, whether its surprise is wanted), a prompt, or None for a reset.

        Runs in a separate thread.
        """
        request = read_request(content, self.policy.domain)
        if isinstance(request, ReceivedObservation):
            if request.surprise and not self.options.surprise:
                raise ValueError("surprise: this server measures none; start it with --surprise MASKS")
            return self.policy.prepare(request.images, request.instruction, request.state), request.surprise
        return request
