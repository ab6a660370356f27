"""TensorBoard's event file, written record by record from the thread that logs.

    <length u64> <its CRC> <Event> <its CRC>      a record: TFRecord's framing

tensorboardX's own writer hands events to a thread through a queue of ten. Where a disk is full that thread dies, the
queue fills up, and the next event waits forever.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from agent_jax.train.appended_file import AppendedFile


class TensorBoardEvents:
    """One event file in a directory; what cannot be written is lost, see `AppendedFile`."""

    def __init__(self, directory: Path, first_step: int):
        """Open a new file.

        Args:
            directory: made if it is missing.
            first_step: events of this step and later ones in older files of the directory are void.

        Raises:
            OSError: it cannot be made.
        """
        with _hidden("torch", "google.cloud.storage"):  # tensorboardX imports them where it can: 1.7 s for nothing
            from tensorboardX import record_writer, summary
            from tensorboardX.proto import event_pb2, summary_pb2

        events: Any = event_pb2  # its classes are made at import
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        self._crc, self._scalar = record_writer.masked_crc32c, summary.scalar
        directory.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._file = AppendedFile(directory / f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}")
        started = events.SessionLog(status=events.SessionLog.START)
        self._head = (self._record(self._event(wall_time=now, file_version="brain.Event:2"))
                      + self._record(self._event(wall_time=now, step=first_step, session_log=started)))
        self._append(b"")

    def write(self, scalars: Mapping[str, float], step: int, seconds: float) -> None:
        """Append scalars by tag, of a step, at a time in seconds since the epoch."""
        values = [value for tag, number in scalars.items() for value in self._scalar(tag, number).value]
        self._append(self._record(self._event(wall_time=seconds, step=step, summary=self._summary(value=values))))

    def flush(self) -> None:
        """Does nothing: no event is held back."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, record: bytes) -> None:
        self._file.append(record if self._file.size else self._head + record)  # the head may have been lost before

    def _record(self, event: Any) -> bytes:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        return length + struct.pack("<I", self._crc(length)) + data + struct.pack("<I", self._crc(data))


@contextlib.contextmanager
def _hidden(*modules: str) -> Iterator[None]:
    """Modules that are not imported yet cannot be in here."""
    imported = cast("dict[str, Any]", sys.modules)
    absent = [name for name in modules if name not in imported]
    imported.update(dict.fromkeys(absent))  # of None: to import it fails as if there were no such package
    try:
        yield
    finally:
        for name in absent:
            del imported[name]
