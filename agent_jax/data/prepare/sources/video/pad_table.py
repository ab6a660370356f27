"""Reads a table of a gamepad's state as one action per video frame (gamepad.py lists the formats).

    time   Jump          frame 0 at 0.00 s: rows 0.00 and 0.02   Jump is down: it was pressed before frame 1
    0.00   0             frame 1 at 0.05 s: row 0.03
    0.02   1
    0.03   0

Sticks are not averaged: an action has their position when the frame is shown.
"""

from __future__ import annotations

import bisect
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from agent_jax.actions import ActionSpec
from agent_jax.actions.controls import Buttons, Stick
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.sources.table import Row, read_table
from agent_jax.data.prepare.sources.video.videos import Footage

Action = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class GamepadOptions:
    """`config.options` of this source."""

    buttons: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sticks: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    time: str = "time"
    frame: str = "frame"
    time_unit_s: float = 1.0
    pressed: float = 0.5
    stick_range: float = 1.0
    invert_y: bool = False
    max_gap_s: float = 1.0
    frames_hz: float = 0.0
    drop_idle: bool = False
    instructions: str = ""

    def __post_init__(self) -> None:
        for name in ("time_unit_s", "pressed", "stick_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"config.options.{name}={getattr(self, name)} must be positive")
        for key, columns in self.sticks.items():
            if len(columns) != 2:
                raise ValueError(f"config.options.sticks.{key}: found {columns}, expected the columns of x and y")


class PadTable:
    """Reads the tables of a spec of buttons and sticks."""

    def __init__(self, spec: ActionSpec, options: GamepadOptions):
        """Check the names.

        Raises:
            ValueError: the spec has other parts, or the options name a button or stick that it lacks.
        """
        self._spec, self._options = spec, options
        buttons = {name for part in spec.parts if isinstance(part, Buttons) for name in part.names}
        sticks = {part.key for part in spec.parts if isinstance(part, Stick)}
        for part in spec.parts:
            if not isinstance(part, (Buttons, Stick)):
                raise ValueError(f"config.action_spec: found the part {part.place} ({type(part).__name__}), expected "
                                 "buttons and sticks")

        for option, given, known in (("buttons", options.buttons, buttons), ("sticks", options.sticks, sticks)):
            for name in given:
                if name not in known:
                    raise ValueError(f"config.options.{option}: found {name!r}, expected one of the spec's: "
                                     f"{', '.join(sorted(known))}")

    def read(self, table: Path, shown: Footage) -> list[Action]:
        """One action per video frame."""
        rows = list(read_table(table))
        if not rows:
            raise BadDataError(f"{table}: has no rows; expected the pad's state in {shown.info.frames} frames")
        columns = rows[0].values
        if self._options.frame in columns:
            return self._by_frame(table, rows, shown)
        if self._options.time in columns:
            return self._by_time(rows, shown)
        raise BadDataError(f"{rows[0].where}: found the columns {', '.join(columns)}, expected {self._options.frame!r} "
                           f"(config.options.frame) or {self._options.time!r} (config.options.time)")

    def _by_frame(self, table: Path, rows: Sequence[Row], shown: Footage) -> list[Action]:
        first = rows[0].number(self._options.frame)
        for t, row in enumerate(rows):
            number = row.number(self._options.frame)
            if number != first + t or first not in (0, 1):
                raise BadDataError(f"{row.where}: found frame {number:g}, expected {first + t if t else '0 or 1'}; one "
                                   "row per frame, in order")
        if len(rows) != shown.info.frames:
            raise BadDataError(f"{rows[-1].where}: the last of {len(rows)} rows, {shown.expected}")
        return [self._action(row) for row in rows]

    def _by_time(self, rows: Sequence[Row], shown: Footage) -> list[Action]:
        times = [row.number(self._options.time) * self._options.time_unit_s for row in rows]
        for before, after, row in zip(times, times[1:], rows[1:], strict=False):
            if after < before:
                raise BadDataError(f"{row.where}: found {after:g} s after {before:g} s, expected times in order")
        actions = [self._action(row) for row in rows]
        found: list[Action] = []
        for t in range(shown.info.frames):
            at = t / shown.info.rate_hz
            last = bisect.bisect_right(times, at + 1e-6) - 1
            if last < 0 or 0 < self._options.max_gap_s < at - times[last]:
                near = rows[max(last, 0)]
                raise BadDataError(f"{near.where}: found {times[max(last, 0)]:g} s as the last row before frame {t} at "
                                   f"{at:.3f} s of {shown.path}, expected one at most {self._options.max_gap_s:g} s "
                                   "older (config.options.max_gap_s), and time 0 at the first frame")
            until = bisect.bisect_left(times, (t + 1) / shown.info.rate_hz - 1e-6)
            found.append(self.merged(actions[last : max(until, last + 1)]))
        length_s = shown.info.frames / shown.info.rate_hz
        late = len(rows) - bisect.bisect_left(times, length_s + 1 / shown.info.rate_hz)
        if late:
            logging.getLogger(__name__).warning("%s: this row and those after it (%d of %d) lie after the %.3f s of "
                                                "%s; they are not used", rows[-late].where, late, len(rows), length_s,
                                                shown.path)
        return found

    def _action(self, row: Row) -> Action:
        action: Action = {}
        for part in self._spec.parts:
            if isinstance(part, Buttons):
                columns = [self._options.buttons.get(name, name) for name in part.names]
                values = [row.number(column) for column in columns]
                for column, value in zip(columns, values, strict=True):
                    if not 0 <= value <= 1:
                        raise BadDataError(f"{row.where}: found {column}={value:g}, expected a button between 0 and 1")
                action[part.key] = np.asarray(values) >= self._options.pressed
            else:
                columns = self._options.sticks.get(part.key, (f"{part.key}_x", f"{part.key}_y"))
                values = [row.number(column) / self._options.stick_range for column in columns]
                most = self._options.stick_range
                for column, value in zip(columns, values, strict=True):
                    if abs(value) > 1.001:  # an XInput stick runs from -32768 to 32767
                        raise BadDataError(f"{row.where}: found {column}={value * most:g}, expected -{most:g} to "
                                           f"{most:g} (config.options.stick_range)")
                x, y = np.clip(values, -1, 1)
                action[part.key] = np.asarray([x, -y if self._options.invert_y else y], np.float32)
        return action

    def merged(self, actions: Sequence[Action]) -> Action:
        """The action of several rows: the first position of sticks; buttons that were down at any time."""
        pressed = {part.key for part in self._spec.parts if isinstance(part, Buttons)}
        return {key: np.any([action[key] for action in actions], axis=0) if key in pressed else value
                for key, value in actions[0].items()}
