"""Play with a gamepad: a video or a folder of frames for each recording, and beside it a table of what the pad did.

    FOLDER/NAME.mp4 (avi, mkv, webm)  or  FOLDER/NAME/*.png (jpg)      frames, in the order of their names
    FOLDER/NAME.csv (tsv, jsonl, parquet)                              one row a frame, or rows with a time

    frame,Jump,Evade,...,left_stick_x,left_stick_y,right_stick_x,right_stick_y
    0,0,1,...,0.5,-1,0,0

The action is that of `actions.BLEEDING_EDGE` (11 buttons, two sticks), or another spec of buttons and sticks. With a
column `frame` there is one row a frame. With a column `time` (seconds since the first frame) a frame takes the last row
at or before it, and a button pressed and let go between two frames counts for the first of them. Where
`config.rate_hz` is the video's divided by k, every k-th frame is kept, with all buttons pressed until the next.

Options:
    buttons         column by button (default: of the button's name)
    sticks          columns of x and y by key of the spec (default: KEY_x, KEY_y)
    time, frame     columns (default "time", "frame")
    time_unit_s     seconds of one unit of `time` (default 1)
    pressed         value from which on a button is down, between 0 and 1 (default 0.5)
    stick_range     value of full deflection (default 1; 32767 for raw XInput)
    invert_y        whether y grows downwards in the table (default false)
    max_gap_s       a frame whose row is older than that is an error (default 1; 0: any age, for a log of changes)
    frames_hz       rate of folders of frames
    drop_idle       leave out idle chunks (prepare/sources/chunks.py; default false)
    instructions    CSV or JSONL with the columns name and instruction; else config.instruction_text
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions import BLEEDING_EDGE, ActionSpec
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import no_fields, typed_options
from agent_jax.data.prepare.sources.chunks import active_stretches, said_tokens
from agent_jax.data.prepare.sources.instructions import Instructions
from agent_jax.data.prepare.sources.resampling import Resampling
from agent_jax.data.prepare.sources.source import BadDataError, Recording, Schema, SourceEpisode, SourceStep
from agent_jax.data.prepare.sources.table import SUFFIXES
from agent_jax.data.prepare.sources.video.pad_table import Action, GamepadOptions, PadTable
from agent_jax.data.prepare.sources.video.videos import (
    Footage,
    camera_name,
    is_footage,
    open_footage,
    readable_infos,
    stored_size,
)


class GamepadSource:
    """A folder of recordings; implements `source.Source`."""

    def __init__(self, path: Path, config: PrepareConfig):
        self.options: GamepadOptions = typed_options(GamepadOptions, config)
        no_fields(config, "name columns by config.options.buttons and sticks")
        self.action_spec = dict(config.action_spec) or BLEEDING_EDGE.to_dict()
        self._spec = ActionSpec.from_dict(self.action_spec)
        self._table = PadTable(self._spec, self.options)
        self.state_spec: Mapping[str, Any] = {}
        if not path.is_dir():
            raise ValueError(f"--path={path}: is a file, expected the folder of videos and their tables")
        self._config, self._folder = config, path
        tables = [file for file in sorted(path.iterdir())
                  if file.suffix.lower() in SUFFIXES and file.name != self.options.instructions]
        shows = [file for file in sorted(path.iterdir()) if is_footage(file)]
        names = sorted({*map(_name, tables), *map(_name, shows)})
        if not shows:
            raise FileNotFoundError(f"{path}: found no video and no folder of png or jpg files, expected NAME.mp4 or "
                                    f"NAME/ beside NAME{SUFFIXES[0]}")
        self._files = {name: tuple([file for file in files if _name(file) == name] for files in (shows, tables))
                       for name in names}
        self._instructions = Instructions(path, self.options.instructions, config)
        self._camera = camera_name(config)
        first = next(readable_infos(shows, self.options.frames_hz))
        self.rate_hz = config.rate_hz or first.rate_hz
        resampling = self._resampling(max(round(first.rate_hz / self.rate_hz), 1), first.rate_hz)
        self.schema = Schema({self._camera: stored_size([first], config)}, self._spec.fields, notes=resampling.notes)

    def recordings(self) -> list[Recording]:
        """One a name, whether it has both files or not: what is missing is said when it is read."""
        return [Recording(name, str((shows or tables)[0]), detail=name) for name, (shows, tables) in
                self._files.items()]

    def files(self, recording: Recording) -> Iterator[Path]:
        """Video or frames, the table, and that of instructions."""
        shows, tables = self._files[recording.detail]
        for shown in shows:
            yield from shown.iterdir() if shown.is_dir() else (shown,)
        yield from (*tables, *self._instructions.files)

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """One episode, in the stretches that are not idle where `drop_idle` is set."""
        shows, tables = self._files[recording.detail]
        if len(shows) != 1 or len(tables) != 1:
            raise BadDataError(f"{recording.where}: found {', '.join(file.name for file in (*shows, *tables))} for the "
                               f"recording {recording.detail!r}, expected one video or folder of frames, and one table")
        instruction = self._instructions.of(recording.name)
        shown = open_footage(shows[0], self.options.frames_hz)
        every = self._every(shown)
        resampling = self._resampling(every, shown.info.rate_hz)
        actions = self._table.read(tables[0], shown)
        actions = [resampling.joined(actions[t : t + every]) for t in range(0, len(actions), every)]
        counts = [said_tokens(self._spec, action) for action in actions]
        images = enumerate(itertools.islice(shown.images(), 0, None, every))
        stretches = active_stretches(counts, self._config.window, keep_idle=not self.options.drop_idle)
        if not stretches:
            raise BadDataError(f"{tables[0]}: every chunk of {self._config.window} steps is idle; leave such "
                               "recordings out with --on_error=skip")
        for start, stop in stretches:
            steps = self._steps(actions, images, start, stop, shown)
            yield SourceEpisode(recording.name, instruction, steps, start=start, ends=stop == len(actions))
        for _ in images:  # to the end: a video with more or fewer frames than it says was paired wrongly
            pass

    def _steps(self, actions: Sequence[Action], images: Iterator[tuple[int, bytes | np.ndarray]], start: int,
               stop: int, shown: Footage) -> Iterator[SourceStep]:
        for t, image in images:
            if t >= start:
                yield SourceStep({self._camera: image}, actions[t])
            if t == stop - 1:
                return
        raise BadDataError(f"{shown.path}: ends before step {stop - 1}, expected {shown.info.frames} frames")

    def _resampling(self, every: int, rate_hz: float) -> Resampling:
        return Resampling(self._config, every, rate_hz, self._spec, absolute=None)

    def _every(self, shown: Footage) -> int:
        """How many frames of the video one step covers."""
        every = round(shown.info.rate_hz / self.rate_hz)
        if every < 1 or abs(shown.info.rate_hz / every - self.rate_hz) > 0.01 * self.rate_hz:
            raise BadDataError(f"{shown.path}: found {shown.info.rate_hz:.6g} frames a second, expected "
                               f"{self.rate_hz:g} or a multiple of it")
        return every


def open_source(path: Path, config: PrepareConfig) -> GamepadSource:
    """The recordings in the folder `path`."""
    return GamepadSource(path, config)


def _name(file: Path) -> str:
    """Of the recording that a file or folder belongs to."""
    return file.name if file.is_dir() else file.stem
