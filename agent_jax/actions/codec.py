"""Encodes the values of one time step as vocabulary ids and decodes them, for a spec bound to a vocabulary.

    {"action": [0.01, -0.02]}  <->  [STARTACTION] [ROBOTACTIONX13] [ROBOTACTIONY3] [ENDOFACTION]

`encode` clips values out of bounds. `decode` returns bin centres within the bounds, and accepts exactly the sequences
that the automaton accepts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.actions.automaton import Automaton, AutomatonBuilder, Transitions, join
from agent_jax.actions.parts import Bins
from agent_jax.actions.specs import TERMINAL_KEY, ActionSpec, Part, StateSpec
from agent_jax.actions.vocabulary import Vocabulary


class _BoundPart:
    """A part with the ids of its tokens."""

    def __init__(self, part: Part, ids: list[int]):
        self.part, self.ids = part, ids
        self.key, self.index = part.key, part.index
        self.sorted_ids, self.symbols = part.sorted_ids, part.symbols
        self.symbol_of = {token: symbol for symbol, token in enumerate(ids)}

    @functools.cached_property
    def value_of(self) -> dict[int, Any]:
        """The value of each id; fixed parts only."""
        return {token: self.part.value([symbol]) for token, symbol in self.symbol_of.items()}

    def take(self, ids: Sequence[int]) -> list[int]:
        """Symbols of this part at the beginning of a legal sequence."""
        if self.part.fixed:
            return [self.symbol_of[ids[0]]]
        symbols: list[int] = []
        for token in ids:
            if token not in self.symbol_of:
                break
            symbols.append(self.symbol_of[token])
        return symbols


class BoundSpec:
    """A spec bound to a vocabulary: encodes, decodes, and has the automaton of legal sequences."""

    def __init__(self, spec: ActionSpec | StateSpec, vocabulary: Vocabulary):
        """Bind a spec to the vocabulary that has its block.

        Raises:
            ValueError: the vocabulary lacks the block or a token, or shared tokens make a sequence ambiguous.
        """
        self.spec, self.vocabulary = spec, vocabulary
        self._fields = spec.fields
        self._groups = [
            (vocabulary.id(spec.block, group.start),
             [_BoundPart(part, vocabulary.ids(spec.block, part.tokens).tolist()) for part in group.parts],
             vocabulary.id(spec.block, group.end))
            for group in spec.groups
        ]
        self._terminal: tuple[int, ...] = ()
        if spec.terminal:
            start, parts, end = self._groups[0]
            count = sum(part.part.fixed for part in parts)
            self._terminal = (start, *(vocabulary.id(spec.block, spec.terminal),) * count, end)
        self._check_unambiguous()
        self.automaton = self._build_automaton()

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence, delimiters included."""
        return self.automaton.max_length

    def encode(self, values: Mapping[str, Any]) -> np.ndarray:
        """int32 ids of one time step's values, delimiters included; other keys of `values` are ignored.

        Numbers out of bounds are clipped. {"terminal": True} gives `terminal_ids()` if the spec has them.

        Raises:
            ValueError: a value is missing, has another shape or type, is NaN, or is not a choice; names key and index.
        """
        if self._terminal and values.get(TERMINAL_KEY, False):
            return self.terminal_ids()
        plain = {key: self._plain(values, key, shape) for key, (shape, _) in self._fields.items()}
        ids: list[int] = []
        for start, parts, end in self._groups:
            ids.append(start)
            for part in parts:
                value = plain[part.key]
                symbols = part.symbols(value if part.index is None else value[part.index])
                part_ids = [part.ids[symbol] for symbol in symbols]
                ids += sorted(part_ids) if part.sorted_ids else part_ids
            ids.append(end)
        return np.array(ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Values at the bin centres, shaped and typed as in `spec.fields`; {"terminal": True} for `terminal_ids()`.

        Every value lies within `spec.bounds`.

        Raises:
            ValueError: not a complete legal sequence; names the position, the id found and those expected.
        """
        tokens = self._checked(ids)
        if self._terminal and tuple(tokens) == self._terminal:
            return {TERMINAL_KEY: np.array(True)}
        values = {key: np.zeros(shape, dtype) for key, (shape, dtype) in self._fields.items()}
        for _, part, symbols in self._split(tokens):
            values[part.key][... if part.index is None else part.index] = part.part.value(symbols)
        return values

    def choices(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """int32, for each id of legal sequences: the automaton's state if several ids are legal there, else -1.

        Raises:
            ValueError: an id is illegal at its position.
        """
        states = np.asarray(self.automaton.states(ids), np.int32)
        return np.where(self.automaton.choice_Q[states], states, np.int32(-1))

    def bins(self, ids: Sequence[int] | np.ndarray) -> list[tuple[int, Bins, dict[int, float]]]:
        """Position, part and {id: value} of each binned number of one legal sequence.

        Raises:
            ValueError: not a complete legal sequence.
        """
        tokens = self._checked(ids)
        if self._terminal and tuple(tokens) == self._terminal:
            return []
        return [(position, part.part, part.value_of) for position, part, _ in self._split(tokens)
                if isinstance(part.part, Bins)]

    def terminal_ids(self) -> np.ndarray:
        """int32 ids of the end-of-episode action: one terminal token for each fixed part, between the delimiters.

        Raises:
            ValueError: the spec has no terminal token.
        """
        if not self._terminal:
            raise ValueError(f"{self.spec.kind} spec {self.spec.name!r} has no terminal token")
        return np.array(self._terminal, np.int32)

    def _split(self, tokens: Sequence[int]) -> Iterator[tuple[int, _BoundPart, list[int]]]:
        """Position, part and symbols of each part of a legal sequence."""
        position = 0
        for _, parts, _ in self._groups:
            position += 1
            for part in parts:
                symbols = part.take(tokens[position:])
                yield position, part, symbols
                position += len(symbols)
            position += 1

    def _plain(self, values: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> Any:
        """values[key] as Python numbers, which for a few of them are faster than arrays."""
        if key not in values:
            raise ValueError(f"{self.spec.kind} spec {self.spec.name!r}: found the keys {sorted(values)}, expected "
                             f"{key!r}")
        try:
            array = np.asarray(values[key])
        except ValueError as error:  # ragged
            raise ValueError(f"{key}: found {values[key]!r}, expected an array of shape {shape}") from error
        if array.shape != shape or array.dtype.kind not in "biuf":
            raise ValueError(f"{key}: found shape {array.shape} of {array.dtype}, expected shape {shape} of numbers "
                             f"({self.spec.kind} spec {self.spec.name!r})")
        return array.tolist()

    def _checked(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(f"{self.spec.kind} {self.spec.name!r}: found ids of shape {array.shape} and type "
                             f"{array.dtype}, expected one sequence of integers")
        tokens: list[int] = array.tolist()
        automaton, state = self.automaton, self.automaton.start
        for position, token in enumerate(tokens):
            after = automaton.advance(state, token)
            if after < 0:
                raise ValueError(self._illegal(position, self._show(token), state))
            state = after
        if state != automaton.accept:
            raise ValueError(self._illegal(len(tokens), "the end", state))
        return tokens

    def _illegal(self, position: int, found: str, state: int) -> str:
        legal = self.automaton.legal(state).tolist()
        shown = " ".join(self._show(token) for token in legal[:8]) or "the end"
        more = f" ... ({len(legal)} in all)" if len(legal) > 8 else ""
        return f"{self.spec.kind} {self.spec.name!r}, position {position}: found {found}, expected {shown}{more}"

    def _show(self, token: int) -> str:
        return self.vocabulary.token(token) if 0 <= token < self.vocabulary.size else f"id {token}"

    def _check_unambiguous(self) -> None:
        """Refuse shared tokens, except between parts of fixed length: their position distinguishes them."""
        where = f"{self.spec.kind} spec {self.spec.name!r}"
        for _, parts, end in self._groups:
            for i, part in enumerate(parts):
                if len(part.symbol_of) != len(part.ids):
                    raise ValueError(f"{where}: the tokens of {part.part.place!r} repeat; give them other prefixes")
                others = {token for j, other in enumerate(parts) if j != i for token in other.ids} | {end}
                shared = [] if part.part.fixed else sorted(others & part.symbol_of.keys())
                if self._terminal and self._terminal[1] in part.symbol_of:
                    shared = [self._terminal[1]]
                if shared:
                    raise ValueError(f"{where}: {self._show(shared[0])} of {part.part.place!r} has another meaning "
                                     "in the same group; give it a token of its own")

    def _build_automaton(self) -> Automaton:
        builder = AutomatonBuilder()
        transitions: Transitions = {}
        for start, parts, end in reversed(self._groups):
            transitions = {end: builder.state(transitions)}
            for part in reversed(parts):
                transitions = part.part.grammar(part.ids, transitions, builder.state)
            if self._terminal:
                terminal: Transitions = {end: builder.state({})}
                for token in self._terminal[-2:0:-1]:
                    terminal = {token: builder.state(terminal)}
                transitions = join(transitions, terminal)
            transitions = {start: builder.state(transitions)}
        return builder.build(transitions)
