"""Ctrl-C ends a command at once and without a traceback: what there is to keep is on disk, or has its own handler."""

from __future__ import annotations

import signal


def end_at_once() -> None:
    """Leave Ctrl-C to the system, which needs no interpreter: a handler of Python's would wait for a compilation.

    Where it is ignored, as in a background job of a script, it stays so.
    """
    if not ignored():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def ignored() -> bool:
    """Whether whoever started this process wants it to pass over Ctrl-C."""
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN
