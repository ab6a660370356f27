"""Minecraft recordings of contractors, published by OpenAI for VPT (Baker et al., arXiv 2206.11795), at 20 Hz.

    FOLDER/NAME.mp4      one frame per tick, 640 x 360
    FOLDER/NAME.jsonl    one line per tick: mouse {dx, dy, x, y, buttons, newButtons}, keyboard {keys}, hotbar,
                         isGuiOpen

A line becomes the action of `actions.MINECRAFT`: 23 buttons, and the camera's (pitch, yaw) in degrees = mouse (dy, dx)
* 360 / 2400. As in VPT's own loader, an attack that is down from the first line on is ignored until it is pressed
again, and a change of the selected slot is a press of its hotbar key, because the mouse wheel was not recorded. Idle
chunks of `config.window` steps are left out (sources/chunks.py). While a screen of the game is open, its cursor, which
the video lacks, is drawn at the mouse's position.

Options:
    instructions    CSV or JSONL with the columns name (NAME) and instruction; else config.instruction_text
    cursor          draw the cursor (default true)
    keep_idle       keep idle chunks too (default false)
    trailing        ignore up to this many surplus lines or frames at the end of a recording (default 0: refused; always
                    refused if an edit list hides frames: the surplus may then be at the beginning)
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions import MINECRAFT, ActionSpec
from agent_jax.actions.vocabulary import MINECRAFT_BUTTONS
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import no_fields, typed_options
from agent_jax.data.prepare.sources.chunks import action_tokens, active_episodes
from agent_jax.data.prepare.sources.instructions import Instructions
from agent_jax.data.prepare.sources.source import Recording, Schema, Source, SourceEpisode, SourceStep
from agent_jax.data.prepare.sources.table import Row, read_jsonl
from agent_jax.data.prepare.sources.video.videos import camera_name, checked_rate, first_info, open_footage

RATE_HZ = 20.0  # ticks of the game
_DEGREES = 360 / 2400  # per mouse count, at VPT's sensitivity
_MOUSE_HEIGHT = 720  # the mouse's x and y are in a window of 1280 x 720, whatever the video's size
_FAR = 1e6  # outside any window; a float64 may be too large for an integer

_KEYS = {
    "escape": "ESC", "s": "back", "q": "drop", "w": "forward", **{f"{i}": f"hotbar.{i}" for i in range(1, 10)},
    "e": "inventory", "space": "jump", "a": "left", "d": "right", "left.shift": "sneak", "left.control": "sprint",
    "f": "swapHands",
}
_KEYBOARD = {f"key.keyboard.{key}": button for key, button in _KEYS.items()}
_MOUSE = {0: "attack", 1: "use", 2: "pickItem"}
_COLUMN = {button: i for i, button in enumerate(MINECRAFT_BUTTONS)}


@dataclasses.dataclass(frozen=True)
class VptOptions:
    """`config.options` of this source."""

    instructions: str = ""
    cursor: bool = True
    keep_idle: bool = False
    trailing: int = 0


@dataclasses.dataclass(frozen=True)
class Tick:
    """A line of a jsonl file."""

    buttons: np.ndarray  # bool (23,)
    camera: np.ndarray  # float32 (2,): pitch, yaw in degrees, clipped to the bounds of the spec
    cursor: tuple[float, float] | None  # x, y of the mouse if a screen is open


class VptSource(Source):
    """The pairs in a folder and those below it, or the one pair that a file belongs to."""

    def __init__(self, path: Path, config: PrepareConfig):
        self._options: VptOptions = typed_options(VptOptions, config)
        no_fields(config, "the format has no other columns")
        self.action_spec = dict(config.action_spec) or MINECRAFT.to_dict()
        self._spec = ActionSpec.from_dict(self.action_spec)
        if dict(self._spec.fields) != dict(MINECRAFT.fields):
            raise ValueError(f"config.action_spec: found the keys {', '.join(self._spec.fields)}, expected those of "
                             "agent_jax.actions.datasets.MINECRAFT: buttons (23) and camera (2)")
        if config.rate_hz not in (0.0, RATE_HZ):
            raise ValueError(f"config.rate_hz={config.rate_hz}: expected 0 or {RATE_HZ:g}, the game's ticks a second")
        self.state_spec = {}
        self.rate_hz = RATE_HZ
        self._config, self._folder = config, path if path.is_dir() else path.parent
        files = itertools.chain(path.rglob("*.mp4"), path.rglob("*.jsonl")) if path.is_dir() else [path]
        texts = self._folder / self._options.instructions
        self._names = sorted({file.relative_to(self._folder).with_suffix("").as_posix() for file in files
                              if file != texts})
        if not self._names:
            raise FileNotFoundError(f"{path}: found no mp4 or jsonl file, expected pairs NAME.mp4 and NAME.jsonl")
        self._instructions = Instructions(self._folder, self._options.instructions, config)
        self._camera = camera_name(config)
        size = (config.image_size, config.image_size)
        if not config.image_size:
            first = first_info(self._folder / f"{name}.mp4" for name in self._names)
            size = (first.height, first.width)
        self.schema = Schema({self._camera: size}, self._spec.fields)

    def recordings(self) -> list[Recording]:
        """One per name. A missing file is an error when the recording is read."""
        return [Recording(name, str(self._folder / f"{name}.mp4"), detail=name) for name in self._names]

    def files(self, recording: Recording) -> list[Path]:
        """The pair, and the table of instructions."""
        return [*self._pair(recording), *self._instructions.files]

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """One episode, in the stretches that are not idle."""
        video, lines = self._pair(recording)
        for path in (video, lines):
            if not path.is_file():
                raise BadDataError(f"{path}: not found; expected a pair {recording.detail}.mp4 and .jsonl")
        instruction = self._instructions.text(Path(recording.detail).name)
        ticks = read_ticks(lines, *self._spec.bounds("camera"))
        footage = open_footage(video)
        checked_rate(video, footage.info.rate_hz, RATE_HZ)
        surplus = abs(footage.info.frames - len(ticks))
        if surplus > (0 if footage.info.hidden else self._options.trailing):
            advice = "" if footage.info.hidden else (
                "; leave the recording out, or ignore the surplus at the end with "
                f"--config.options.trailing={surplus}")
            raise BadDataError(f"{lines}:{len(ticks)}: the last of {len(ticks)} lines, {footage.expected}{advice}")
        del ticks[footage.info.frames :]
        tokens_T = [action_tokens(self._spec, {"buttons": tick.buttons, "camera": tick.camera}) for tick in ticks]
        yield from active_episodes(recording.name, instruction, footage.images(),
                                   lambda t, image: self._step(ticks[t], image), tokens_T, self._config.window,
                                   keep_idle=self._options.keep_idle, where=lines,
                                   hint="keep them with --config.options.keep_idle=true, or ")

    def _pair(self, recording: Recording) -> tuple[Path, Path]:
        return self._folder / f"{recording.detail}.mp4", self._folder / f"{recording.detail}.jsonl"

    def _step(self, tick: Tick, image: bytes | np.ndarray) -> SourceStep:
        assert isinstance(image, np.ndarray)  # from a video
        if self._options.cursor and tick.cursor is not None:
            x, y = np.clip(tick.cursor, -_FAR, _FAR) * (image.shape[0] / _MOUSE_HEIGHT)
            draw_cursor(image, int(x), int(y))
        return SourceStep({self._camera: image}, {"buttons": tick.buttons, "camera": tick.camera})


def read_ticks(path: Path, low: np.ndarray, high: np.ndarray) -> list[Tick]:
    """The lines of a jsonl file as actions, with the camera clipped to `low` and `high` (pitch and yaw in degrees).

    Raises:
        BadDataError: a line is not a JSON object, or lacks a key; file and line.
    """
    ticks: list[Tick] = []
    stuck, slot = False, 0
    for row in read_jsonl(path):
        mouse, new = _field(row, "mouse", dict), _list(row, "mouse", "newButtons", int)
        if not ticks:
            stuck = new == [0]
        elif 0 in new:
            stuck = False
        down = [_KEYBOARD.get(key) for key in _list(row, "keyboard", "keys", str)]  # other keys have no button
        down += [_MOUSE.get(button) for button in _list(row, "mouse", "buttons", int) if not (stuck and button == 0)]
        selected = _field(row, "hotbar", int)
        if not 0 <= selected <= 8:
            raise BadDataError(f"{row.where}: found hotbar={selected}, expected a slot from 0 to 8")
        if selected != slot:
            down.append(f"hotbar.{selected + 1}")
        slot = selected
        buttons = np.zeros(len(_COLUMN), bool)
        buttons[[_COLUMN[button] for button in down if button is not None]] = True
        inner = Row(row.where, mouse)
        turn = np.asarray([inner.number("dy"), inner.number("dx")]) * _DEGREES
        is_open = _field(row, "isGuiOpen", bool)
        cursor = (inner.number("x"), inner.number("y")) if is_open else None
        ticks.append(Tick(buttons, np.clip(turn, low, high).astype(np.float32), cursor))
    if not ticks:
        raise BadDataError(f"{path}: has no lines; expected one for each frame of the video")
    return ticks


def _field(row: Row, key: str, kind: type) -> Any:
    value = row.values.get(key)
    if type(value) is not kind:
        raise BadDataError(f"{row.where}: found {key}={value!r}, expected a JSON {_JSON[kind]}")
    return value


def _list(row: Row, group: str, key: str, kind: type) -> list[Any]:
    value = _field(row, group, dict).get(key)
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise BadDataError(f"{row.where}: found {group}.{key}={value!r}, expected a JSON list of {_JSON[kind]}s")
    return value


_JSON = {dict: "object", int: "integer", bool: "true or false", str: "string"}

# 11 rows of pixels (# black, . white): the game's 16 x 16 cursor in a video of half the size.
_ARROW = ("#       ", "##      ", "#.#     ", "#..#    ", "#...#   ", "#....#  ", "#.....# ", "#..#####", "#.# #.# ",
          "##   #.#", "      ## ")


def draw_cursor(image: np.ndarray, x: int, y: int) -> None:
    """Draw an arrow into the image, with its tip at column `x` and row `y`, clipped at the borders."""
    for row, line in enumerate(_ARROW, y):
        for column, mark in enumerate(line, x):
            if mark != " " and 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                image[row, column] = 255 if mark == "." else 0
