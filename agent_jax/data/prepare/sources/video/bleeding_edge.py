"""Microsoft's public sample of Bleeding Edge (huggingface.co/datasets/microsoft/bleeding-edge-gameplay-sample).

    FOLDER/**/GAME_step-S_tick-T_video.mp4    10 frames per second, 300 x 180
    FOLDER/**/GAME_step-S_tick-T_data.npz     actions: float32 (frames, 16); images: uint8 (frames, 3, 180, 300)

    actions[t]    1 0 0 0 0 0 0 0 0 0 0 0    6 10            5 5
                  12 buttons                 left stick x y  right stick x y, as bins 0 to 10 of [-1, 1]; 5 is neutral

The clips of one game are one recording, so no game is in two splits. The sample numbers its buttons. With
`options.buttons` the action is that of `actions.BLEEDING_EDGE`, whose 11 buttons have names; without, the action is
`numbered_spec()`, with the 12 buttons as they are. No array of objects is read from an npz file, so none of its code
runs.

Options:
    buttons         column (0 to 11) by name of the spec's buttons
    stick_bins      the stick's position in each of the 11 bins (default: equal steps from -1 to 1)
    images          "mp4" (default), or "npz": take the frames from the npz files, which are uncompressed
    drop_idle       leave out idle chunks (prepare/sources/chunks.py; default false)
    instructions    CSV or JSONL with the columns name (of the clip) and instruction; else config.instruction_text
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from agent_jax.actions import BLEEDING_EDGE, ActionSpec
from agent_jax.actions.controls import Buttons, Stick
from agent_jax.actions.specs import Group
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import nearest, no_fields, typed_options
from agent_jax.data.prepare.sources.chunks import action_tokens, active_episodes
from agent_jax.data.prepare.sources.instructions import Instructions
from agent_jax.data.prepare.sources.npy_file import NpzFile, open_npz
from agent_jax.data.prepare.sources.source import (
    Recording,
    Schema,
    Source,
    SourceEpisode,
    SourceStep,
    first_readable,
)
from agent_jax.data.prepare.sources.video.videos import camera_name, checked_rate, open_footage

RATE_HZ = 10.0
BUTTONS = 12
BINS = 11  # of each axis of a stick
_STICKS = {"left_stick": (12, 14), "right_stick": (14, 16)}  # columns of x and y
_VIDEO, _DATA = "_video.mp4", "_data.npz"

Action = dict[str, np.ndarray]


def numbered_spec() -> ActionSpec:
    """The sample's own action: 12 numbered buttons and two sticks, with a vocabulary block of its own."""
    sticks = (Stick("left_stick", "lrot", "lmag"), Stick("right_stick", "rrot", "rmag"))
    buttons = Buttons("buttons", tuple(f"button{number}" for number in range(BUTTONS)))
    return dataclasses.replace(BLEEDING_EDGE, name="bleeding_edge_sample", block="bleeding_edge_sample",
                               groups=(Group("STARTACTION", (buttons, *sticks), "ENDOFACTION"),))


@dataclasses.dataclass(frozen=True)
class BleedingEdgeOptions:
    """`config.options` of this source."""

    buttons: Mapping[str, int] = dataclasses.field(default_factory=dict)
    stick_bins: tuple[float, ...] = tuple((k - 5) / 5 for k in range(BINS))
    images: Literal["mp4", "npz"] = "mp4"
    drop_idle: bool = False
    instructions: str = ""

    def __post_init__(self) -> None:
        if len(self.stick_bins) != BINS or not all(-1 <= value <= 1 for value in self.stick_bins):
            raise ValueError(f"config.options.stick_bins: found {self.stick_bins}, expected {BINS} numbers in [-1, 1]")
        for name, column in self.buttons.items():
            if not 0 <= column < BUTTONS:
                raise ValueError(f"config.options.buttons.{name}={column}: expected a column from 0 to {BUTTONS - 1}")
        if len(set(self.buttons.values())) < len(self.buttons):
            raise ValueError(f"config.options.buttons: found {dict(self.buttons)}, expected each column once")


class BleedingEdgeSource(Source):
    """A folder of pairs, searched with its subfolders."""

    def __init__(self, path: Path, config: PrepareConfig):
        self._options: BleedingEdgeOptions = typed_options(BleedingEdgeOptions, config)
        no_fields(config, "name the columns of buttons by config.options.buttons")
        default = BLEEDING_EDGE if self._options.buttons else numbered_spec()
        self.action_spec = dict(config.action_spec) or default.to_dict()
        self.state_spec = {}
        self._spec = ActionSpec.from_dict(self.action_spec)
        self._columns = _columns(self._spec, self._options.buttons)
        if config.rate_hz not in (0.0, RATE_HZ):
            raise ValueError(f"config.rate_hz={config.rate_hz}: expected 0 or {RATE_HZ:g}, the sample's rate")
        self.rate_hz = RATE_HZ
        if not path.is_dir():
            raise ValueError(f"--path={path}: is a file, expected the folder of NAME{_VIDEO} and NAME{_DATA}")
        self._folder, self._config = path, config
        self._clips = _clips(path)
        self._instructions = Instructions(path, self._options.instructions, config)
        self._camera = camera_name(config)
        note = () if self._options.buttons or config.action_spec else (
            f"the sample numbers its buttons: the action has buttons 0 to {BUTTONS - 1} and the vocabulary block "
            f"{self._spec.block!r}; for the paper's 11 named buttons give --config.options.buttons, as in "
            '{"Jump": COLUMN, ...}',)
        self.schema = Schema({self._camera: self._image_size()}, self._spec.fields, notes=note)

    def recordings(self) -> list[Recording]:
        """One per game. A missing file is an error when the recording is read."""
        games: dict[str, list[str]] = {}
        for clip in self._clips:
            games.setdefault(Path(clip).name.partition("_step-")[0], []).append(clip)
        recordings = []
        for game, clips in sorted(games.items()):
            used = [file for clip in clips for file in self._pair(clip) if file.is_file()]
            size = sum(file.stat().st_size for file in used)
            recordings.append(Recording(game, str(used[0]), size=size, detail=tuple(clips)))
        return recordings

    def files(self, recording: Recording) -> list[Path]:
        """The pairs of the game's clips, and the table of instructions."""
        return [*(file for clip in recording.detail for file in self._pair(clip)), *self._instructions.files]

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """One episode per clip; with `drop_idle`, in the stretches that are not idle."""
        for clip in recording.detail:
            yield from self._read_clip(clip)

    def _read_clip(self, clip: str) -> Iterator[SourceEpisode]:
        video, data = self._pair(clip)
        name = Path(clip).name
        if not data.is_file() or (self._options.images == "mp4" and not video.is_file()):
            raise BadDataError(f"{video if data.is_file() else data}: not found; expected a pair {name}{_VIDEO} and "
                               f"{name}{_DATA}")
        instruction = self._instructions.text(name)
        with open_npz(data) as arrays:
            actions = self._actions(data, arrays)
            images = self._stored_images(data, arrays, len(actions)) if self._options.images == "npz" else None
        if images is None:
            footage = open_footage(video)
            checked_rate(video, footage.info.rate_hz, RATE_HZ)
            if footage.info.frames != len(actions):
                raise BadDataError(f"{data}: holds {len(actions)} actions, {footage.expected}; take the frames from "
                                   "this file by --config.options.images=npz, or leave the clip out")
            images = footage.images()
        yield from active_episodes(name, instruction, images,
                                   lambda t, image: SourceStep({self._camera: image}, actions[t]),
                                   [action_tokens(self._spec, action) for action in actions], self._config.window,
                                   keep_idle=not self._options.drop_idle, where=data)

    def _actions(self, data: Path, arrays: NpzFile) -> list[Action]:
        member = arrays.member("actions")
        shape = member.header.shape
        if len(shape) != 2 or shape[1] != BUTTONS + 4 or not shape[0] or member.header.dtype.kind not in "biuf":
            raise BadDataError(f"{data}, array 'actions': found {member.header.dtype} of shape {shape}, expected "
                               f"numbers of shape (frames, {BUTTONS + 4})")
        values_TA = np.asarray(arrays.read(member), np.float64)
        largest_A = np.repeat([1, BINS - 1], [BUTTONS, 4])
        wrong = np.argwhere(~((values_TA >= 0) & (values_TA <= largest_A) & (values_TA == np.rint(values_TA))))
        if len(wrong):
            t, column = (int(number) for number in wrong[0])
            raise BadDataError(f"{data}, array 'actions', row {t}, column {column}: found {values_TA[t, column]:g}, "
                               f"expected a whole number from 0 to {largest_A[column]}")
        whole_TA = values_TA.astype(np.int64)
        positions = np.asarray(self._options.stick_bins, np.float32)
        return [{key: positions[row_A[slice(*_STICKS[key])]] if key in _STICKS else row_A[columns] == 1
                 for key, columns in self._columns.items()} for row_A in whole_TA]

    def _stored_images(self, data: Path, arrays: NpzFile, count: int) -> Iterator[np.ndarray]:
        height, width = _stored_size(data, arrays)
        images = arrays.read(arrays.member("images"))
        if len(images) != count:
            raise BadDataError(f"{data}: holds {len(images)} images and {count} actions, expected equally many")
        if images.shape[1:] != (height, width, 3):
            images = np.moveaxis(images, 1, -1)
        return (np.ascontiguousarray(image) for image in images)

    def _image_size(self) -> tuple[int, int]:
        """Height and width in the first clip that can be read."""

        def of_clip(clip: str) -> tuple[int, int]:
            video, data = self._pair(clip)
            if self._options.images == "mp4":
                info = open_footage(video).info
                return info.height, info.width
            with open_npz(data) as arrays:
                return _stored_size(data, arrays)

        return first_readable(self._clips, of_clip, "")

    def _pair(self, clip: str) -> tuple[Path, Path]:
        return self._folder / f"{clip}{_VIDEO}", self._folder / f"{clip}{_DATA}"


def _clips(folder: Path) -> list[str]:
    """Paths of the clips, relative and without suffixes.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a clip is in two subfolders.
    """
    clips = sorted({file.relative_to(folder).as_posix().removesuffix(suffix)
                    for suffix in (_VIDEO, _DATA) for file in folder.rglob(f"*{suffix}")})
    if not clips:
        raise FileNotFoundError(f"{folder}: found no file *{_VIDEO} or *{_DATA}, expected the unpacked sample")
    seen: dict[str, str] = {}
    for clip in clips:
        if (name := Path(clip).name) in seen:
            raise ValueError(f"--path={folder}: found the clip {name} as {seen[name]} and as {clip}; remove one")
        seen[name] = clip
    return clips


def _stored_size(data: Path, arrays: NpzFile) -> tuple[int, int]:
    """Height and width of the frames of an npz file, whose colours are the second or the last axis."""
    header = arrays.member("images").header
    shape = header.shape
    if len(shape) != 4 or header.dtype != np.uint8 or 3 not in (shape[1], shape[3]) or 0 in shape:
        raise BadDataError(f"{data}, array 'images': found {header.dtype} of shape {shape}, expected uint8 of shape "
                           "(frames, 3, height, width)")
    return (shape[2], shape[3]) if shape[1] == 3 else (shape[1], shape[2])


def _columns(spec: ActionSpec, buttons: Mapping[str, int]) -> dict[str, list[int]]:
    """The sample's columns of each key of the spec.

    Raises:
        ValueError: the spec has other parts, or `buttons` does not name each of its buttons.
    """
    columns: dict[str, list[int]] = {}
    for part in spec.parts:
        if isinstance(part, Stick) and part.key in _STICKS:
            columns[part.key] = list(range(*_STICKS[part.key]))
        elif not isinstance(part, Buttons):
            raise ValueError(f"config.action_spec: found the part {part.place} ({type(part).__name__}), expected "
                             f"buttons and the sticks {', '.join(_STICKS)}")
        elif not buttons and part.size == BUTTONS:
            columns[part.key] = list(range(BUTTONS))
        elif missing := [name for name in part.names if name not in buttons]:
            raise ValueError(f"config.options.buttons: found no column for {', '.join(missing)}, expected a column "
                             f"from 0 to {BUTTONS - 1} for each button of {spec.name!r}")
        else:
            columns[part.key] = [buttons[name] for name in part.names]
    known = [name for part in spec.parts if isinstance(part, Buttons) for name in part.names]
    for name in buttons:
        if name not in known:
            raise ValueError(f"config.options.buttons: found {name!r}, {nearest(name, known)}")
    return columns
