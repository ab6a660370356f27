"""Gameplay with a gamepad: a video or a folder of frames for each recording, and a table of the pad's state.

    FOLDER/NAME.mp4 (avi, mkv, webm)  or  FOLDER/NAME/*.png (jpg)      frames, in the order of their names
    FOLDER/NAME.csv (tsv, jsonl, parquet)                              one row per frame, or rows with a time

    frame,Jump,Evade,...,left_stick_x,left_stick_y,right_stick_x,right_stick_y
    0,0,1,...,0.5,-1,0,0

The action is that of `actions.BLEEDING_EDGE` (11 buttons, two sticks), or another spec of buttons and sticks. With a
column `frame` there is one row per frame. With a column `time` (seconds since the first frame) a frame takes the last
row at or before it, and a button pressed and released between two frames counts for the first of them. If
`config.rate_hz` is the video's divided by k, every k-th frame is kept, with all buttons pressed until the next.

Options:
    buttons         column by button (default: of the button's name)
    sticks          columns of x and y by key of the spec (default: KEY_x, KEY_y)
    time, frame     columns (default "time", "frame")
    time_unit_s     seconds per unit of `time` (default 1)
    pressed         value from which on a button is down, between 0 and 1 (default 0.5)
    stick_range     value of full deflection (default 1; 32767 for raw XInput)
    invert_y        y grows downwards in the table (default false)
    max_gap_s       largest age of a frame's row (default 1; 0: any age, for a log of changes)
    frames_hz       rate of folders of frames
    drop_idle       leave out idle chunks (prepare/sources/chunks.py; default false)
    instructions    CSV or JSONL with the columns name and instruction; else config.instruction_text
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from agent_jax.actions import BLEEDING_EDGE, ActionSpec
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import no_fields, typed_options
from agent_jax.data.prepare.sources.chunks import action_tokens, active_episodes
from agent_jax.data.prepare.sources.instructions import Instructions
from agent_jax.data.prepare.sources.resampling import Resampling
from agent_jax.data.prepare.sources.source import Recording, Schema, Source, SourceEpisode, SourceStep
from agent_jax.data.prepare.sources.table import SUFFIXES
from agent_jax.data.prepare.sources.video.pad_table import GamepadOptions, PadTable
from agent_jax.data.prepare.sources.video.videos import Footage, camera_name, first_info, is_footage, open_footage


class GamepadSource(Source):
    """A folder of recordings."""

    def __init__(self, path: Path, config: PrepareConfig):
        self._options: GamepadOptions = typed_options(GamepadOptions, config)
        no_fields(config, "name columns by config.options.buttons and sticks")
        self.action_spec = dict(config.action_spec) or BLEEDING_EDGE.to_dict()
        self.state_spec = {}
        self._spec = ActionSpec.from_dict(self.action_spec)
        self._table = PadTable(self._spec, self._options)
        if not path.is_dir():
            raise ValueError(f"--path={path}: is a file, expected the folder of videos and their tables")
        self._config = config
        tables = [file for file in sorted(path.iterdir())
                  if file.suffix.lower() in SUFFIXES and file.name != self._options.instructions]
        footage = [file for file in sorted(path.iterdir()) if is_footage(file)]
        if not footage:
            raise FileNotFoundError(f"{path}: found no video and no folder of png or jpg files, expected NAME.mp4 or "
                                    f"NAME/ beside NAME{SUFFIXES[0]}")
        names = sorted({*map(_name, tables), *map(_name, footage)})
        self._files = {name: tuple([file for file in files if _name(file) == name] for files in (footage, tables))
                       for name in names}
        self._instructions = Instructions(path, self._options.instructions, config)
        self._camera = camera_name(config)
        first = first_info(footage, self._options.frames_hz)
        self.rate_hz = config.rate_hz or first.rate_hz
        resampling = self._resampling(max(round(first.rate_hz / self.rate_hz), 1), first.rate_hz)
        self.schema = Schema({self._camera: (first.height, first.width)}, self._spec.fields, notes=resampling.notes)

    def recordings(self) -> list[Recording]:
        """One per name. A missing file is an error when the recording is read."""
        return [Recording(name, str((footage or tables)[0]), detail=name)
                for name, (footage, tables) in self._files.items()]

    def files(self, recording: Recording) -> Iterator[Path]:
        """Video or frames, the table, and that of instructions."""
        footage, tables = self._files[recording.detail]
        for path in footage:
            yield from path.iterdir() if path.is_dir() else (path,)
        yield from (*tables, *self._instructions.files)

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """One episode; with `drop_idle`, in the stretches that are not idle."""
        files, tables = self._files[recording.detail]
        if len(files) != 1 or len(tables) != 1:
            raise BadDataError(f"{recording.where}: found {', '.join(file.name for file in (*files, *tables))} for the "
                               f"recording {recording.detail!r}, expected one video or folder of frames, and one table")
        instruction = self._instructions.text(recording.name)
        footage = open_footage(files[0], self._options.frames_hz)
        stride = self._stride(footage)
        resampling = self._resampling(stride, footage.info.rate_hz)
        actions = self._table.read(tables[0], footage)
        actions = [resampling.joined(actions[t : t + stride]) for t in range(0, len(actions), stride)]
        images = itertools.islice(footage.images(), 0, None, stride)
        yield from active_episodes(recording.name, instruction, images,
                                   lambda t, image: SourceStep({self._camera: image}, actions[t]),
                                   [action_tokens(self._spec, action) for action in actions], self._config.window,
                                   keep_idle=not self._options.drop_idle, where=tables[0])

    def _resampling(self, stride: int, rate_hz: float) -> Resampling:
        return Resampling(self._config, stride, rate_hz, self._spec, absolute=None)

    def _stride(self, footage: Footage) -> int:
        """The number of video frames per step."""
        rate_hz = footage.info.rate_hz
        stride = round(rate_hz / self.rate_hz)
        if stride < 1 or abs(rate_hz / stride - self.rate_hz) > 0.01 * self.rate_hz:
            raise BadDataError(f"{footage.path}: found {rate_hz:.6g} frames a second, expected {self.rate_hz:g} or a "
                               "multiple of it")
        return stride


def _name(file: Path) -> str:
    """The recording that a file or folder belongs to."""
    return file.name if file.is_dir() else file.stem
