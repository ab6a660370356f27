"""Robots that ask at about the same time are answered by one call of the policy.

    connections --act()--> queue --(max_batch, or max_wait after the first)--> policy.step, in one thread

While the policy computes, requests gather; the next batch takes what is there. A batch is not waited for when every
connected robot is in it already, so a robot that is alone never waits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from agent_jax.policy.policy import Prepared

_log = logging.getLogger(__name__)


class Acting(Protocol):
    """What is asked of a policy; one thread calls it."""

    def step(self, prepared: Sequence[Prepared], env_ids: Sequence[Any]) -> Sequence[dict[str, Any]]:
        """The next action of each."""
        ...

    def reset(self, env_ids: Sequence[Any]) -> None:
        """Begin new episodes."""
        ...


class PolicyFailedError(Exception):
    """The policy raised; its reason is in the log, not on the wire."""


@dataclasses.dataclass(frozen=True)
class ServedAction:
    """An action, and what it took."""

    action: dict[str, Any]
    queue_s: float
    policy_s: float
    batch: int  # robots answered with it


@dataclasses.dataclass(frozen=True, eq=False)
class _Request:
    prepared: Prepared
    env_id: Any
    answer: asyncio.Future[ServedAction]
    asked: float


class Batcher:
    """Calls a policy for many connections. Everything but the policy happens in the event loop."""

    def __init__(self, policy: Acting, *, max_batch: int, max_wait_s: float, connected: Callable[[], int],
                 on_batch: Callable[[int], None]) -> None:
        """Of a policy.

        Args:
            policy: what acts; from now on, only through this.
            max_batch: robots of a batch.
            max_wait_s: seconds that the first request of a batch waits for others.
            connected: how many robots there are.
            on_batch: is told the size of each batch.
        """
        self._policy, self._max_batch, self._max_wait_s = policy, max_batch, max_wait_s
        self._connected, self._on_batch = connected, on_batch
        self._queue: asyncio.Queue[_Request] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "policy")

    async def act(self, prepared: Prepared, env_id: Any) -> ServedAction:
        """The next action of one robot, which has no other request under way.

        Raises:
            PolicyFailedError: the policy raised; the episode of this robot begins anew.
        """
        answer = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Request(prepared, env_id, answer, time.perf_counter()))
        return await answer

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns, called in the policy's thread between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def run(self) -> None:
        """Answer until cancelled."""
        try:
            while True:
                requests = await self._gathered()
                if requests:
                    self._on_batch(len(requests))
                    await self._answer(requests)
        finally:
            self._thread.shutdown(wait=False)

    async def _gathered(self) -> list[_Request]:
        """The requests of the next batch; those given up meanwhile are left out."""
        requests = [await self._queue.get()]
        end = requests[0].asked + self._max_wait_s
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
        # Whatever it raises is one robot's affair, so it is looked at rather than raised.
        (found,) = await asyncio.gather(self.call(self._policy.step, prepared, env_ids), return_exceptions=True)
        if isinstance(found, BaseException):
            await self._failed(requests, found)
            return
        policy_s = time.perf_counter() - begun
        for request, action in zip(requests, found, strict=True):
            if not request.answer.done():
                request.answer.set_result(ServedAction(action, begun - request.asked, policy_s, len(requests)))

    async def _failed(self, requests: list[_Request], error: BaseException) -> None:
        """Who caused it is told; the others of the batch are asked for again, alone."""
        _log.error("the policy failed on a batch of %d", len(requests), exc_info=error)
        if len(requests) > 1:
            for request in requests:
                await self._answer([request])
            return
        await asyncio.gather(self.call(self._policy.reset, [requests[0].env_id]), return_exceptions=True)
        if not requests[0].answer.done():
            requests[0].answer.set_exception(PolicyFailedError())
