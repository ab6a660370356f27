"""Measure a server's latency with clients that send random observations.

Each client has its own thread and connection. It sends requests without a pause or at a given rate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.client.connection import Client


class RandomObservations:
    """Random observations that fit a server's metadata: noise images, and states within the bounds."""

    def __init__(self, metadata: Mapping[str, Any], seed: int) -> None:
        self._metadata, self._random = metadata, np.random.default_rng(seed)

    def images(self) -> dict[str, np.ndarray]:
        """A uint8 (size, size, 3) image for each camera."""
        size = self._metadata["image_size"] or 224  # 0: any size
        return {camera: self._random.integers(0, 256, (size, size, 3), dtype=np.uint8)
                for camera in self._metadata["cameras"]}

    def state(self) -> dict[str, np.ndarray] | None:
        """Values of the StateSpec; None if there is none."""
        fields = self._metadata["state_fields"]
        return {key: self._values(field) for key, field in fields.items()} or None

    def _values(self, field: Mapping[str, Any]) -> np.ndarray:
        drawn = self._random.uniform(field["low"], field["high"])
        for component, choices in field["choices"].items():
            drawn[int(component)] = self._random.choice(choices)
        return drawn.reshape(field["shape"]).astype(field["dtype"])


@dataclasses.dataclass(frozen=True)
class LatencyReport:
    """Latencies of several clients."""

    clients: int
    milliseconds: dict[str, np.ndarray]  # one a reply, by name: round_trip_ms, and the server's timings
    seconds: float  # from the first request to the last reply
    actions_per_reply: int = 1

    @property
    def rate_hz(self) -> float:
        """Actions a second of all clients together."""
        return self.actions / self.seconds

    @property
    def actions(self) -> int:
        """Actions of all replies."""
        return len(self.milliseconds["round_trip_ms"]) * self.actions_per_reply

    def to_json(self) -> dict[str, Any]:
        """Quantiles and rates."""
        quantiles = {name: {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 90, 99)}
                     for name, values in self.milliseconds.items()}
        return {"clients": self.clients, "actions": self.actions,
                "rate_hz": round(self.rate_hz, 2), **quantiles}


def measure(url: str, steps: int, clients: int = 1, *, token: str = "", rate_hz: float = 0.0,
            instruction: str = "go", warm_up: int = 3) -> LatencyReport:
    """Request actions from several clients at the same time.

    Args:
        url: of the server.
        steps: measured replies to each client.
        clients: number of clients.
        token: of the server.
        rate_hz: of each client; 0: without a pause.
        instruction: of every request.
        warm_up: replies before the measured ones, in the same episode, so that the policy's window can be full.

    Raises:
        ValueError: no steps or no clients.
        ConnectionError, TimeoutError, ServerError: the first error of a client.
    """
    if steps < 1 or clients < 1 or rate_hz < 0:
        raise ValueError(f"steps={steps}, clients={clients}, rate_hz={rate_hz}: expected at least 1 step, at "
                         "least 1 client, and a rate of 0 or more")
    timings: list[list[dict[str, float]]] = [[] for _ in range(clients)]
    ends, errors, actions_per_reply = [0.0] * clients, [], [1] * clients
    begin = threading.Barrier(clients + 1)

    def run_client(number: int) -> None:
        try:
            with Client(url, token=token) as client:
                observations = RandomObservations(client.metadata, number)
                actions_per_reply[number] = client.metadata.get("replan_every", 1)
                for _ in range(warm_up):
                    client.act(observations.images(), instruction, observations.state())
                begin.wait()
                due = time.perf_counter()
                for _ in range(steps):
                    images, state = observations.images(), observations.state()
                    due = max(due + 1 / rate_hz, time.perf_counter()) if rate_hz else 0.0
                    time.sleep(max(due - time.perf_counter(), 0.0))
                    client.act(images, instruction, state)
                    timings[number].append(client.timing)
                ends[number] = time.perf_counter()
        except (OSError, RuntimeError, ValueError) as error:
            errors.append(error)
            begin.abort()

    threads = [threading.Thread(target=run_client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        begin.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    rows = [timing for client in timings for timing in client]
    names = [name for name in rows[0] if name.endswith("_ms")]
    return LatencyReport(clients, {name: np.array([row[name] for row in rows]) for name in names}, max(ends) - begun,
                         actions_per_reply[0])


def format_table(reports: Sequence[LatencyReport]) -> str:
    """A line for each number of clients and each timing, in milliseconds."""
    lines = [f"{'clients':>7}  {'milliseconds':<12}  {'p50':>8}  {'p90':>8}  {'p99':>8}  {'actions/s':>9}"]
    for one in reports:
        names = ["round_trip_ms", *(name for name in one.milliseconds if name != "round_trip_ms")]
        for name in names:
            p50, p90, p99 = np.percentile(one.milliseconds[name], (50, 90, 99))
            head, tail = (f"{one.clients:>7}", f"{one.rate_hz:>9.1f}") if name == names[0] else (" " * 7, "")
            label = name.removesuffix("_ms").replace("_", " ")
            lines.append(f"{head}  {label:<12}  {p50:>8.2f}  {p90:>8.2f}  {p99:>8.2f}  {tail}".rstrip())
    return "\n".join(lines)
