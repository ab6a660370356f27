"""Minecraft by contractors, as OpenAI published it for VPT (Baker et al., arXiv 2206.11795): pairs of files at 20 Hz.

    FOLDER/NAME.mp4      one frame a tick, 640 x 360
    FOLDER/NAME.jsonl    one line a tick: mouse {dx, dy, x, y, buttons, newButtons}, keyboard {keys}, hotbar, isGuiOpen

A line becomes the action of `actions.MINECRAFT`: 23 buttons, and the camera's (pitch, yaw) in degrees = mouse (dy, dx)
* 360 / 2400. As VPT's own loader does, an attack that is down from the first line on is left out until it is pressed
again, and a change of the selected slot is a press of its hotbar key, because the mouse wheel was not recorded. Idle
chunks of `config.window` steps are left out (sources/chunks.py). Where a screen of the game is open, its cursor, which
the video lacks, is drawn at the mouse's place.

Options:
    instructions    CSV or JSONL with the columns name (NAME) and instruction; else config.instruction_text
    cursor          draw the cursor (default true)
    keep_idle       keep idle chunks too (default false)
    trailing        so many lines or frames too many at the end of a recording are passed over (default 0: refused;
                    always refused where an edit list hides frames: then the surplus may lie at the beginning)
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions import MINECRAFT, ActionSpec
from agent_jax.actions.vocabulary import MINECRAFT_BUTTONS
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import no_fields, typed_options
from agent_jax.data.prepare.sources.chunks import active_stretches, said_tokens
from agent_jax.data.prepare.sources.instructions import Instructions
from agent_jax.data.prepare.sources.source import BadDataError, Recording, Schema, SourceEpisode, SourceStep
from agent_jax.data.prepare.sources.table import Row, read_jsonl
from agent_jax.data.prepare.sources.video.videos import (
    camera_name,
    checked_rate,
    open_footage,
    readable_infos,
    stored_size,
)

RATE_HZ = 20.0  # ticks of the game
_DEGREES = 360 / 2400  # a count of the mouse, at VPT's sensitivity
_MOUSE_HEIGHT = 720  # the mouse's x and y are in a window of 1280 x 720, whatever the video's size
_FAR = 1e6  # a mouse there is outside of any window; a float64 may be too large for an integer

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
    cursor: tuple[float, float] | None  # x, y of the mouse where a screen is open


class VptSource:
    """A folder of pairs; implements `source.Source`."""

    def __init__(self, path: Path, config: PrepareConfig):
        self.options: VptOptions = typed_options(VptOptions, config)
        no_fields(config, "a line of VPT has one form")
        self.action_spec = dict(config.action_spec) or MINECRAFT.to_dict()
        self._spec = ActionSpec.from_dict(self.action_spec)
        if dict(self._spec.fields) != dict(MINECRAFT.fields):
            raise ValueError(f"config.action_spec: found the keys {', '.join(self._spec.fields)}, expected those of "
                             "agent_jax.actions.datasets.MINECRAFT: buttons (23) and camera (2)")
        if config.rate_hz not in (0.0, RATE_HZ):
            raise ValueError(f"config.rate_hz={config.rate_hz}: expected 0 or {RATE_HZ:g}, the game's ticks a second")
        self.state_spec: Mapping[str, Any] = {}
        self.rate_hz = RATE_HZ
        self._config, self._folder = config, path if path.is_dir() else path.parent
        files = itertools.chain(path.rglob("*.mp4"), path.rglob("*.jsonl")) if path.is_dir() else [path]
        texts = self._folder / self.options.instructions
        names = {file.relative_to(self._folder).with_suffix("").as_posix() for file in files if file != texts}
        if not names:
            raise FileNotFoundError(f"{path}: found no mp4 or jsonl file, expected pairs NAME.mp4 and NAME.jsonl")
        self._names = sorted(names)
        self._instructions = Instructions(self._folder, self.options.instructions, config)
        self._camera = camera_name(config)
        videos = (self._folder / f"{name}.mp4" for name in self._names)
        self.schema = Schema({self._camera: stored_size(readable_infos(videos), config)}, self._spec.fields)

    def recordings(self) -> list[Recording]:
        """One a name, whether it has both files or not: what is missing is said when it is read."""
        return [Recording(name, str(self._folder / f"{name}.mp4"), detail=name) for name in self._names]

    def files(self, recording: Recording) -> list[Path]:
        """The pair, and the table of instructions."""
        pair = [self._folder / f"{recording.detail}{suffix}" for suffix in (".mp4", ".jsonl")]
        return [*pair, *self._instructions.files]

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """One episode, in the stretches that are not idle; its video is decoded once."""
        video, lines = (self._folder / f"{recording.detail}{suffix}" for suffix in (".mp4", ".jsonl"))
        for path in (video, lines):
            if not path.is_file():
                raise BadDataError(f"{path}: not found; expected a pair {recording.detail}.mp4 and .jsonl")
        instruction = self._instructions.of(Path(recording.detail).name)
        low, high = self._spec.bounds("camera")
        ticks = read_ticks(lines, low, high)
        shown = open_footage(video)
        checked_rate(video, shown.info.rate_hz, RATE_HZ)
        surplus = abs(shown.info.frames - len(ticks))
        if surplus > (0 if shown.info.hidden else self.options.trailing):
            advice = "" if shown.info.hidden else (
                "; leave the recording out, or pass over what is too much at the end with "
                f"--config.options.trailing={surplus}")
            raise BadDataError(f"{lines}:{len(ticks)}: the last of {len(ticks)} lines, {shown.expected}{advice}")
        del ticks[shown.info.frames :]
        counts = [said_tokens(self._spec, {"buttons": tick.buttons, "camera": tick.camera}) for tick in ticks]
        frames = enumerate(shown.images())
        stretches = active_stretches(counts, self._config.window, keep_idle=self.options.keep_idle)
        if not stretches:
            raise BadDataError(f"{lines}: every chunk of {self._config.window} lines is idle; keep them with "
                               "--config.options.keep_idle=true, or leave such recordings out with --on_error=skip")
        for start, stop in stretches:
            steps = self._steps(ticks, frames, start, stop, video)
            yield SourceEpisode(recording.name, instruction, steps, start=start, ends=stop == len(ticks))
        for _ in frames:  # to the end: a video with more or fewer frames than it says was paired wrongly
            pass

    def _steps(self, ticks: Sequence[Tick], frames: Iterator[tuple[int, bytes | np.ndarray]], start: int, stop: int,
               video: Path) -> Iterator[SourceStep]:
        for t, image in frames:
            if t < start:
                continue
            assert isinstance(image, np.ndarray)  # of a video
            tick = ticks[t]
            if self.options.cursor and tick.cursor is not None:
                scale = image.shape[0] / _MOUSE_HEIGHT
                x, y = np.clip(tick.cursor, -_FAR, _FAR) * scale
                draw_cursor(image, int(x), int(y))
            yield SourceStep({self._camera: image}, {"buttons": tick.buttons, "camera": tick.camera})
            if t == stop - 1:
                return
        raise BadDataError(f"{video}: ends before frame {stop - 1}, expected {len(ticks)} frames")


def open_source(path: Path, config: PrepareConfig) -> VptSource:
    """The pairs below the folder `path`, or the one pair that the file `path` belongs to."""
    return VptSource(path, config)


def read_ticks(path: Path, low: np.ndarray, high: np.ndarray) -> list[Tick]:
    """The lines of a jsonl file as actions.

    Args:
        path: of the file.
        low: least pitch and yaw in degrees; the camera is clipped to them.
        high: largest pitch and yaw.

    Raises:
        BadDataError: a line is no JSON object, or lacks a key; file and line.
    """
    ticks: list[Tick] = []
    stuck, slot = False, 0
    for row in read_jsonl(path):
        mouse, new = _field(row, "mouse", dict), _list(row, "mouse", "newButtons", int)
        if not ticks:
            stuck = new == [0]
        elif 0 in new:
            stuck = False
        down = [_KEYBOARD.get(key) for key in _list(row, "keyboard", "keys", str)]  # other keys mean nothing
        down += [_MOUSE.get(button) for button in _list(row, "mouse", "buttons", int) if not (stuck and button == 0)]
        now = _field(row, "hotbar", int)
        if not 0 <= now <= 8:
            raise BadDataError(f"{row.where}: found hotbar={now}, expected a slot from 0 to 8")
        if now != slot:
            down.append(f"hotbar.{now + 1}")
        slot = now
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

# 11 rows of pixels (# black, . white): what the 16 x 16 cursor of the game covers in a video of half its size.
_ARROW = ("#       ", "##      ", "#.#     ", "#..#    ", "#...#   ", "#....#  ", "#.....# ", "#..#####", "#.# #.# ",
          "##   #.#", "      ## ")


def draw_cursor(image: np.ndarray, x: int, y: int) -> None:
    """Draw an arrow into the image, its tip at column `x` and row `y`; what lies outside is cut off."""
    for row, line in enumerate(_ARROW, y):
        for column, mark in enumerate(line, x):
            if mark != " " and 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                image[row, column] = 255 if mark == "." else 0
