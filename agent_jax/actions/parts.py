"""Parts of an action or state with exactly one token: a binned number, or a choice of one in n.

A part encodes its components as symbols, and decodes symbols to bin centres within the part's limits. A symbol is the
index of a token in `part.tokens`; codec.py maps it to a vocabulary id.

    part      value                      symbols
    Bins      one number                 always one of `count`
    Choice    one of n given numbers     always one of n
    (controls.py)
    Buttons   n booleans                 any subset, in vocabulary order
    Camera    (pitch, yaw)               both or, when neither turns, none
    Stick     (x, y)                     rotation and magnitude or, when neutral, none

Every part is exactly invertible: `symbols(value(s)) == s`, even if the value is rounded to float32 in between.
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
# Of a part, and of a spec; more than OPT has. It limits the memory that the specs of a data set can take.
MOST_TOKENS = 2**16


def place_of(key: str, index: int | None) -> str:
    """The name of a component in messages: "action[0]", or "action" without an index."""
    return key if index is None else f"{key}[{index}]"


def stored(value: float) -> float:
    """`value` rounded to float32."""
    return float(np.float32(value))


def inner(bound: float | np.ndarray, inside: float) -> np.ndarray:
    """`bound` as float32, rounded towards `inside` (+-inf)."""
    exact = np.asarray(bound, np.float64)
    rounded = exact.astype(np.float32)
    outside = rounded < exact if inside > 0 else rounded > exact
    return np.where(outside, np.nextafter(rounded, np.float32(inside)), rounded)


def check_count(place: str, name: str, value: int, least: int, most: int = MOST_TOKENS) -> None:
    """Refuse a field `name` of a part that is not a whole number from `least` to `most`; raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{place}: found {name}={value!r:.40}, expected a whole number of at least {least} and at "
                         f"most {most:,}")


def not_a_number(place: str) -> ValueError:
    """The error for a NaN at `place`."""
    return ValueError(f"{place}: found nan, expected a number; repair or remove this step")


@dataclasses.dataclass(frozen=True)
class FixedPart:
    """Base class: exactly one token, for one component of values[key]."""

    key: str
    index: int | None  # component of values[key]; None: the key is a scalar
    fixed: ClassVar[bool] = True  # whether it is always one token
    sorted_ids: ClassVar[bool] = False  # whether its ids are in ascending order, not in that of the symbols

    @property
    def place(self) -> str:
        """The name of the component in messages, as "action[0]"."""
        return place_of(self.key, self.index)

    @property
    def named(self) -> str:
        """The place with the part's name, if it has one: "action[0] (dx)"."""
        name = getattr(self, "name", "")
        return f"{self.place} ({name})" if name not in ("", self.place) else self.place

    def grammar(self, ids: Sequence[int], follow: Transitions, make_state: MakeState) -> Transitions:
        """Transitions into this part, with `follow` after it."""
        return dict.fromkeys(ids, make_state(follow))


@dataclasses.dataclass(frozen=True)
class Bins(FixedPart):
    """A number in `count - 1` equal bins over [low, high], and one more index for the top edge.

    k = int((clip(x, low, high) - low) / w), w = (high - low) / (count - 1); decodes to low + (k + 0.5) w
    (arXiv 2402.05929: 21 indices; -0.0285 + 0.003 k in Language-Table), clipped to [low, high]. The top edge decodes to
    `high`, rounded down to float32, and that float32 encodes as the top edge.
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
            raise ValueError(f"{self.named}: {self.count} bins over [{self.low}, {self.high}] are too narrow "
                             "for float32; widen the bounds")

    @property
    def size(self) -> int:
        """The number of tokens."""
        return self.count

    @functools.cached_property
    def width(self) -> float:
        """w, the width of a bin."""
        return (self.high - self.low) / (self.count - 1)

    @functools.cached_property
    def _ends(self) -> tuple[float, float]:
        """The smallest and the largest float32 within [low, high]."""
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
        """The bin of `value`, which is clipped to the bounds."""
        if self.low < value < self.high and value != self._ends[1]:
            k = int((value - self.low) / self.width)
            return [k if k < self.count - 1 else self.count - 2]  # rounding must not reach the top edge
        if value != value:
            raise not_a_number(self.named)
        return [0 if value <= self.low else self.count - 1]

    def value(self, symbols: Sequence[int]) -> float:
        """The centre of the bin, or `high` for the top edge; rounded to float32 it is still in [low, high]."""
        smallest, largest = self._ends
        return min(max(self.low + (symbols[0] + 0.5) * self.width, smallest), largest)


@dataclasses.dataclass(frozen=True)
class Choice(FixedPart):
    """One of n tokens; `values` are their numbers, by default 0..n-1."""

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
            raise ValueError(f"{self.named}: found values {self.values}, expected finite, distinct float32 numbers")

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.tokens)

    @property
    def numbers(self) -> tuple[float, ...]:
        """The number of each token."""
        return self.values or tuple(range(len(self.tokens)))

    @property
    def limits(self) -> Limits:
        """(low, high) of each component, of the numbers both exact and rounded to float32."""
        numbers = {*self.numbers, *map(stored, self.numbers)}
        return ((min(numbers), max(numbers)),)

    @functools.cached_property
    def _symbol_of(self) -> dict[float, int]:
        exact = {number: symbol for symbol, number in enumerate(self.numbers)}
        return {stored(number): symbol for number, symbol in exact.items()} | exact

    def symbols(self, value: float) -> list[int]:
        """The token of `value`, which must be one of the numbers; raises ValueError."""
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
