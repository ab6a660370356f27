"""The legal token sequences of an action, as a finite automaton.

    state 0 --[STARTACTION]--> 1 --[left] [right] ...--> 2 --[ENDOFACTION]--> 3 = accept

It is acyclic, deterministic and minimal; every transition goes to a state of a higher number. `next_QA` is a plain
table, so the automaton runs on the host and inside a jitted decoding loop:

    logits_A = logits_K[ids_A]; a = argmax(where(next_QA[state] >= 0, logits_A, -inf)); state = next_QA[state, a]

Dimensions: Q states, A ids of the alphabet, K vocabulary rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

Transitions = dict[int, int]  # id -> next state


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """Legal ids in each state; the last state, `accept`, has none."""

    ids_A: np.ndarray  # int32, ascending: the alphabet
    next_QA: np.ndarray  # int32: the state after id A in state Q; -1: A is illegal there
    accept: int
    max_length: int  # tokens of the longest sequence
    start: int = 0

    def legal(self, state: int) -> np.ndarray:
        """int32 ids that are legal in `state`, ascending."""
        return self.ids_A[self.next_QA[state] >= 0]

    def advance(self, state: int, token: int) -> int:
        """The state after `token` in `state`, or -1 if `token` is illegal there."""
        column = self._column_of.get(token)
        return -1 if column is None else self.next_QA.item(state, column)

    def states(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        """The state before each id of a legal sequence; after `accept`, the next sequence begins at `start`.

        Raises:
            ValueError: an id is illegal in its state.
        """
        states, state = [], self.start
        for position, token in enumerate(np.asarray(ids).tolist()):
            states.append(state)
            state = self.advance(state, token)
            if state < 0:
                raise ValueError(f"position {position}: found id {token}, expected one of "
                                 f"{self.legal(states[-1]).tolist()[:12]}")
            if state == self.accept:
                state = self.start
        return states

    def split(self, ids: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The legal sequences that were joined to `ids`.

        Raises:
            ValueError: an id is illegal in its state.
        """
        firsts = np.flatnonzero(np.asarray(self.states(ids)) == self.start)
        return np.split(np.asarray(ids), firsts[1:])

    def repeated(self, times: int) -> Automaton:
        """The automaton of `times` legal sequences one after another."""
        states = len(self.next_QA) - 1  # `accept` of a sequence is the first state of the next one
        assert (self.start, self.accept) == (0, states)
        next_QA = np.full((times * states + 1, len(self.ids_A)), -1, np.int32)
        for first in range(0, times * states, states):
            next_QA[first : first + states] = np.where(self.next_QA[:-1] >= 0, self.next_QA[:-1] + first, -1)
        return Automaton(self.ids_A, next_QA, accept=times * states, max_length=times * self.max_length)

    @functools.cached_property
    def _column_of(self) -> dict[int, int]:
        return {token: column for column, token in enumerate(self.ids_A.tolist())}

    @functools.cached_property
    def choice_Q(self) -> np.ndarray:
        """bool: whether more than one id is legal in state Q."""
        return (self.next_QA >= 0).sum(axis=1) > 1

    def accepts(self, ids: Sequence[int] | np.ndarray) -> bool:
        """Whether `ids` is a complete legal sequence."""
        state = self.start
        for token in ids:
            state = self.advance(state, int(token))
            if state < 0:
                return False
        return state == self.accept


class AutomatonBuilder:
    """Builds an automaton backwards: a state is made after those that it leads to.

    Equal states are made once. Without cycles this gives the minimal automaton.
    """

    def __init__(self) -> None:
        self._transitions: list[Transitions] = []
        self._known: dict[tuple[tuple[int, int], ...], int] = {}
        self.state({})  # accept

    def state(self, transitions: Transitions) -> int:
        """The state with these transitions; without any it is `accept`."""
        key = tuple(sorted(transitions.items()))
        if key not in self._known:
            self._known[key] = len(self._transitions)
            self._transitions.append(dict(transitions))
        return self._known[key]

    def build(self, start: Transitions) -> Automaton:
        """The automaton whose first state has the transitions `start`."""
        first = self.state(start)
        reachable = self._reachable(first)
        order = sorted(reachable, reverse=True)  # a state is made after those it leads to: transitions go upwards
        number = {state: i for i, state in enumerate(order)}
        ids_A = np.array(sorted({token for state in order for token in self._transitions[state]}), np.int32)
        next_QA = np.full((len(order), len(ids_A)), -1, np.int32)
        longest: dict[int, int] = {}
        for state in reversed(order):
            transitions = self._transitions[state]
            for token, after in transitions.items():
                next_QA[number[state], np.searchsorted(ids_A, token)] = number[after]
            longest[state] = 1 + max((longest[after] for after in transitions.values()), default=-1)
        return Automaton(ids_A, next_QA, accept=number[0], max_length=longest[first])

    def _reachable(self, first: int) -> set[int]:
        reached, stack = {first}, [first]
        while stack:
            for after in self._transitions[stack.pop()].values():
                if after not in reached:
                    reached.add(after)
                    stack.append(after)
        return reached


def join(one: Transitions, other: Transitions) -> Transitions:
    """All transitions of one state; `BoundSpec` has checked that they share no id."""
    assert not one.keys() & other.keys(), "ambiguous transitions"
    return one | other
