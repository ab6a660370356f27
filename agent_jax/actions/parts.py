"""Parts of an action or a state that are always said: a binned number, a choice of one in n.

A part turns its share of the values into symbols, and symbols back into bin centres within the part's limits. A symbol
is the number of a token within `part.tokens`; which vocabulary id that is, only `action_codec` knows.

    part      value                      symbols
    Bins      one number                 always one of `count`
    Choice    one of n given numbers     always one of n
    (controls.py)
    Buttons   n booleans                 any subset, in vocabulary order
    Camera    (pitch, yaw)               both or, when neither turns, none
    Stick     (x, y)                     rotation and magnitude or, when neutral, none

Every part is exactly invertible: `symbols(value(s)) == s`, also when the values in between are stored as float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from agent_jax.actions.automaton import Transitions

MakeState = Callable[[Transitions], int]  # AutomatonBuilder.state
Limits = tuple[tuple[float, float], ...]


_LARGEST = 1e38  # values must fit in float32
# Tokens of a part, and of a whole spec: as many as all of OPT's and more. A data set brings its specs, and must not
# decide about all memory.
MOST_TOKENS = 2**16


def stored(value: float) -> float:
    """`value` as it comes back from a float32 array."""
    return float(np.float32(value))


def inner(bound: float | np.ndarray, inside: float) -> np.ndarray:
    """The float32 next to `bound` on the side of `inside` (+-inf), or `bound` itself where a float32 holds it."""
    exact = np.asarray(bound, np.float64)
    rounded = exact.astype(np.float32)
    outside = rounded < exact if inside > 0 else rounded > exact
    return np.where(outside, np.nextafter(rounded, np.float32(inside)), rounded)


def check_count(place: str, name: str, value: int, least: int, most: int = MOST_TOKENS) -> None:
    """Refuse a field `name` of a part that is no whole number of `least` to `most`; raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{place}: found {name}={value!r:.40}, expected a whole number of at least {least} and at "
                         f"most {most:,}")


def not_a_number(place: str) -> ValueError:
    """The error for a NaN at `place`."""
    return ValueError(f"{place}: found nan, expected a number; repair or drop this step")


@dataclasses.dataclass(frozen=True)
class FixedPart:
    """What `Bins` and `Choice` share: exactly one token, for one component of values[key]."""

    key: str
    index: int | None  # component of values[key]; None: the key is a scalar
    fixed: ClassVar[bool] = True
    sorts: ClassVar[bool] = False  # whether its ids are said in ascending order rather than in the order of the symbols

    @property
    def place(self) -> str:
        """Where the value stands."""
        return self.key if self.index is None else f"{self.key}[{self.index}]"

    @property
    def named(self) -> str:
        """The place, and the name of the number where it has one: "action[0] (dx)"."""
        name = getattr(self, "name", "")
        return f"{self.place} ({name})" if name not in ("", self.place) else self.place

    def grammar(self, ids: Sequence[int], follow: Transitions, make_state: MakeState) -> Transitions:
        """Ways into this part, `follow` being the ways out of it."""
        return dict.fromkeys(ids, make_state(follow))


@dataclasses.dataclass(frozen=True)
class Bins(FixedPart):
    """A number in `count - 1` equal bins over [low, high], and one more index for the top edge itself.

    k = int((clip(x, low, high) - low) / w), w = (high - low) / (count - 1); decodes to low + (k + 0.5) w
    (arXiv 2402.05929: 21 indices; -0.0285 + 0.003 k in Language-Table), clipped to [low, high]: the top edge decodes to
    `high`, or to the next float32 below it where no float32 holds it. That float32 counts as the top edge as well.
    """

    prefix: str  # the token of bin k is f"{prefix}{k}"
    low: float
    high: float
    count: int = 21
    name: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))
        if not -_LARGEST < self.low < self.high < _LARGEST:
            raise ValueError(f"{self.named}: found bounds low={self.low}, high={self.high}, expected finite low < high")
        check_count(self.named, "count", self.count, 2)  # one bin and the top edge
        if not all(self.symbols(stored(self.value([k]))) == [k] for k in range(self.count)):
            raise ValueError(f"{self.named}: {self.count} bins over [{self.low}, {self.high}] are narrower than "
                             "float32 can tell apart; widen the bounds")

    @property
    def size(self) -> int:
        """How many tokens it has."""
        return self.count

    @functools.cached_property
    def width(self) -> float:
        """w, the width of a bin."""
        return (self.high - self.low) / (self.count - 1)

    @functools.cached_property
    def _ends(self) -> tuple[float, float]:
        """The least and the greatest float32 within [low, high]."""
        return float(inner(self.low, np.inf)), float(inner(self.high, -np.inf))

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens by symbol."""
        return tuple(f"{self.prefix}{k}" for k in range(self.count))

    @property
    def limits(self) -> Limits:
        """(low, high) of each component."""
        return ((self.low, self.high),)

    def symbols(self, value: float) -> list[int]:
        """The bin of `value`; beyond the bounds, the nearest."""
        if self.low < value < self.high and value != self._ends[1]:
            k = int((value - self.low) / self.width)
            return [k if k < self.count - 1 else self.count - 2]  # rounding must not reach the top edge
        if value != value:
            raise not_a_number(self.named)
        return [0 if value <= self.low else self.count - 1]

    def value(self, symbols: Sequence[int]) -> float:
        """The centre of the bin; of the top edge, `high`. As a float32 too it lies in [low, high]."""
        least, greatest = self._ends
        return min(max(self.low + (symbols[0] + 0.5) * self.width, least), greatest)


@dataclasses.dataclass(frozen=True)
class Choice(FixedPart):
    """One of n tokens; `values` are the numbers they stand for, 0..n-1 unless given."""

    tokens: tuple[str, ...]
    values: tuple[float, ...] = ()
    name: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))
        if self.tokens:
            check_count(self.named, "number of tokens", len(self.tokens), 1)
        if not self.tokens or len(set(self.tokens)) != len(self.tokens):
            raise ValueError(f"{self.named}: found tokens {self.tokens}, expected at least one and no repetition")
        if self.values and len(self.values) != len(self.tokens):
            raise ValueError(f"{self.named}: found {len(self.values)} values for {len(self.tokens)} tokens")
        finite = all(-_LARGEST < value < _LARGEST for value in self.numbers)
        if not finite or len({stored(value) for value in self.numbers}) != len(self.tokens):
            raise ValueError(f"{self.named}: found values {self.values}, expected finite ones that float32 tells apart")

    @property
    def size(self) -> int:
        """How many tokens it has."""
        return len(self.tokens)

    @property
    def numbers(self) -> tuple[float, ...]:
        """The number of each token."""
        return self.values or tuple(range(len(self.tokens)))

    @property
    def limits(self) -> Limits:
        """(low, high) of each component, of the numbers as given and as float32 stores them."""
        numbers = {*self.numbers, *map(stored, self.numbers)}
        return ((min(numbers), max(numbers)),)

    @functools.cached_property
    def _symbol_of(self) -> dict[float, int]:
        exact = {number: symbol for symbol, number in enumerate(self.numbers)}
        return {stored(number): symbol for number, symbol in exact.items()} | exact

    def symbols(self, value: float) -> list[int]:
        """The token of `value`, which must be one of the numbers: a choice has no neighbours to clip to."""
        symbol = self._symbol_of.get(value)
        if symbol is None:
            pairs = list(zip(self.numbers, self.tokens, strict=True))
            meant = ", ".join(f"{number} ({token})" for number, token in pairs[:12])
            more = f", ... ({len(pairs)} in all)" if len(pairs) > 12 else ""
            raise ValueError(f"{self.named}: found {value}, expected one of {meant}{more}")
        return [symbol]

    def value(self, symbols: Sequence[int]) -> float:
        """The number of the token."""
        return self.numbers[symbols[0]]
