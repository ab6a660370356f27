"""SIGTERM and Ctrl-C as a request to stop between two steps: the scheduler's way, and a person's.

    before the loop, after it    the signal ends the process at once, as by default: all there is to lose is saved
    in the loop                  the first one asks to stop: the step under way is finished and saved; a second one ends
                                 the process at once

One process: handlers here. Several: jax's own of SIGTERM, set by `jax.distributed` (a handler of ours would replace
it), which tells all processes and finds a step that none of them has passed, so that they stop at the same one. Ctrl-C
is handed to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any, Self

from jax.experimental import multihost_utils

from agent_jax.runtime.distributed import connected
from agent_jax.runtime.interrupts import end_at_once, ignored

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


def end_by_interrupts() -> None:
    """From now on Ctrl-C ends the process at once without a traceback, or asks to stop where there are several."""
    if connected() and not ignored():
        signal.signal(signal.SIGINT, _hand_on)
    else:
        end_at_once()


class StopRequest:
    """A context in which the first SIGTERM or Ctrl-C asks to stop.

    In a run of one process a second one ends the process, as it would have before. In one of several, a second SIGTERM
    does nothing and a second Ctrl-C ends the process.
    """

    def __init__(self) -> None:
        self.requested = False
        self.by = "SIGTERM"  # which of the two it was
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if not connected():
            wanted = [number for number in _NAMES if number != signal.SIGINT or not ignored()]
            self._before = {number: signal.signal(number, self._note) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def before_step(self, step: int) -> bool:
        """Whether to stop instead of taking another step; the same answer on all processes.

        Args:
            step: updates done. All processes ask before each step, beginning with the same one.
        """
        # It says so at one step only, and the run may have to take that one first. No assignment of False: a signal
        # that came since the old value was read would be forgotten.
        if not self.requested and connected() and multihost_utils.reached_preemption_sync_point(step):
            self.requested = True
        return self.requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested, self.by = True, _NAMES[signal.Signals(number)]
        signal.signal(signal.SIGTERM, self._before[signal.SIGTERM])
        end_at_once()
        _say(f"{self.by}: stopping after the step under way, which is saved; once more ends at once\n")


def _hand_on(number: int, frame: FrameType | None) -> None:
    """Ctrl-C in one of several processes."""
    del number, frame
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _say("Ctrl-C: all processes stop after the step under way, which is saved; once more ends this one at once\n")
    os.kill(os.getpid(), signal.SIGTERM)


def _say(line: str) -> None:
    """Write from a handler, which may have interrupted another write."""
    with contextlib.suppress(OSError):  # a closed pipe is no reason not to stop
        erase = "\r\x1b[K" if os.isatty(2) else ""  # what a bar has written on the terminal's line
        os.write(2, f"{erase}agent_jax: {line}".encode())
