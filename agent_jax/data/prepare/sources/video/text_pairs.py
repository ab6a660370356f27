"""A table of texts or labels for stretches of videos (video_text.py lists the formats).

    row {file, caption, question, answer}  ->  Pair("A video of", caption), Pair(question, answer)

All rows have texts if the table has a column of texts, and labels if it has one of labels.
"""

from __future__ import annotations

import dataclasses
import math
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.paths import Folder
from agent_jax.data.prepare.sources.table import Row, read_table


@dataclasses.dataclass(frozen=True)
class VideoTextOptions:
    """`config.options` of the source `video_text`."""

    file: str = "file"
    caption: str = "caption"
    question: str = "question"
    answer: str = "answer"
    label: str = "label"
    start: str = "start"
    stop: str = "stop"
    split: str = "split"
    group: str = ""
    classes: tuple[str, ...] = ()
    spread: bool = False
    dicom_hz: float = 0.0


@dataclasses.dataclass(frozen=True)
class Pair:
    """A stretch of a video and its text or label."""

    video: Path
    start_s: float
    stop_s: float  # inf: to the end
    instruction: str
    answer: str
    label: int


class PairTable:
    """The rows of a table, checked when they are used."""

    def __init__(self, path: Path, options: VideoTextOptions, prompt: str, allowed: tuple[str, ...] = ()):
        """Read the table; `prompt` is the instruction of captions, `allowed` is config.allow_root.

        Raises:
            ValueError: a required column is missing.
            BadDataError: it has no rows, or one cannot be read.
        """
        self.path, self._options, self._prompt = path, options, prompt
        self._folder = Folder(path.parent, allowed)
        self.rows: Sequence[Row] = list(read_table(path))
        if not self.rows:
            raise BadDataError(f"{path}: has no rows; expected one for each video and text")
        columns = set().union(*(row.values for row in self.rows))
        has_question, has_answer = options.question in columns, options.answer in columns
        self.texts = options.caption in columns or (has_question and has_answer)
        self.labels = options.label in columns
        if options.file not in columns or not (self.texts or self.labels) or has_question != has_answer:
            raise ValueError(f"{path}: found the columns {', '.join(sorted(columns))}, expected {options.file!r} and "
                             f"{options.caption!r}, or {options.question!r} and {options.answer!r}, or "
                             f"{options.label!r}; name others by config.options.file, caption, question, answer, label")
        if options.group and options.group not in columns:
            raise ValueError(f"{path}: found the columns {', '.join(sorted(columns))}, expected {options.group!r} "
                             "(config.options.group)")

    def groups(self) -> dict[str, list[Row]]:
        """The rows of each recording, in order.

        Raises:
            BadDataError: a row names no file or group.
        """
        column = self._options.group or self._options.file
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if not row.has(column):
                raise BadDataError(f"{row.where}: found nothing in column {column!r}")
            # A video is one recording however its path is written.
            name = row.text(column) if self._options.group else posixpath.normpath(row.text(column))
            found.setdefault(name, []).append(row)
        return found

    def video(self, row: Row) -> Path:
        """The file that a row names, unchecked: it may lie in a folder that must not be read."""
        return self.path.parent / row.text(self._options.file)

    def checked_video(self, row: Row) -> Path:
        """The file that a row names.

        Raises:
            BadDataError: it lies outside the folder of the table, and no flag allows it.
        """
        return self._folder.file(row.text(self._options.file), f"{row.where}, column {self._options.file!r}")

    def split(self, rows: Sequence[Row]) -> str:
        """The split of a recording's rows, or "".

        Raises:
            BadDataError: the rows name several.
        """
        splits = {row.text(self._options.split) for row in rows}
        if len(splits) > 1:
            raise BadDataError(f"{rows[-1].where}: found the splits {', '.join(map(repr, sorted(splits)))} for one "
                               "recording, expected one")
        return splits.pop()

    def pairs(self, row: Row) -> Iterator[Pair]:
        """The pairs of a row: a caption, a question with its answer, both, or a label alone.

        Raises:
            BadDataError: a text is empty, a label is not one of the classes, `start` and `stop` are not a stretch, or
                the video must not be read.
        """
        options = self._options
        start, stop = (row.number(column) if row.has(column) else default
                       for column, default in ((options.start, 0.0), (options.stop, math.inf)))
        if not 0 <= start < stop:
            raise BadDataError(f"{row.where}: found {options.start}={start:g} and {options.stop}={stop:g}, expected "
                               "seconds, the first less than the second")
        caption, question, answer = (row.text(name) for name in (options.caption, options.question, options.answer))
        if bool(question) != bool(answer):
            raise BadDataError(f"{row.where}: found the question {question!r} and the answer {answer!r}, expected both "
                               "or neither")
        if self.texts and not (caption or question):
            raise BadDataError(f"{row.where}: found no text, expected one in column {options.caption!r}, or in "
                               f"{options.question!r} and {options.answer!r}")
        label = self._label(row) if self.labels else -1
        video = self.checked_video(row)
        if caption or not self.texts:
            yield Pair(video, start, stop, self._prompt, caption, label)
        if question:
            yield Pair(video, start, stop, question, answer, label)

    def _label(self, row: Row) -> int:
        column, classes = self._options.label, self._options.classes
        if classes:
            if row.text(column) not in classes:
                raise BadDataError(f"{row.where}: found {column}={row.text(column)!r}, expected one of "
                                   f"{', '.join(classes)} (config.options.classes)")
            return classes.index(row.text(column))
        try:
            return row.whole(column, 2**31 - 1)
        except BadDataError as error:
            raise BadDataError(f"{error}; for names, or numbers below 0, set config.options.classes") from error
