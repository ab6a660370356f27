"""A thread that ends a process of several when another one has died or stands still: one message, no hang.

    every process, each second    a heartbeat: that it lives, how far it is, whether it waits for others
    process 0                     looks at all heartbeats, and gives a verdict where one is missing or stands still
    every process                 looks for a verdict, prints it and ends

A verdict is also how a process that must end by an error of its own takes the others with it. Whoever is first says it;
so all print the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

KEYS = "agent_jax"
INTERRUPTED = 75  # EX_TEMPFAIL: nothing to mend in the command; start it again on all hosts
_INTERVAL_S = 1.0
_LINGER_S = 10.0  # how long process 0, whose end would take the verdict with it, waits for the others to read it
_AGAIN = "Start the same command on all hosts again: it goes on from the last checkpoint"


class Watchdog:
    """Watches over the processes of a run, from a thread of each."""

    def __init__(self, client: Any, index: int, hosts: Sequence[str], *, heartbeat_timeout: float,
                 stall_timeout: float) -> None:
        """Of one process.

        Args:
            client: jax's client of the coordination service.
            index: of this process.
            hosts: names of all processes' hosts, for messages.
            heartbeat_timeout: seconds of silence after which a process counts as dead.
            stall_timeout: seconds without progress, of a process that does not wait, after which the run is given up.
        """
        self._client, self._index, self._hosts = client, index, hosts
        self._heartbeat_timeout, self._stall_timeout = heartbeat_timeout, stall_timeout
        self._beats = self._passed = self._waits = 0
        self._clock = 0.0  # seconds that the thread has watched
        self._place = "the start"
        self._stopped, self._ending = threading.Event(), threading.Lock()
        # Of each process, by its number: the last heartbeat, when it changed by that clock, when its progress changed.
        self._heard: dict[int, tuple[dict[str, Any], float, float]] = {}
        # When the service is gone, jaxlib aborts each process within milliseconds, which no time-out of it puts off. A
        # handler of Python's would never run: abort() returns to no interpreter.
        self._abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._heard = {process: ({}, 0.0, 0.0) for process in range(len(self._hosts))}
        ctypes.CDLL(None).signal(signal.SIGABRT.value, self._abort_handler)
        self._thread.start()

    def stop(self) -> None:
        """End the watch: the run is over."""
        self._stopped.set()
        self._thread.join(timeout=2 * self._heartbeat_timeout)

    def progress(self, place: str) -> None:
        """This process goes on, and is at `place` now."""
        self._place = place
        self._passed += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While inside, this process waits for others, and need not go on itself."""
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1
            self._passed += 1

    def tell(self, text: str, code: int) -> None:
        """Give a verdict about this process, which is about to end; returns once the others can know of it."""
        if not self._ending.acquire(blocking=False):
            self._stopped.wait(2 * _LINGER_S)  # the thread is ending the process by another one
        self._publish(f"{self._name(self._index)}: {text}", code)
        self._take_leave()

    def let_it_find_out(self) -> None:
        """Wait as long as it takes to tell that another process is dead, which ends this one."""
        self._stopped.wait(self._heartbeat_timeout + 5 * _INTERVAL_S)

    def _watch(self) -> None:
        looked = answered = time.monotonic()
        while not self._stopped.wait(_INTERVAL_S):
            # Time in which this thread could not look, on a machine that is overloaded or was suspended, says nothing
            # about the others.
            self._clock += min(time.monotonic() - looked, 3 * _INTERVAL_S)
            looked = time.monotonic()
            try:
                verdict = self._look()
                answered = time.monotonic()
            except jax.errors.JaxRuntimeError as error:
                silent = time.monotonic() - answered
                if silent < self._heartbeat_timeout or self._stopped.is_set():
                    continue
                reason = " ".join(str(error).split())[:200]
                verdict = {"text": f"{self._name(0)}, where the processes meet, has not answered for {silent:.0f} s: "
                                   f"it is dead, stuck or cut off ({reason}). {_AGAIN}", "code": INTERRUPTED}
            if verdict and self._ending.acquire(blocking=False):
                self._end(verdict)

    def _look(self) -> dict[str, Any] | None:
        """One heartbeat; the verdict, if there is one."""
        self._beats += 1
        beat = {"beat": self._beats, "passed": self._passed, "place": self._place, "waits": self._waits > 0}
        place = f"{KEYS}/others/{self._index}" if self._index else f"{KEYS}/first/0"
        self._client.key_value_set(place, json.dumps(beat), allow_overwrite=True)
        if found := self._read(f"{KEYS}/verdict"):
            return json.loads(found["text"])
        # Process 0 looks after all; the others look after process 0, so that the service has little to do.
        beats = self._read(f"{KEYS}/first") | (self._read(f"{KEYS}/others") if self._index == 0 else {})
        text = self._judged({int(process): json.loads(text) for process, text in beats.items()})
        return self._publish(text, INTERRUPTED) if text else None

    def _judged(self, beats: dict[int, dict[str, Any]]) -> str:
        """What is wrong, "" if nothing is."""
        now = self._clock
        for process, beat in beats.items():
            last, _, moved = self._heard[process]
            if beat != last:
                here = (beat["passed"], beat["waits"]) == (last.get("passed"), last.get("waits"))
                self._heard[process] = beat, now, moved if here else now
        for process in self._heard if self._index == 0 else [0]:
            silent = now - self._heard[process][1]
            if silent > self._heartbeat_timeout:
                return (f"{self._name(process)} has not been heard of for {silent:.0f} s: it is dead, stopped or cut "
                        f"off. {_AGAIN}")
        return self._stalled(now) if self._index == 0 else ""

    def _stalled(self, now: float) -> str:
        """Who holds up the run, "" if it goes on."""
        working = {process for process, (beat, _, _) in self._heard.items() if not beat.get("waits")}
        working = working or set(self._heard)  # all wait: for each other, for ever
        if any(now - self._heard[process][2] <= self._stall_timeout for process in working):
            return ""
        passed = {process: self._heard[process][0].get("passed", 0) for process in working}
        behind = min(working, key=passed.__getitem__)
        at = self._heard[behind][0].get("place", "the start")
        others = sorted({str(beat.get("place")) for beat, _, _ in self._heard.values()} - {at})
        where = f"others are at {', '.join(others)}" if others else "as all are"
        return (f"no progress for {self._stall_timeout:.0f} s: {self._name(behind)} is at {at}, {where}. {_AGAIN}; "
                "or raise --stall_timeout, if that takes so long")

    def _publish(self, text: str, code: int) -> dict[str, Any]:
        """Make this the verdict, if there is none yet; the verdict that holds."""
        verdict = {"text": text, "code": code}
        try:
            self._client.key_value_set(f"{KEYS}/verdict/text", json.dumps(verdict))
        except jax.errors.JaxRuntimeError:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                if found := self._read(f"{KEYS}/verdict"):
                    verdict = json.loads(found["text"])
        return verdict

    def _take_leave(self) -> None:
        """Say that this process has seen the verdict; process 0 waits until all that live have."""
        until = time.monotonic() + _LINGER_S
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{KEYS}/seen/{self._index}", "", allow_overwrite=True)
        if self._index:
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while time.monotonic() < until:
                living = {str(process) for process, (_, heard, _) in self._heard.items()
                          if process and self._clock - heard < self._heartbeat_timeout}
                if living <= self._read(f"{KEYS}/seen").keys():
                    break
                time.sleep(_INTERVAL_S / 5)
        time.sleep(_INTERVAL_S / 2)  # to end before this process does

    def _read(self, directory: str) -> dict[str, str]:
        """Values by the last part of their key."""
        return {key.rpartition("/")[2]: value for key, value in self._client.key_value_dir_get(directory)}

    def _end(self, verdict: dict[str, Any]) -> None:
        print(f"agent_jax: {verdict['text']}", file=sys.stderr, flush=True)
        self._take_leave()
        os._exit(verdict["code"])

    def _aborted(self, number: int) -> None:
        del number
        os.write(2, f"agent_jax: {self._name(self._index)} was ended by jaxlib, for the reason above; most often since "
                    f"{self._name(0)}, where the processes meet, has died. {_AGAIN}\n".encode())
        os._exit(INTERRUPTED)

    def _name(self, process: int) -> str:
        return f"process {process} of {len(self._hosts)} ({self._hosts[process]})"
