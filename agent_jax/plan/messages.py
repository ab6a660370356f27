"""Captures what C++ libraries such as XLA write to stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator


@dataclasses.dataclass
class Captured:
    """The captured text, filled in when the block ends."""

    text: str = ""


@contextlib.contextmanager
def captured_stderr() -> Iterator[Captured]:
    """Capture what any library writes to file descriptor 2 inside the block."""
    captured = Captured()
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield captured
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            captured.text = file.read().decode(errors="replace")
