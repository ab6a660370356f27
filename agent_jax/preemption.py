"""SIGTERM as a request to stop between two steps: the scheduler's way of saying that the machine is wanted back.

One process: a handler here. Several: jax's own, set by `jax.distributed` (a handler of ours would replace it), which
tells all processes and finds a step that none of them has passed, so that they stop at the same one.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self

from jax.experimental import multihost_utils

from agent_jax.distributed import connected


class StopRequest:
    """A context in which the first SIGTERM asks to stop.

    In a run of one process a second one ends the process, as it would have before; in one of several it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if not connected():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if not connected():
            signal.signal(signal.SIGTERM, self._before)

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
        del number, frame
        self.requested = True
        signal.signal(signal.SIGTERM, self._before)
