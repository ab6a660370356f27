"""The websocket server: connections in, one policy behind them all.

    robot ==ws==> handler: metadata, then [message -> read_request -> prepare] -> Batcher -> limits -> reply
    GET /healthz: 503 until warmed up and while it ends, else 200       GET /metrics: figures as JSON

A connection is one history of the policy, which ends with it. Whatever a message holds, its sender alone is answered.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from agent_jax.client import wire
from agent_jax.client.connection import TOKEN_VARIABLE
from agent_jax.policy import Policy
from agent_jax.runtime.processor import cores
from agent_jax.serve.batching import Batcher, PolicyFailedError
from agent_jax.serve.figures import Figures
from agent_jax.serve.limits import ActionLimits, Rate, RefusedActionError
from agent_jax.serve.options import ServeOptions
from agent_jax.serve.requests import Observation, RefusedError, read_request

_log = logging.getLogger(__name__)


class Server:
    """Serves a policy until it is told to stop."""

    def __init__(self, policy: Policy, metadata: Mapping[str, Any], options: ServeOptions, limits: ActionLimits, *,
                 token: str = "") -> None:
        """Of a policy, which is this server's alone from now on.

        Args:
            policy: what acts.
            metadata: of `handshake.metadata`; limits are added.
            options: where and how much.
            limits: of its actions.
            token: that clients must send; "": none.
        """
        self.policy, self.options, self.limits = policy, options, limits
        self.port = 0  # what it listens on, once it does
        self.phase = "starting"  # "warming up", "ready", "draining"
        self.figures = Figures()
        self.robots: set[int] = set()  # connected
        self._token = token
        self._numbers = itertools.count(1)
        self._under_way = 0
        self._stopped = asyncio.Event()
        self._readers = ThreadPoolExecutor(min(4, cores()), "prepare")
        self._batcher = Batcher(policy, max_batch=options.max_batch, max_wait_s=options.max_wait_ms / 1e3,
                                connected=lambda: len(self.robots), on_batch=self.figures.batch)
        self._hello = wire.pack({**metadata, "max_message_bytes": options.max_message_bytes,
                                 "max_rate_hz": options.max_rate_hz, "action_limits": limits.to_json()})

    def stop(self) -> None:
        """Answer what is under way, then end; from the event loop's thread, as a signal's handler is."""
        self._stopped.set()

    async def run(self, told: Callable[[str], None] = lambda phase: None) -> None:
        """Listen, warm up, serve until `stop`, drain.

        Args:
            told: is called with each new `phase`, the first one once `port` is known.

        Raises:
            OSError: the port is taken.
        """
        options = self.options
        async with serve(self._handle, options.host, options.port, process_request=self._admit, compression=None,
                         max_size=options.max_message_bytes, max_queue=1, ping_interval=options.ping_s,
                         ping_timeout=options.ping_s, close_timeout=options.ping_s, origins=[None],  # of no web page
                         server_header=None) as listening:
            self.port = next(iter(listening.sockets)).getsockname()[1]
            self._enter("warming up", told)
            answering = asyncio.create_task(self._batcher.run())
            try:
                await self._batcher.call(self.policy.warm_up, tuple(range(1, options.max_batch + 1)))
                self._enter("ready", told)
                stopped = asyncio.create_task(self._stopped.wait())
                await asyncio.wait({stopped, answering}, return_when=asyncio.FIRST_COMPLETED)
                self._enter("draining", told)
                await self._drain()
                listening.close(code=CloseCode.GOING_AWAY, reason="the server shuts down")
                await listening.wait_closed()
            finally:
                answering.cancel()
                self._readers.shutdown(wait=False)
            (error,) = await asyncio.gather(answering, return_exceptions=True)
            if not isinstance(error, asyncio.CancelledError):  # ended by itself, which it never should
                raise RuntimeError("the batching loop ended") from error

    def _enter(self, phase: str, told: Callable[[str], None]) -> None:
        self.phase = phase
        told(phase)

    async def _drain(self) -> None:
        end = time.monotonic() + self.options.drain_s
        while self._under_way and time.monotonic() < end:
            await asyncio.sleep(0.01)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """The answer to a plain HTTP request, or to a robot that may not come in; None: it may."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            status = http.HTTPStatus.OK if self.phase == "ready" else http.HTTPStatus.SERVICE_UNAVAILABLE
            return connection.respond(status, f"{self.phase}\n")
        given = request.headers.get_all("Authorization")
        if not self._is_authorised(given):
            what = "the token is not this server's" if given else "no token was given"
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, f"{what}; expected that of its --token_file or its "
                                                                    f"{TOKEN_VARIABLE}\n")
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, json.dumps(self.metrics(), indent=2) + "\n")
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "application/json"
            return response
        if path != "/":
            return connection.respond(http.HTTPStatus.NOT_FOUND, "expected /, /healthz or /metrics\n")
        if self.phase != "ready":
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{self.phase}\n")
        if len(self.robots) >= self.options.max_connections:
            self.figures.errors["connections"] += 1
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, self._full() + "\n")
        return None

    def _is_authorised(self, headers: list[str]) -> bool:
        if not self._token:
            return True
        # "Bearer" is HTTP's word, "Api-Key" what openpi's client says.
        kind, _, given = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
        same = hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())
        return same and kind in ("Bearer", "Api-Key")

    def _full(self) -> str:
        return f"{self.options.max_connections} robots are connected, as many as may be (--max_connections)"

    def metrics(self) -> dict[str, Any]:
        """What /metrics says."""
        return {"phase": self.phase, "connected": len(self.robots), "under_way": self._under_way,
                **self.figures.summary()}

    async def _handle(self, connection: ServerConnection) -> None:
        """One robot, from its handshake to its end."""
        if len(self.robots) >= self.options.max_connections:  # several were admitted at once
            await connection.close(CloseCode.TRY_AGAIN_LATER, self._full())
            return
        number = next(self._numbers)
        self.robots.add(number)
        self.figures.counts["connections"] += 1
        _log.info("robot %d: connected from %s", number, connection.remote_address)
        try:
            await connection.send(self._hello)
            rate = Rate(self.options.max_rate_hz)
            async for content in connection:
                self._under_way += 1
                try:
                    await connection.send(await self._reply(content, number, rate))
                finally:
                    self._under_way -= 1
        except ConnectionClosed as error:  # vanished, or broke the protocol: a message too large, as
            self.figures.errors["connection_lost"] += 1
            _log.info("robot %d: lost: %s", number, error)
        finally:
            self.robots.discard(number)
            await self._batcher.call(self.policy.forget, [number])
            _log.info("robot %d: gone", number)

    async def _reply(self, content: str | bytes, number: int, rate: Rate) -> str | bytes:
        """The answer to one message: binary, or an error as text."""
        try:
            if wait := rate.take():
                raise RefusedError("rate", f"more than {self.options.max_rate_hz:g} messages a second (--max_rate_hz); "
                                           f"the next may come in {1e3 * wait:.0f} ms")
            if self.phase != "ready":
                raise RefusedError("draining", "the server shuts down")
            return wire.pack(await self._answered(content, number))
        except RefusedError as error:
            self.figures.errors[error.code] += 1
            _log.info("robot %d: %s: %s", number, error.code, error)
            return error.reply()

    async def _answered(self, content: str | bytes, number: int) -> dict[str, Any]:
        begun = time.perf_counter()
        loop = asyncio.get_running_loop()
        # Whatever a robot sends, it must not end this: what is raised is looked at.
        (prepared,) = await asyncio.gather(loop.run_in_executor(self._readers, self._prepared, content),
                                           return_exceptions=True)
        if isinstance(prepared, ValueError):
            raise RefusedError("bad_request", str(prepared))
        if isinstance(prepared, BaseException):
            _log.error("robot %d: a message could not be read", number, exc_info=prepared)
            raise RefusedError("internal", "the message could not be read; the server's log says why")
        if prepared is None:
            await self._batcher.call(self.policy.reset, [number])
            self.figures.counts["resets"] += 1
            return {"type": "reset"}
        prepare_s = time.perf_counter() - begun
        try:
            answer = await self._batcher.act(prepared, number)
            action, changed = self.limits.apply(answer.action)
        except PolicyFailedError:
            raise RefusedError("internal", "the policy failed, and the episode begins anew; the server's log says "
                                           "why") from None
        except RefusedActionError as error:
            _log.warning("robot %d: action refused: %s", number, error)
            raise RefusedError("action_refused", str(error)) from None
        if changed:
            self.figures.counts["clamped"] += 1
            _log.warning("robot %d: action clamped: %s", number, "; ".join(changed))
        timing = {"queue_ms": 1e3 * answer.queue_s, "prepare_ms": 1e3 * prepare_s, "policy_ms": 1e3 * answer.policy_s,
                  "total_ms": 1e3 * (time.perf_counter() - begun), "batch": answer.batch}
        self.figures.action(timing)
        return {"type": "action", "action": action, "server_timing": timing, "clamped": changed}

    def _prepared(self, content: str | bytes) -> Any:
        """The observation ready for the policy, or None for a reset; in a thread of its own."""
        request: Observation | None = read_request(content, self.policy.domain)
        return None if request is None else self.policy.prepare(request.images, request.instruction, request.state)
