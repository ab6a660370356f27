"""A log file that grows by whole records: where one cannot be written, as on a full disk, that record is lost alone."""

from __future__ import annotations

import os
from pathlib import Path

from absl import logging


class AppendedFile:
    """Appends to a file; `append` never raises an OSError and never leaves half a record."""

    def __init__(self, path: str | Path):
        """Open the file, made if it is missing.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self.size = os.fstat(self._file).st_size
        self._torn = False  # behind `size` lies a part of a record
        self._lost = 0

    def append(self, record: bytes) -> bool:
        """Whether the record is in the file now. Of several that are lost the first is logged, and the end of that."""
        try:
            if self._torn:
                self._cut()
            self._torn = True
            written = 0
            while written < len(record):
                written += os.write(self._file, record[written:])
            self._torn = False
        except OSError as error:
            self._give_up(error)
            return False
        self.size += len(record)
        if self._lost:
            logging.warning("%s can be written to again; %d record(s) were lost", self._path, self._lost)
            self._lost = 0
        return True

    def close(self) -> None:
        """Close the file; what a file system reports only then is logged."""
        try:
            os.close(self._file)
        except OSError as error:
            logging.warning("%s: %s", self._path, error)

    def _give_up(self, error: OSError) -> None:
        self._lost += 1
        if self._lost == 1:
            logging.warning("%s cannot be written to (%s): records are lost until it can; the run goes on", self._path,
                            error.strerror or error)
        try:
            self._cut()
        except OSError as again:
            logging.debug("%s: %s", self._path, again)  # the next append tries first

    def _cut(self) -> None:
        os.ftruncate(self._file, self.size)
        self._torn = False
