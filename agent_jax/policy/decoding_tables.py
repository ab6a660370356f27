"""An automaton as a decoding loop wants it: choices, and what follows from each without one.

    state --choice--> state --forced ids--> state --choice--> ...

Ids that leave no choice are never asked for: they are read together with the id that was chosen before them.
Dimensions: Q states, A ids of the alphabet, R forced ids of a state.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from agent_jax.actions.automaton import Automaton


@dataclasses.dataclass(frozen=True, eq=False)
class DecodingTables:
    """Tables over the states of an automaton, which is acyclic and whose transitions go upwards."""

    automaton: Automaton
    forced_QR: np.ndarray  # int32: ids that follow in state Q without a choice, from the front
    count_Q: np.ndarray  # int32: how many
    after_Q: np.ndarray  # int32: the state after them: `accept`, or one with a choice
    most: int  # choices of the longest action
    chunk: int  # most ids that are read at once: a chosen one and the forced ones before the next choice

    @property
    def first_ids(self) -> np.ndarray:
        """int32 ids that open every action."""
        start = self.automaton.start
        return self.forced_QR[start, : self.count_Q[start]]

    @property
    def first_state(self) -> int:
        """The state of the first choice; `accept` if there is none."""
        return int(self.after_Q[self.automaton.start])

    def columns(self, ids: np.ndarray | None) -> np.ndarray:
        """int32 (J,): the columns of A that lead to an action, choice by choice, then -1; all -1 without one.

        Raises:
            ValueError: the automaton does not accept it.
        """
        columns_J = np.full(self.most, -1, np.int32)
        if ids is None:
            return columns_J
        if not self.automaton.accepts(ids):
            raise ValueError(f"found the action ids {np.asarray(ids).tolist()}, expected a complete legal action")
        state, choice = self.automaton.start, 0
        for token in np.asarray(ids).tolist():
            column = int(np.searchsorted(self.automaton.ids_A, token))
            if len(self.automaton.legal(state)) > 1:
                columns_J[choice], choice = column, choice + 1
            state = int(self.automaton.next_QA[state, column])
        return columns_J

    @classmethod
    def of(cls, automaton: Automaton) -> DecodingTables:
        """The tables of an automaton."""
        runs: dict[int, tuple[list[int], int]] = {}  # by state: forced ids, and the state after them
        most: dict[int, int] = {}  # by state: choices on the longest way from it
        for state in reversed(range(len(automaton.next_QA))):
            legal_A = automaton.next_QA[state] >= 0
            after = automaton.next_QA[state][legal_A].tolist()
            if len(after) == 1:
                ids, end = runs[after[0]]
                runs[state] = ([int(automaton.ids_A[legal_A][0]), *ids], end)
            else:
                runs[state] = ([], state)
            most[state] = max((most[s] for s in after), default=0) + (len(after) > 1)
        widest = max(len(ids) for ids, _ in runs.values())
        forced_QR = np.zeros((len(runs), max(widest, 1)), np.int32)
        for state, (ids, _) in runs.items():
            forced_QR[state, : len(ids)] = ids
        count_Q = np.asarray([len(runs[state][0]) for state in range(len(runs))], np.int32)
        after_Q = np.asarray([runs[state][1] for state in range(len(runs))], np.int32)
        reached = np.unique(automaton.next_QA[automaton.next_QA >= 0])
        between = [int(count_Q[state]) for state in reached if after_Q[state] != automaton.accept]
        return cls(automaton, forced_QR, count_Q, after_Q, most[automaton.start], 1 + max(between, default=0))
