"""Parts of an action with a variable number of tokens: the buttons, camera and sticks of games (see parts.py)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from agent_jax.actions.automaton import Transitions, join
from agent_jax.actions.parts import Limits, MakeState, check_count, not_a_number, stored

MOST_BUTTONS = 1024  # of a spec: all later buttons may follow one, so the automaton grows with the square


@dataclasses.dataclass(frozen=True)
class Control:
    """Base class: the part is all of values[key], and its number of tokens varies."""

    key: str
    index: ClassVar[None] = None
    fixed: ClassVar[bool] = False  # whether it is always one token
    sorted_ids: ClassVar[bool] = False  # whether its ids are in ascending order, not in that of the symbols

    @property
    def place(self) -> str:
        """How errors name the value."""
        return self.key


@dataclasses.dataclass(frozen=True)
class Buttons(Control):
    """Any subset of named buttons; the value is a boolean for each button, in the order of `names`."""

    names: tuple[str, ...]  # also the tokens
    unit: str = ""
    sorted_ids: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if self.names:
            check_count(self.key, "number of buttons", len(self.names), 1, MOST_BUTTONS)
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"{self.key}: found buttons {self.names}, expected at least one and no repetition")

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.names)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens by symbol."""
        return self.names

    @property
    def limits(self) -> Limits:
        """(low, high) of each component."""
        return ((0.0, 1.0),) * len(self.names)

    def symbols(self, value: Sequence[float]) -> list[int]:
        """The buttons that are down."""
        for i, down in enumerate(value):
            if down not in (0, 1):
                raise ValueError(f"{self.key}[{i}] ({self.names[i]}): found {down}, expected true or false")
        return [i for i, down in enumerate(value) if down]

    def value(self, symbols: Sequence[int]) -> list[bool]:
        """A boolean for each button."""
        return [i in symbols for i in range(len(self.names))]

    def grammar(self, ids: Sequence[int], follow: Transitions, make_state: MakeState) -> Transitions:
        """Transitions into this part, with `follow` after it: only later buttons may follow a button."""
        transitions = follow
        for token in sorted(ids, reverse=True):
            transitions = join({token: make_state(transitions)}, transitions)
        return transitions


@dataclasses.dataclass(frozen=True)
class Camera(Control):
    """A rotation in degrees, truncated towards 0 and clipped: a token for each axis, or none if both are 0.

    Degree d > 0 encodes [d, d + 1) and decodes to d + 0.5, d < 0 likewise to d - 0.5; 0 encodes (-1, 1) and decodes to
    0. The outermost degrees decode to `low` and `high`.
    """

    x_prefix: str = "CAMERAX"  # pitch
    y_prefix: str = "CAMERAY"  # yaw
    low: int = -49
    high: int = 50
    name: str = "pitch, yaw"
    unit: str = "deg"

    def __post_init__(self) -> None:
        if not (type(self.low) is int and type(self.high) is int and self.low < 0 < self.high):
            raise ValueError(f"{self.key}: found low={self.low}, high={self.high}, expected integers low < 0 < high")
        check_count(self.key, "degrees of both axes, 2 * (high - low + 1)", self.size, 6)

    @property
    def size(self) -> int:
        """The number of tokens."""
        return 2 * (self.high - self.low + 1)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens by symbol: all of x, then all of y."""
        degrees = range(self.low, self.high + 1)
        return tuple(f"{prefix}{d}" for prefix in (self.x_prefix, self.y_prefix) for d in degrees)

    @property
    def limits(self) -> Limits:
        """(low, high) of each component."""
        return ((float(self.low), float(self.high)),) * 2

    @property
    def _zeros(self) -> tuple[int, int]:
        """Symbols of 0 degrees in x and in y."""
        return -self.low, self.high + 1 - 2 * self.low

    def symbols(self, value: Sequence[float]) -> list[int]:
        """Symbols of (pitch, yaw) in degrees."""
        degrees: list[int] = []
        for i, angle in enumerate(value):
            if angle != angle:
                raise not_a_number(f"{self.key}[{i}]")
            degrees.append(int(max(self.low, min(self.high, angle))))
        if degrees == [0, 0]:
            return []
        x0, y0 = self._zeros
        return [x0 + degrees[0], y0 + degrees[1]]

    def value(self, symbols: Sequence[int]) -> list[float]:
        """(pitch, yaw) at the bin centres, clipped to [low, high]."""
        degrees = [symbol - zero for symbol, zero in zip(symbols, self._zeros, strict=True)] if symbols else [0, 0]
        return [float(min(max(d + 0.5 * ((d > 0) - (d < 0)), self.low), self.high)) for d in degrees]

    def grammar(self, ids: Sequence[int], follow: Transitions, make_state: MakeState) -> Transitions:
        """Transitions into this part: x then y, except zero and zero, which have no tokens."""
        half, (x0, y0) = len(ids) // 2, self._zeros
        any_y = dict.fromkeys(ids[half:], make_state(follow))
        some_y = {token: after for token, after in any_y.items() if token != ids[y0]}
        transitions = dict.fromkeys(ids[:half], make_state(any_y)) | {ids[x0]: make_state(some_y)}
        return join(transitions, follow)


@dataclasses.dataclass(frozen=True)
class Stick(Control):
    """A stick's (x, y) in the unit disc as rotation and magnitude in equal bins; no tokens if it is neutral.

    Rotations count from 1 at +x, counter-clockwise; magnitudes from 1 over (dead_zone, 1]. Both decode to bin centres.
    """

    rotation_prefix: str
    magnitude_prefix: str
    rotations: int = 256
    magnitudes: int = 4
    dead_zone: float = 0.0  # magnitudes up to it are neutral
    name: str = "x, y"
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dead_zone", float(self.dead_zone))
        check_count(self.key, "rotations", self.rotations, 1)
        check_count(self.key, "magnitudes", self.magnitudes, 1)
        check_count(self.key, "rotations + magnitudes", self.size, 2)
        if not 0 <= self.dead_zone < 1:
            raise ValueError(f"{self.key}: found dead_zone={self.dead_zone}, expected a number in [0, 1)")
        pairs = [(r, 0) for r in range(self.rotations)] + [(0, m) for m in range(self.magnitudes)]
        for rotation, magnitude in pairs:
            symbols = [rotation, self.rotations + magnitude]
            x, y = self.value(symbols)
            if self.symbols((stored(x), stored(y))) != symbols:
                raise ValueError(f"{self.key}: {self.rotations} rotations and {self.magnitudes} magnitudes above "
                                 f"dead_zone={self.dead_zone} are too fine for float32; use fewer")

    @property
    def size(self) -> int:
        """The number of tokens."""
        return self.rotations + self.magnitudes

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens by symbol: all rotations, then all magnitudes."""
        return (*(f"{self.rotation_prefix}{r + 1}" for r in range(self.rotations)),
                *(f"{self.magnitude_prefix}{m + 1}" for m in range(self.magnitudes)))

    @property
    def limits(self) -> Limits:
        """(low, high) of each component."""
        return ((-1.0, 1.0),) * 2

    def symbols(self, value: Sequence[float]) -> list[int]:
        """Symbols of (x, y); beyond the unit circle the magnitude is clipped."""
        x, y = value
        if x != x or y != y:
            raise not_a_number(f"{self.key}[{0 if x != x else 1}]")
        length = math.hypot(x, y)
        if length <= self.dead_zone:
            return []
        rotation = math.atan2(y, x) / math.tau % 1.0
        magnitude = int((min(length, 1.0) - self.dead_zone) / (1 - self.dead_zone) * self.magnitudes)
        return [int(rotation * self.rotations) % self.rotations,  # a tiny negative rotation % 1.0 rounds to 1.0
                self.rotations + min(magnitude, self.magnitudes - 1)]

    def value(self, symbols: Sequence[int]) -> list[float]:
        """(x, y) at the bin centres of rotation and magnitude."""
        if not symbols:
            return [0.0, 0.0]
        angle = (symbols[0] + 0.5) * math.tau / self.rotations
        share = (symbols[1] - self.rotations + 0.5) / self.magnitudes
        length = self.dead_zone + share * (1 - self.dead_zone)
        return [length * math.cos(angle), length * math.sin(angle)]

    def grammar(self, ids: Sequence[int], follow: Transitions, make_state: MakeState) -> Transitions:
        """Transitions into this part: rotation then magnitude, or what follows it."""
        magnitude = make_state(dict.fromkeys(ids[self.rotations :], make_state(follow)))
        return join(dict.fromkeys(ids[: self.rotations], magnitude), follow)
