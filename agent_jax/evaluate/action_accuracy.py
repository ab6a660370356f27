"""How well the recorded actions are predicted, choice by choice.

    [STARTACTION] [ROBOTACTIONX13] [ROBOTACTIONY3] [ENDOFACTION]
        forced        choice            choice         forced

A choice is an id where the automaton allows more than one; the best of these is what greedy acting takes. Forced ids,
as most delimiters are, need no model and count nowhere. Recorded ids stand before each choice (teacher forcing).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from agent_jax.actions.codec import BoundSpec
from agent_jax.actions.parts import Bins


@dataclasses.dataclass(frozen=True)
class BinError:
    """Error of one binned number of the action."""

    name: str  # of the part, or its place in the action where it has none
    unit: str  # "": the spec names none
    mean_absolute_error: float  # between the decoded values of the best and of the recorded id
    count: int  # of choices; those whose best id is no value of the number (TERMINAL) are left out


@dataclasses.dataclass(frozen=True)
class ActionAccuracy:
    """Shares are weighted by the steps' action weights, as the action loss is."""

    choices: int
    accuracy: float  # share of the choices whose best legal id is the recorded one
    actions: int
    exact: float  # share of the actions all of whose choices are right
    errors: tuple[BinError, ...]  # in the order of the spec


def best_legal(bound: BoundSpec, ids: np.ndarray, logits_CA: np.ndarray) -> np.ndarray:
    """The legal id with the best logit, of each of the C choices of some actions.

    Args:
        bound: spec of the actions.
        ids: of the actions, one after another.
        logits_CA: of every choice, over the ids of the automaton.

    Raises:
        ValueError: an id is illegal where it stands.
    """
    automaton = bound.automaton
    choices = bound.choices(ids)
    legal_CA = automaton.next_QA[choices[choices >= 0]] >= 0
    return automaton.ids_A[np.argmax(np.where(legal_CA, logits_CA, -np.inf), axis=1)]


@dataclasses.dataclass
class _Mean:
    """A weighted mean in the making."""

    total: float = 0.0
    weight: float = 0.0
    count: int = 0

    def add(self, values: np.ndarray | float, weight: float) -> None:
        values = np.atleast_1d(np.asarray(values, np.float64))
        self.total += weight * float(values.sum())
        self.weight += weight * len(values)
        self.count += len(values)

    @property
    def mean(self) -> float:
        return self.total / self.weight


class ActionScores:
    """Adds up recorded actions and what was predicted for their choices."""

    def __init__(self, bound: BoundSpec) -> None:
        self._bound = bound
        self._right, self._exact = _Mean(), _Mean()
        self._errors = {part.place: (part, _Mean()) for part in bound.spec.parts if isinstance(part, Bins)}

    def add(self, ids: np.ndarray, best_C: np.ndarray, weight: float = 1.0) -> None:
        """Count one action, by its ids and the best legal id of each of its C choices; not one of weight 0."""
        if not weight:
            return
        choice = self._bound.choices(ids) >= 0
        right_C = best_C == ids[choice]
        self._right.add(right_C, weight)
        self._exact.add(right_C.all(), weight)
        best = ids.copy()
        best[choice] = best_C
        for position, part, value_of in self._bound.bins(ids):
            recorded, found = value_of[int(ids[position])], value_of.get(int(best[position]))
            if found is not None:
                self._errors[part.place][1].add(abs(found - recorded), weight)

    def result(self) -> ActionAccuracy | None:
        """What came of them; None without any choice."""
        if not self._right.count:
            return None
        errors = tuple(BinError(part.name or part.place, part.unit, error.mean, error.count)
                       for part, error in self._errors.values() if error.count)
        return ActionAccuracy(self._right.count, self._right.mean, self._exact.count, self._exact.mean, errors)


def format_errors(errors: tuple[BinError, ...]) -> str:
    """The mean absolute errors on one line: "shoulder_pan 3.1 deg, gripper 0.8"."""
    return ", ".join(f"{one.name} {one.mean_absolute_error:.3g}{' ' * bool(one.unit)}{one.unit}" for one in errors)
