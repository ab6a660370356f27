"""Parts of an action that may say nothing: the buttons, camera and sticks of games (see parts.py)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from agent_jax.actions.automaton import Transitions, join
from agent_jax.actions.parts import Limits, MakeState, check_count, not_a_number, stored

MOST_BUTTONS = 1024  # of a spec: what may follow a button is all later ones, so that the automaton grows as the square


@dataclasses.dataclass(frozen=True)
class Control:
    """What the three share: the whole of values[key], and as many tokens as there is to say."""

    key: str
    index: ClassVar[None] = None
    fixed: ClassVar[bool] = False
    sorts: ClassVar[bool] = False  # whether its ids are said in ascending order rather than in the order of the symbols

    @property
    def place(self) -> str:
        """How errors name the value."""
        return self.key


@dataclasses.dataclass(frozen=True)
class Buttons(Control):
    """Any subset of named buttons; the value is one boolean a button, in the order of `names`."""

    names: tuple[str, ...]  # also the tokens
    unit: str = ""
    sorts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if self.names:
            check_count(self.key, "number of buttons", len(self.names), 1, MOST_BUTTONS)
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"{self.key}: found buttons {self.names}, expected at least one and no repetition")

    @property
    def size(self) -> int:
        """How many tokens it has."""
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
        """One boolean a button."""
        return [i in symbols for i in range(len(self.names))]

    def grammar(self, ids: Sequence[int], follow: Transitions, make_state: MakeState) -> Transitions:
        """Ways into this part: after a button only later ones may follow, then the way out."""
        ways = follow
        for token in sorted(ids, reverse=True):
            ways = join({token: make_state(ways)}, ways)
        return ways


@dataclasses.dataclass(frozen=True)
class Camera(Control):
    """A turn in whole degrees, truncated towards 0 and clipped: both tokens, or neither when neither axis turns.

    Degree d > 0 stands for [d, d + 1) and decodes to d + 0.5, d < 0 likewise to d - 0.5; 0, for (-1, 1), decodes to 0.
    The outermost degrees decode to `low` and `high` themselves.
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
        """How many tokens it has."""
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
        for i, turn in enumerate(value):
            if turn != turn:
                raise not_a_number(f"{self.key}[{i}]")
            degrees.append(int(max(self.low, min(self.high, turn))))
        if degrees == [0, 0]:
            return []
        x0, y0 = self._zeros
        return [x0 + degrees[0], y0 + degrees[1]]

    def value(self, symbols: Sequence[int]) -> list[float]:
        """(pitch, yaw) at the bin centres, clipped to [low, high]."""
        degrees = [symbol - zero for symbol, zero in zip(symbols, self._zeros, strict=True)] if symbols else [0, 0]
        return [float(min(max(d + 0.5 * ((d > 0) - (d < 0)), self.low), self.high)) for d in degrees]

    def grammar(self, ids: Sequence[int], follow: Transitions, make_state: MakeState) -> Transitions:
        """Ways into this part: x then y, but never zero and zero, which `symbols` leaves unsaid."""
        half, (x0, y0) = len(ids) // 2, self._zeros
        any_y = dict.fromkeys(ids[half:], make_state(follow))
        some_y = {token: after for token, after in any_y.items() if token != ids[y0]}
        ways = dict.fromkeys(ids[:half], make_state(any_y)) | {ids[x0]: make_state(some_y)}
        return join(ways, follow)


@dataclasses.dataclass(frozen=True)
class Stick(Control):
    """A stick's (x, y) in the unit disc as rotation and magnitude in equal steps; a neutral stick says nothing.

    Rotation counts from 1 at +x, counter-clockwise; magnitude from 1 over (dead_zone, 1]. Both decode to centres.
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
            raise ValueError(f"{self.key}: found rotations={self.rotations}, magnitudes={self.magnitudes}, dead_zone="
                             f"{self.dead_zone}, expected at least 1, at least 1, and [0, 1)")
        pairs = [(r, 0) for r in range(self.rotations)] + [(0, m) for m in range(self.magnitudes)]
        for rotation, magnitude in pairs:
            symbols = [rotation, self.rotations + magnitude]
            x, y = self.value(symbols)
            if self.symbols((stored(x), stored(y))) != symbols:
                raise ValueError(f"{self.key}: {self.rotations} rotations and {self.magnitudes} magnitudes above "
                                 f"dead_zone={self.dead_zone} are finer than float32 can tell apart; take fewer")

    @property
    def size(self) -> int:
        """How many tokens it has."""
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
        turn = math.atan2(y, x) / math.tau % 1.0
        magnitude = int((min(length, 1.0) - self.dead_zone) / (1 - self.dead_zone) * self.magnitudes)
        return [int(turn * self.rotations) % self.rotations,  # a tiny negative turn % 1.0 rounds to 1.0
                self.rotations + min(magnitude, self.magnitudes - 1)]

    def value(self, symbols: Sequence[int]) -> list[float]:
        """(x, y) at the centres of rotation and magnitude."""
        if not symbols:
            return [0.0, 0.0]
        angle = (symbols[0] + 0.5) * math.tau / self.rotations
        share = (symbols[1] - self.rotations + 0.5) / self.magnitudes
        length = self.dead_zone + share * (1 - self.dead_zone)
        return [length * math.cos(angle), length * math.sin(angle)]

    def grammar(self, ids: Sequence[int], follow: Transitions, make_state: MakeState) -> Transitions:
        """Ways into this part: rotation then magnitude, or straight on."""
        magnitude = make_state(dict.fromkeys(ids[self.rotations :], make_state(follow)))
        return join(dict.fromkeys(ids[: self.rotations], magnitude), follow)
