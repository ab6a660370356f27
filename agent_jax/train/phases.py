"""Where a run's wall time goes: phases that do not overlap and add up to the whole.

    process starts --import--> main --demonstrations--> --start--> --data wait, step, data wait, step, ...--> end
                                                           '-- compile, saving and evaluation interrupt them --'

A phase within another interrupts it, so no second is counted twice. What JAX spends on tracing and compiling is told by
JAX itself, whichever phase it happens in.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

# Tracing, lowering, and compiling or reading from the compilation cache. One may happen within another.
_COMPILE_EVENTS = frozenset(f"/jax/core/compile/{name}_duration"
                            for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile"))
IMPORT, DEMONSTRATIONS, START, COMPILE = "import", "demonstrations", "start", "compile"
DATA_WAIT, STEP, SAVING, EVALUATION, OTHER = "data wait", "step", "saving", "evaluation", "other"
_ORDER = (IMPORT, DEMONSTRATIONS, START, COMPILE, DATA_WAIT, STEP, SAVING, EVALUATION, OTHER)


class Phases:
    """Wall seconds by phase of the run, from the start of the process on."""

    def __init__(self) -> None:
        now = time.perf_counter()
        self.seconds: dict[str, float] = {IMPORT: time.time() - _process_start()}
        self._begun = now - self.seconds[IMPORT]
        self._taken: list[float] = []  # seconds counted elsewhere, of each phase under way, the innermost last
        self._first_step: float | None = None
        self._compiled: list[tuple[float, float]] = []  # beginnings and ends; none within another

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add what passes inside to a phase, less the phases within it."""
        begun = time.perf_counter()
        self._taken.append(0.0)
        try:
            yield
        finally:
            passed = time.perf_counter() - begun
            self._count(name, passed - self._taken.pop())
            self._take(passed)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that have just passed to a phase, in place of the one under way."""
        self._count(name, seconds)
        self._take(seconds)

    def count_compiling(self) -> None:
        """From now on, what this thread traces and compiles is a phase of its own."""
        thread = threading.get_ident()

        def listen(event: str, duration_secs: float, **_: str | int) -> None:
            if event in _COMPILE_EVENTS and threading.get_ident() == thread:
                self._add_compiled(time.perf_counter(), duration_secs)

        jax.monitoring.register_event_duration_secs_listener(listen)

    def first_step_ended(self) -> None:
        """Note that the first optimizer step is done; only the first call counts."""
        if self._first_step is None:
            self._first_step = self.total() - self.seconds.get(DEMONSTRATIONS, 0.0)

    def total(self) -> float:
        """Seconds since the process started."""
        return time.perf_counter() - self._begun

    def to_json(self) -> dict[str, Any]:
        """Figures of the report.

        Returns:
            "seconds": by phase, "other" being what was in none of them; they add up to the time since the process
            started. "seconds_to_first_step": from then to the end of the first optimizer step, less gathering
            demonstrations; None before it. "data_wait_share": of data wait and step together.
        """
        seconds = {**self.seconds, OTHER: max(0.0, self.total() - sum(self.seconds.values()))}
        seconds = {name: seconds[name] for name in dict.fromkeys((*_ORDER, *seconds)) if name in seconds}
        wait, step = seconds.get(DATA_WAIT, 0.0), seconds.get(STEP, 0.0)
        return {
            "seconds": {name: round(spent, 2) for name, spent in seconds.items()},
            "seconds_to_first_step": None if self._first_step is None else round(self._first_step, 2),
            "data_wait_share": round(wait / max(wait + step, 1e-9), 4),
        }

    def __str__(self) -> str:
        """One line for a person."""
        figures = self.to_json()
        parts = [f"{name} {seconds:.1f} s" for name, seconds in figures["seconds"].items()]
        first = figures["seconds_to_first_step"]
        started = "" if first is None else f"; the first step ended after {first:.1f} s"
        if started and DEMONSTRATIONS in self.seconds:
            started += ", demonstrations not counted"
        return (f"{', '.join(parts)}; {self.total():.1f} s in all{started}; data wait {figures['data_wait_share']:.1%} "
                "of waiting and stepping")

    def _add_compiled(self, now: float, seconds: float) -> None:
        begun = now - seconds
        while self._compiled and self._compiled[-1][0] >= begun:  # those within this one have been counted
            inner_begun, inner_end = self._compiled.pop()
            seconds -= inner_end - inner_begun
        self._compiled.append((begun, now))
        self.add(COMPILE, max(0.0, seconds))

    def _count(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def _take(self, seconds: float) -> None:
        if self._taken:
            self._taken[-1] += seconds


def _process_start() -> float:
    """Seconds since the epoch at which this process began; now, where the system does not say."""
    try:
        ticks = float(Path("/proc/self/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19])
        uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.time()
