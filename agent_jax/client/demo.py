"""Robots that see noise: how long a server takes to answer, measured from the robots' side.

Each robot is a connection in a thread of its own, and asks as fast as it is answered, or at a rate.
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
    """Observations that a server's metadata allows: noise images, states drawn within the bounds."""

    def __init__(self, metadata: Mapping[str, Any], seed: int) -> None:
        self._metadata, self._random = metadata, np.random.default_rng(seed)

    def images(self) -> dict[str, np.ndarray]:
        """A uint8 (size, size, 3) image a camera."""
        size = self._metadata["image_size"] or 224  # 0: the policy takes any
        return {camera: self._random.integers(0, 256, (size, size, 3), dtype=np.uint8)
                for camera in self._metadata["cameras"]}

    def state(self) -> dict[str, np.ndarray] | None:
        """Values of the StateSpec; None where there is none."""
        fields = self._metadata["state_fields"]
        return {key: self._values(field) for key, field in fields.items()} or None

    def _values(self, field: Mapping[str, Any]) -> np.ndarray:
        drawn = self._random.uniform(field["low"], field["high"])
        for component, choices in field["choices"].items():
            drawn[int(component)] = self._random.choice(choices)
        return drawn.reshape(field["shape"]).astype(field["dtype"])


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of a number of robots together."""

    clients: int
    milliseconds: dict[str, np.ndarray]  # by name, one an action: round_trip_ms, and the server's own
    seconds: float  # from the first request of any to the last answer

    @property
    def rate_hz(self) -> float:
        """Actions a second of all robots together."""
        return len(self.milliseconds["round_trip_ms"]) / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Quantiles and rates."""
        quantiles = {name: {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 90, 99)}
                     for name, values in self.milliseconds.items()}
        return {"clients": self.clients, "actions": len(self.milliseconds["round_trip_ms"]),
                "rate_hz": round(self.rate_hz, 2), **quantiles}


def measure(url: str, steps: int, clients: int = 1, *, token: str = "", rate_hz: float = 0.0,
            instruction: str = "go", warm_up: int = 3) -> Measured:
    """Let some robots ask for actions at the same time.

    Args:
        url: of the server.
        steps: actions of each robot that are counted.
        clients: robots.
        token: the server's.
        rate_hz: of each robot; 0: as fast as it is answered.
        instruction: what they are told.
        warm_up: actions before the counted ones, while the others still connect; the same episode, so that a window
            may be full when counting begins.

    Raises:
        ValueError: no steps or no robots.
        ConnectionError, TimeoutError, ServerError: of `Client`, for the first robot it happens to.
    """
    if steps < 1 or clients < 1 or rate_hz < 0:
        raise ValueError(f"steps={steps}, clients={clients}, rate_hz={rate_hz}: expected at least one step of one "
                         "client, and a rate of 0 or more")
    timings: list[list[dict[str, float]]] = [[] for _ in range(clients)]
    ends, errors = [0.0] * clients, []
    begin = threading.Barrier(clients + 1)

    def robot(number: int) -> None:
        try:
            with Client(url, token=token) as client:
                seen = RandomObservations(client.metadata, number)
                for _ in range(warm_up):
                    client.act(seen.images(), instruction, seen.state())
                begin.wait()
                due = time.perf_counter()
                for _ in range(steps):
                    images, state = seen.images(), seen.state()
                    due = max(due + 1 / rate_hz, time.perf_counter()) if rate_hz else 0.0
                    time.sleep(max(due - time.perf_counter(), 0.0))
                    client.act(images, instruction, state)
                    timings[number].append(client.timing)
                ends[number] = time.perf_counter()
        except (OSError, RuntimeError, ValueError) as error:
            errors.append(error)
            begin.abort()

    threads = [threading.Thread(target=robot, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        begin.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    rows = [timing for robots in timings for timing in robots]
    names = [name for name in rows[0] if name.endswith("_ms")]
    return Measured(clients, {name: np.array([row[name] for row in rows]) for name in names}, max(ends) - begun)


def format_table(measured: Sequence[Measured]) -> str:
    """A line for each number of robots and each time, in milliseconds."""
    lines = [f"{'clients':>7}  {'milliseconds':<12}  {'p50':>8}  {'p90':>8}  {'p99':>8}  {'actions/s':>9}"]
    for one in measured:
        names = ["round_trip_ms", *(name for name in one.milliseconds if name != "round_trip_ms")]
        for name in names:
            p50, p90, p99 = np.percentile(one.milliseconds[name], (50, 90, 99))
            head, tail = (f"{one.clients:>7}", f"{one.rate_hz:>9.1f}") if name == names[0] else (" " * 7, "")
            label = name.removesuffix("_ms").replace("_", " ")
            lines.append(f"{head}  {label:<12}  {p50:>8.2f}  {p90:>8.2f}  {p99:>8.2f}  {tail}".rstrip())
    return "\n".join(lines)
