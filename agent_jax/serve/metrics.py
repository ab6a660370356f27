"""Counts and timings of the server, for /metrics."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

LAST = 10_000  # replies in the quantiles: minutes of a busy server, and 320 kB


class ServerMetrics:
    """Counts since the start, and quantiles of the last `LAST` replies. Used only in the event loop."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()  # by code
        self._batches: deque[int] = deque(maxlen=LAST)
        self._milliseconds: dict[str, deque[float]] = {}
        self._begun = time.monotonic()

    def action(self, timing: Mapping[str, float], actions: int = 1) -> None:
        """Count a reply's actions, and its timing in milliseconds."""
        self.counts["actions"] += actions
        for name, value in timing.items():
            if name.endswith("_ms"):
                self._milliseconds.setdefault(name, deque(maxlen=LAST)).append(value)

    def batch(self, size: int) -> None:
        """Count a call of the policy with `size` requests."""
        self.counts["batches"] += 1
        self._batches.append(size)

    def summary(self) -> dict[str, Any]:
        """All metrics as JSON."""
        sizes = list(self._batches)
        return {
            "uptime_s": round(time.monotonic() - self._begun, 1),
            **{name: self.counts[name] for name in ("connections", "actions", "texts", "resets", "batches", "clamped")},
            "errors": dict(self.errors),
            "mean_batch": round(float(np.mean(sizes)), 2) if sizes else 0.0,
            "latency": {name: _quantiles(values) for name, values in self._milliseconds.items()},
        }


def _quantiles(values: deque[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(list(values), (50, 90, 99))
    return {"p50": round(p50, 3), "p90": round(p90, 3), "p99": round(p99, 3)}
