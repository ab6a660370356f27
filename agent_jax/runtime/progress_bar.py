"""The progress of a phase: a bar on a terminal, HTML in a notebook, elsewhere a line every few seconds.

    with ProgressBar("demonstrations", 500, "episodes") as progress:
        progress.add(1, "12 steps")

A phase within another has its bar below that one. Text that is printed or logged inside appears above the bars. The end
of the context, also by an exception, erases its bar, so that what is printed next begins on an empty line.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
import warnings
from typing import Any, Self, TextIO

from absl import logging
from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # a notebook without ipywidgets: it gets lines
    from tqdm.auto import tqdm
    from tqdm.contrib import DummyTqdmFile

LINE_EVERY_S = 10.0
_IN_NOTEBOOK = any(base.__name__ == "tqdm_notebook" for base in tqdm.__mro__)
_FORMAT = f"{{desc}} {{n_fmt}}/{{total_fmt}} |{{bar{'' if _IN_NOTEBOOK else ':10'}}}| ETA {{remaining}}{{postfix}}"


class ProgressBar:
    """The bar of one phase; a context manager."""

    def __init__(self, name: str, total: int, unit: str = "", *, file: TextIO | None = None) -> None:
        """Prepare a bar, which appears when the context begins.

        Args:
            name: of the phase.
            total: of what is counted.
            unit: plural of what is counted, for the lines; "": without a bar nothing is printed.
            file: gets the bar or the lines; None: standard output.
        """
        file = file or sys.stdout
        # Within another bar, standard output and error are wrapped.
        self._file: Any = file.wrapper_getattr("_wrapped") if isinstance(file, DummyTqdmFile) else file
        self.shown = _IN_NOTEBOOK or self._file.isatty()  # as a bar
        self._name, self._total, self._unit = name, total, unit
        self._done = self._skipped = 0
        self._begun, self._printed_at = time.monotonic(), 0.0
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Self:
        follow = _IN_NOTEBOOK or shutil.get_terminal_size((0, 0)).columns > 0  # some terminals do not know their size
        self._bar = self._opened.enter_context(tqdm(
            desc=self._name, total=self._total, file=self._file, disable=not self.shown, leave=_IN_NOTEBOOK,
            dynamic_ncols=follow, ncols=None if follow else 79, nrows=20, miniters=1, bar_format=_FORMAT,
            smoothing=0))  # ETA by the average speed
        if self.shown and not _IN_NOTEBOOK:
            above_bar: Any = DummyTqdmFile(self._file)
            handler, errors = logging.get_absl_handler().python_handler, sys.stderr
            if sys.stdout.isatty():
                self._opened.enter_context(contextlib.redirect_stdout(above_bar))
            if errors.isatty():
                self._opened.enter_context(contextlib.redirect_stderr(above_bar))
                if handler.stream is errors:
                    self._opened.callback(handler.setStream, handler.setStream(above_bar))
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @property
    def seconds(self) -> float:
        """Since the beginning or the last `skip`; more than 0."""
        return max(time.monotonic() - self._begun, 1e-9)

    def skip(self, count: int) -> None:
        """Count what says nothing of the speed, such as what an earlier run has done; speed and ETA begin here."""
        self._skipped += count
        self._begun, self._printed_at = time.monotonic(), 0.0
        self._bar.initial, self._bar.start_t = self._skipped, time.time()
        self._bar.update(count)
        self._bar.refresh()

    def add(self, count: int, text: str = "") -> None:
        """Count what was done now; a text is shown behind the counts until the next one."""
        self._done += count
        if text:
            self._bar.set_postfix_str(text, refresh=not count)
        self._bar.update(count)
        if self._unit and not self.shown and self.seconds - self._printed_at >= LINE_EVERY_S:
            self._printed_at, done = self.seconds, self._skipped + self._done
            left = (self._total - done) * self.seconds / max(self._done, 1)
            print(f"{self._name}: {done:,} of {self._total:,} {self._unit}, {text}, ETA "
                  f"{left // 60:.0f}:{left % 60:02.0f}", file=self._file, flush=True)
