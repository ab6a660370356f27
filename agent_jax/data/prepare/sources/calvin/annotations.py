"""Language annotations of a CALVIN split, grouped by shared steps.

    play         0 ------------------------------------------- 500
    annotations    [20 ---- 84)   [100 ---- 164)
                          [60 ---- 124)            [300 --- 364)
    groups         [0, 1, 2]                       [3]

A group is a recording, so no step occurs in two recordings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.limits import check_unpacked
from agent_jax.data.prepare.sources.calvin.object_array import read_object_array
from agent_jax.data.prepare.sources.npy_file import read_npy

PLAYS = "ep_start_end_ids.npy"
_MAX_STEPS = 100_000  # of an annotation, which has 64; a damaged one could name 2^63, each a file
_BYTES_PER_PAIR = 200  # two numbers and their tuple, as Python objects


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The content of auto_lang_ann.npy and of ep_start_end_ids.npy."""

    file: Path
    bounds_N2: np.ndarray  # int64: first step, and the step after the last
    texts: list[Any]
    plays_P2: np.ndarray  # int64: first and last step of each stretch of play

    def place(self, number: int) -> str:
        """The file and number of an annotation, for messages."""
        return f"{self.file}, annotation {number}"

    def checked(self, number: int) -> tuple[int, int, str]:
        """First step, step after the last, and text.

        Raises:
            BadDataError: no stretch of play contains the range, or the text is not a string.
        """
        start, stop = self.bounds_N2[number].tolist()
        if not self.in_play(number):
            raise BadDataError(f"{self.place(number)}: found the steps {start} to {stop}, expected a range within one "
                               f"of the {len(self.plays_P2)} stretches of play of {PLAYS}")
        text = self.texts[number]
        if not isinstance(text, str):
            raise BadDataError(f"{self.place(number)}: the instruction is a {type(text).__name__}, expected text")
        return start, stop, text

    def groups(self) -> Iterator[list[int]]:
        """Numbers of annotations connected by shared steps; an annotation outside play is a group of its own."""
        group: list[int] = []
        group_stop = -1
        for number in np.lexsort((self.bounds_N2[:, 1], self.bounds_N2[:, 0])).tolist():
            start, stop = self.bounds_N2[number].tolist()
            if not self.in_play(number):
                yield [number]
            elif start < group_stop:
                group.append(number)
                group_stop = max(group_stop, stop)
            else:
                if group:
                    yield group
                group, group_stop = [number], stop
        if group:
            yield group

    def in_play(self, number: int) -> bool:
        """Whether the annotation has steps, at most _MAX_STEPS, and one stretch of play contains them all."""
        start, stop = self.bounds_N2[number].tolist()
        if not start < stop <= start + _MAX_STEPS:
            return False
        return bool(np.any((self.plays_P2[:, 0] <= start) & (stop <= self.plays_P2[:, 1] + 1)))


def read_annotations(folder: Path, language: str, kind: str) -> Annotations:
    """The annotations of a split in its subfolder `language`; `kind` is `ann` (texts) or `task` (names of tasks).

    Raises:
        FileNotFoundError: a file is missing.
        BadDataError: a file is damaged or has other content; names it.
    """
    file = folder / language / "auto_lang_ann.npy"
    if not file.is_file():
        there = ", ".join(sorted(found.parent.name for found in folder.glob("*/auto_lang_ann.npy")))
        raise FileNotFoundError(f"{file}: not found; expected the language annotations. "
                                + (f"There are others: set config.options.language to one of {there}" if there else
                                   "Play without annotations has no instructions. Copy the annotations of the data set "
                                   "here, or set config.options.skip_unannotated=true to leave out a split without "
                                   "them"))
    content = read_object_array(file)
    try:
        pairs, texts = content["info"]["indx"], content["language"][kind]
        check_unpacked(_BYTES_PER_PAIR * (len(pairs) + len(texts)), file.stat().st_size, f"{file}, info.indx")
        # Pairs (start, start + window): the authors' annotator and their loader both exclude the second step.
        bounds_N2 = np.asarray([(int(start), int(stop)) for start, stop in pairs], np.int64)
        texts = list(texts)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise BadDataError(f"{file}: lacks info.indx, pairs of whole numbers, or language.{kind}, a list of texts "
                           f"({error!r}); config.instruction is 'ann' or 'task'") from error
    if len(bounds_N2) != len(texts) or not texts:
        raise BadDataError(f"{file}: found {len(texts)} texts for {len(bounds_N2)} ranges, expected one each")
    return Annotations(file, bounds_N2, texts, _read_plays(folder / PLAYS))


def _read_plays(file: Path) -> np.ndarray:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found; expected the bounds of the stretches of play")
    plays_P2 = read_npy(file)
    check_unpacked(8 * plays_P2.size, plays_P2.nbytes, str(file))
    if plays_P2.ndim != 2 or plays_P2.shape[1] != 2 or plays_P2.dtype.kind not in "iu":
        raise BadDataError(f"{file}: found {plays_P2.dtype}{list(plays_P2.shape)}, expected pairs of whole numbers")
    return plays_P2.astype(np.int64)
