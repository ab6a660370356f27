"""Batch the requests of many connections into calls of the policy.

    connections --act()--> queue --(max_batch, or max_wait after the first)--> policy.step, in one thread

While the policy computes, requests collect in the queue; the next batch takes them. A batch that has a request from
every connected robot does not wait, so a single robot never waits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

_log = logging.getLogger(__name__)


class BatchedPolicy(Protocol):
    """The policy's interface; always called from the same thread."""

    def step(self, prepared: Sequence[Any], env_ids: Sequence[Any]) -> Sequence[Any]:
        """The next action of each episode, or the list of its next actions."""
        ...

    def reset(self, env_ids: Sequence[Any]) -> None:
        """Begin new episodes."""
        ...


class PolicyFailedError(Exception):
    """The policy raised an exception, which is in the log and is not sent to the client."""


@dataclasses.dataclass(frozen=True)
class ServedAction:
    """An action and its timing."""

    action: Any  # or a list of them
    queue_s: float
    policy_s: float
    batch: int  # requests in the same call


@dataclasses.dataclass(frozen=True, eq=False)
class _Request:
    prepared: Any
    env_id: Any
    answer: asyncio.Future[ServedAction]
    received: float  # time.perf_counter()


class Batcher:
    """Calls a policy for many connections. Everything except the policy runs in the event loop."""

    def __init__(self, policy: BatchedPolicy, *, max_batch: int, max_wait_s: float, connected: Callable[[], int],
                 on_batch: Callable[[int], None]) -> None:
        """Create the policy's thread.

        Args:
            policy: the policy; no other code may call it from now on.
            max_batch: requests in a batch.
            max_wait_s: seconds that the first request of a batch waits for others.
            connected: returns the number of connected robots.
            on_batch: called with the size of each batch.
        """
        self._policy, self._max_batch, self._max_wait_s = policy, max_batch, max_wait_s
        self._connected, self._on_batch = connected, on_batch
        self._queue: asyncio.Queue[_Request] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "policy")

    async def act(self, prepared: Any, env_id: Any) -> ServedAction:
        """The next action of one robot, which must have no other pending request.

        Raises:
            PolicyFailedError: the policy raised an exception; this robot's episode begins again.
        """
        answer = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Request(prepared, env_id, answer, time.perf_counter()))
        return await answer

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function` in the policy's thread between two batches; returns its result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def run(self) -> None:
        """Answer until cancelled."""
        try:
            while True:
                requests = await self._next_batch()
                if requests:
                    self._on_batch(len(requests))
                    await self._answer(requests)
        finally:
            self._thread.shutdown(wait=False)

    async def _next_batch(self) -> list[_Request]:
        """The requests of the next batch, without cancelled ones."""
        requests = [await self._queue.get()]
        end = requests[0].received + self._max_wait_s
        while len(requests) < self._max_batch:
            if self._queue.empty():
                left = end - time.perf_counter()
                if left <= 0 or len(requests) >= self._connected():
                    break
                try:
                    async with asyncio.timeout(left):
                        requests.append(await self._queue.get())
                except TimeoutError:
                    break
            else:
                requests.append(self._queue.get_nowait())
        return [request for request in requests if not request.answer.done()]

    async def _answer(self, requests: list[_Request]) -> None:
        begun = time.perf_counter()
        prepared, env_ids = [request.prepared for request in requests], [request.env_id for request in requests]
        # An exception must not end the loop: it concerns only the robots of this batch.
        (found,) = await asyncio.gather(self.call(self._policy.step, prepared, env_ids), return_exceptions=True)
        if isinstance(found, BaseException):
            await self._failed(requests, found)
            return
        policy_s = time.perf_counter() - begun
        for request, action in zip(requests, found, strict=True):
            if not request.answer.done():
                request.answer.set_result(ServedAction(action, begun - request.received, policy_s, len(requests)))

    async def _failed(self, requests: list[_Request], error: BaseException) -> None:
        """Run each request of the batch again alone, so that only the one that failed gets an error."""
        _log.error("the policy failed on a batch of %d", len(requests), exc_info=error)
        if len(requests) > 1:
            for request in requests:
                await self._answer([request])
            return
        await asyncio.gather(self.call(self._policy.reset, [requests[0].env_id]), return_exceptions=True)
        if not requests[0].answer.done():
            requests[0].answer.set_exception(PolicyFailedError())
