"""Servers for tests: a tiny model with random parameters, on a free port of this machine, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from data_stores import babyai_domain, language_table_domain
from packed_rows import random_params

from agent_jax.config import Config, LanguageConfig, MaeConfig, ModelConfig, VisionConfig
from agent_jax.data.pipeline.domains import Domain
from agent_jax.policy import Policy
from agent_jax.serve.handshake import metadata
from agent_jax.serve.limits import ActionLimits
from agent_jax.serve.options import ServeOptions
from agent_jax.serve.server import Server


def tiny_policy(domain: Domain) -> Policy:
    """A greedy policy with random parameters."""
    config = Config(model=ModelConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, mlp_width=32),
        language=LanguageConfig(width=16, depth=1, heads=2, mlp_width=32, positions=512,
                                vocabulary_size=domain.vocabulary.size),
        mae=MaeConfig(width=16, depth=1, heads=2, mlp_width=32)))
    return Policy(config, random_params(config.model), domain)


@functools.cache
def table_policy() -> Policy:
    """The policy of a domain with a state and real actions, compiled once; a `twin` has its own histories."""
    return tiny_policy(language_table_domain(window=2))


@functools.cache
def babyai_policy() -> Policy:
    """The policy of a domain without a state, compiled once."""
    return tiny_policy(babyai_domain(max_text=32, window=2))


def twin(policy: Policy) -> Policy:
    """The same policy with histories of its own."""
    return policy.with_temperature(0.0)


def make_image(seed: int = 0) -> np.ndarray:
    """A uint8 (16, 16, 3) image of noise."""
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


class Served:
    """A server that runs in another thread."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server, self.loop = server, loop
        self.url = f"ws://127.0.0.1:{server.port}"
        self.http = f"http://127.0.0.1:{server.port}"

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended, and closed its loop
            self.loop.call_soon_threadsafe(self.server.stop)


@contextlib.contextmanager
def served(policy: Any, *, token: str = "", limits: ActionLimits | None = None, phase: str = "ready",
           **options: Any) -> Iterator[Served]:
    """A server that has reached a phase; at the end of the block it must end without an error."""
    options.setdefault("max_batch", 2)  # every batch size is compiled
    if policy.domain.spec:
        limits = limits or ActionLimits(policy.domain.spec.spec)
    entered: queue.Queue[Served | BaseException] = queue.Queue()

    async def run() -> None:
        server = Server(policy, metadata(policy.domain, 7, checkpoint="tiny", temperature=0.0,
                                          domains=policy.domains),
                        ServeOptions(port=0, **options), limits, token=token)
        loop = asyncio.get_running_loop()
        await server.run(lambda now: entered.put(Served(server, loop)) if now == phase else None)

    def body() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            entered.put(error)

    thread = threading.Thread(target=body)
    thread.start()
    found = entered.get(timeout=300)
    if isinstance(found, BaseException):
        raise found
    try:
        yield found
    finally:
        found.stop()
        thread.join(timeout=60)
        assert not thread.is_alive()
        with contextlib.suppress(queue.Empty):
            last = entered.get_nowait()
            if isinstance(last, BaseException):
                raise last


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until a condition is true; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.01)
