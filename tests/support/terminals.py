"""A pseudo-terminal in the place of standard output and error, and what a person would see on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
import threading
from collections.abc import Iterator

COLUMNS = 100


class Terminal:
    """What was written to a pseudo-terminal."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        self._bytes = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the last writer has closed it
            while chunk := os.read(self.master, 65536):
                self._bytes += chunk

    def close(self) -> None:
        os.close(self.slave)
        self._reader.join()
        os.close(self.master)

    @property
    def text(self) -> str:
        """Everything, in the order it was written."""
        return self._bytes.decode()

    @property
    def lines(self) -> list[str]:
        """The lines that remain to be seen."""
        rows, row, column, text = [""], 0, 0, self.text
        while text:
            if text.startswith("\x1b[A"):
                row, text = row - 1, text[3:]
            elif text.startswith("\x1b[K"):
                rows[row], text = rows[row][:column], text[3:]
            else:
                character, text = text[0], text[1:]
                if character == "\r":
                    column = 0
                elif character == "\n":
                    row += 1
                    rows += [""] * (row == len(rows))
                else:
                    rows[row] = rows[row][:column].ljust(column) + character + rows[row][column + 1 :]
                    column += 1
        return [line.rstrip() for line in rows]


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    """Standard output and error of this process are a terminal, which can be read when the context has ended."""
    made = Terminal()
    try:
        with (open(made.slave, "w", closefd=False) as file, contextlib.redirect_stdout(file),
              contextlib.redirect_stderr(file)):
            yield made
    finally:
        made.close()
