"""Batches contain all waiting requests and wait no longer than the limit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from agent_jax.serve.batching import Batcher, PolicyFailedError


class Counting:
    """Returns the robot's number as its action; stores its batches; waits while the gate is closed."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.resets: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()

    def step(self, prepared: Sequence[Any], env_ids: Sequence[Any]) -> list[dict[str, Any]]:
        self.batches.append(list(env_ids))
        assert self.gate.wait(30)
        if "fail" in prepared:
            raise ValueError("broken")
        return [{"action": env_id} for env_id in env_ids]

    def reset(self, env_ids: Sequence[Any]) -> None:
        self.resets += env_ids


def run(policy: Counting, body: Callable[[Batcher], Awaitable[None]], *, max_batch: int = 8, max_wait_s: float = 0.0,
        connected: int = 100) -> None:
    async def main() -> None:
        batcher = Batcher(policy, max_batch=max_batch, max_wait_s=max_wait_s, connected=lambda: connected,
                          on_batch=lambda size: None)
        task = asyncio.create_task(batcher.run())
        try:
            async with asyncio.timeout(30):
                await body(batcher)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def ask(batcher: Batcher, *robots: Any, prepared: Any = None) -> Any:
    return asyncio.gather(*(batcher.act(prepared, robot) for robot in robots))


def test_simultaneous_requests_are_one_batch_and_each_gets_its_own_action():
    policy = Counting()

    async def body(batcher: Batcher) -> None:
        answers = await ask(batcher, *range(5))
        assert [answer.action["action"] for answer in answers] == list(range(5))
        assert {answer.batch for answer in answers} == {5}

    run(policy, body, max_wait_s=20, connected=5)
    assert policy.batches == [[0, 1, 2, 3, 4]]


def test_no_batch_is_larger_than_the_limit():
    policy = Counting()

    async def body(batcher: Batcher) -> None:
        await ask(batcher, *range(7))

    run(policy, body, max_batch=3)
    assert [len(batch) for batch in policy.batches] == [3, 3, 1]


def test_a_single_robot_does_not_wait_and_one_of_two_waits_no_longer_than_the_limit():
    async def body(batcher: Batcher) -> None:
        await ask(batcher, 0)

    run(Counting(), body, max_wait_s=1000, connected=1)  # would time out
    run(Counting(), body, max_wait_s=0.05, connected=2)


def test_requests_during_a_computation_are_the_next_batch():
    policy = Counting()

    async def body(batcher: Batcher) -> None:
        policy.gate.clear()
        first = asyncio.ensure_future(ask(batcher, 0))
        while not policy.batches:
            await asyncio.sleep(0.001)
        others = asyncio.ensure_future(ask(batcher, 1, 2, 3))
        await asyncio.sleep(0.01)
        policy.gate.set()
        await asyncio.gather(first, others)

    run(policy, body)
    assert policy.batches == [[0], [1, 2, 3]]


def test_a_cancelled_request_is_not_computed():
    policy = Counting()

    async def body(batcher: Batcher) -> None:
        policy.gate.clear()
        first = asyncio.ensure_future(ask(batcher, 0))
        while not policy.batches:
            await asyncio.sleep(0.001)
        second = asyncio.ensure_future(batcher.act(None, 1))
        await asyncio.sleep(0.01)
        second.cancel()
        third = asyncio.ensure_future(ask(batcher, 2))
        await asyncio.sleep(0.01)
        policy.gate.set()
        await asyncio.gather(first, third)

    run(policy, body)
    assert policy.batches == [[0], [2]]


def test_if_one_request_of_a_batch_fails_the_others_are_answered_and_it_is_reset():
    policy = Counting()

    async def body(batcher: Batcher) -> None:
        good, bad = await asyncio.gather(ask(batcher, 0, 1), ask(batcher, 2, prepared="fail"), return_exceptions=True)
        assert [answer.action["action"] for answer in good] == [0, 1]
        assert isinstance(bad, PolicyFailedError)
        assert (await ask(batcher, 3))[0].action == {"action": 3}

    run(policy, body, max_wait_s=0.2)
    assert policy.batches == [[0, 1, 2], [0], [1], [2], [3]]
    assert policy.resets == [2]


def test_calls_run_between_batches_in_the_policys_thread():
    policy = Counting()

    async def body(batcher: Batcher) -> None:
        names = [await batcher.call(lambda: threading.current_thread().name) for _ in range(2)]
        assert names == ["policy_0"] * 2
        with pytest.raises(ZeroDivisionError):
            await batcher.call(lambda: 1 / 0)

    run(policy, body)
