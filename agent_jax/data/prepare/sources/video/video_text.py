"""Videos with text: a table of captions, questions with answers, or class labels, and the files that it names.

    FOLDER/table.csv (tsv, jsonl, parquet)
        file,caption                        file,question,answer                   file,label
        a.mp4,a dog runs                    b.avi,how many people?,two             c.dcm,calm

    row -> SourceEpisode: instruction (the question, or "A video of"), images, answer (or caption), label

A row is the text of a whole video, or of its seconds [start, stop). Images are taken at `config.rate_hz` (0: all), in
clips of `config.window`; an incomplete clip at the end is dropped. Videos may be mp4, avi, mkv, webm, or DICOM cines.
No field of a DICOM header is stored, but file names are.

Options:
    file, caption, question, answer, label, start, stop, split     columns (default: of these names)
    group           column whose rows with one value stay in one split, as a patient; stored as a hash (default: file)
    classes         names of the classes in order (default: labels are numbers from 0)
    spread          take one clip of `config.window` images, spread evenly over the whole (default false)
    dicom_hz        rate of the cines that state none
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import no_fields, typed_options
from agent_jax.data.prepare.sources.source import Recording, Schema, Source, SourceEpisode, SourceStep, first_readable
from agent_jax.data.prepare.sources.table import SUFFIXES, Row
from agent_jax.data.prepare.sources.video.clips import Cine, open_cine, whole_clips
from agent_jax.data.prepare.sources.video.text_pairs import Pair, PairTable, VideoTextOptions
from agent_jax.data.prepare.sources.video.videos import camera_name, checked_rate

PROMPT = "A video of"  # before a caption, as in the paper


class VideoTextSource(Source):
    """A table, or the only one in a folder, and its videos."""

    def __init__(self, path: Path, config: PrepareConfig):
        self._options: VideoTextOptions = typed_options(VideoTextOptions, config)
        no_fields(config, "name columns by config.options.file, caption, question, answer, label")
        if config.action_spec or config.state_spec:
            raise ValueError("config.action_spec, config.state_spec: found one, expected none: videos with text have "
                             "no actions")
        self._config = config
        self._table = PairTable(_table_file(path), self._options, config.instruction_text or PROMPT,
                                config.allow_root)
        self._groups = self._table.groups()
        self._camera = camera_name(config)
        first = self._first_readable().info
        self.action_spec, self.state_spec = {}, {}
        self.schema = Schema({self._camera: (first.height, first.width)}, {}, answers=self._table.texts,
                             labels=self._table.labels)
        self.rate_hz = 0.0 if self._options.spread else config.rate_hz or first.rate_hz

    def recordings(self) -> list[Recording]:
        """One per video, or one per group if `group` names a column."""
        return [Recording(self._name(group), str(self._table.video(rows[0])), self._table.split(rows), detail=group)
                for group, rows in self._groups.items()]

    def files(self, recording: Recording) -> list[Path]:
        """The table and the videos of its rows."""
        return [self._table.path, *(self._table.video(row) for row in self._groups[recording.detail])]

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """One episode for every text of the recording's videos."""
        seen: dict[Pair, str] = {}
        for row in self._groups[recording.detail]:
            for pair in self._table.pairs(row):
                if pair in seen:
                    raise BadDataError(f"{row.where}: repeats the text of the same video in {seen[pair]}; remove one")
                seen[pair] = row.where
                yield SourceEpisode(f"{recording.name}/{len(seen) - 1}", pair.instruction, self._steps(pair, row),
                                    answer=pair.answer, label=pair.label)

    def _steps(self, pair: Pair, row: Row) -> Iterator[SourceStep]:
        window, count = self._config.window, 0
        try:
            cine = open_cine(pair.video, self._options.dicom_hz)
            stop_s = self._end(pair, cine)
            images = cine.images(pair.start_s, stop_s, self._rate(pair, cine, stop_s))
            for image in whole_clips(images, window, first_only=self._options.spread):
                yield SourceStep({self._camera: image}, {})
                count += 1
        except BadDataError as error:
            raise BadDataError(f"{row.where}: {error}") from error
        if not count:
            raise BadDataError(f"{row.where}: {pair.video}: holds less than one clip of config.window={window} images "
                               f"from {pair.start_s:g} to {stop_s:g} s; lower config.window, raise config.rate_hz, or "
                               "leave out short videos")

    def _end(self, pair: Pair, cine: Cine) -> float:
        """The end of the stretch in seconds."""
        slack_s = 1 / cine.info.rate_hz
        if pair.start_s >= cine.length_s or cine.length_s + slack_s < pair.stop_s < math.inf:
            raise BadDataError(f"{cine.path}: lasts {cine.length_s:.3f} s, but the row has {self._options.start}="
                               f"{pair.start_s:g} and {self._options.stop}={pair.stop_s:g}")
        return min(pair.stop_s, cine.length_s)

    def _rate(self, pair: Pair, cine: Cine, stop_s: float) -> float:
        """Images per second to take; 0: all."""
        if self._options.spread:
            # At most the video's: a short video then fails the check of its clip.
            return min(self._config.window / (stop_s - pair.start_s), cine.info.rate_hz)
        if not self._config.rate_hz:
            checked_rate(cine.path, cine.info.rate_hz, self.rate_hz)
        return self._config.rate_hz

    def _name(self, group: str) -> str:
        """The name of a recording: the file's, or a group's hash, since a patient's name must not be stored."""
        return hashlib.blake2b(group.encode(), digest_size=8).hexdigest() if self._options.group else group

    def _first_readable(self) -> Cine:
        """The first video that can be opened; the others raise their errors when they are read."""

        def read(row: Row) -> Cine:
            try:
                return open_cine(self._table.checked_video(row), self._options.dicom_hz)
            except BadDataError as error:
                raise BadDataError(str(error) if row.where in str(error) else f"{row.where}: {error}") from error

        try:
            return first_readable(self._table.rows, read, "")
        except BadDataError as error:
            raise BadDataError(f"no video can be opened; the first: {error}") from error


def _table_file(path: Path) -> Path:
    if path.is_file():
        return path
    tables = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES]
    if len(tables) != 1:
        raise ValueError(f"--path={path}: found {', '.join(file.name for file in tables) or 'no table'}, expected one "
                         f"table ({', '.join(SUFFIXES)}); give its path")
    return tables[0]
