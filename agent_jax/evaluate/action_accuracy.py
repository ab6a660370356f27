"""Accuracy of predicted actions, choice by choice.

    [STARTACTION] [ROBOTACTIONX13] [ROBOTACTIONY3] [ENDOFACTION]
        forced        choice            choice         forced

A choice is an id where the automaton allows more than one; greedy acting takes the best legal one. Forced ids, such as
most delimiters, are not counted. The ids before each choice are the recorded ones (teacher forcing).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from agent_jax.actions.codec import BoundSpec
from agent_jax.actions.parts import Bins


@dataclasses.dataclass(frozen=True)
class BinError:
    """Error of one binned number of the action."""

    name: str  # of the part, or its place in the action if it has no name
    unit: str  # "": the spec has none
    mean_absolute_error: float  # between the decoded values of the best and the recorded id
    count: int  # of choices, without those whose best id is not a value of the number (TERMINAL)


@dataclasses.dataclass(frozen=True)
class ActionAccuracy:
    """Accuracy over many actions, weighted by the steps' action weights as in the action loss."""

    choices: int
    accuracy: float  # share of choices whose best legal id is the recorded one
    actions: int
    exact: float  # share of actions with all choices correct
    errors: tuple[BinError, ...]  # in the order of the spec


def best_legal(bound: BoundSpec, ids: np.ndarray, logits_CA: np.ndarray) -> np.ndarray:
    """The legal id with the best logit at each of C choices.

    Args:
        bound: spec of the actions.
        ids: the concatenated ids of the actions.
        logits_CA: logits of the automaton's ids at each choice.

    Raises:
        ValueError: an id is illegal at its position.
    """
    automaton = bound.automaton
    choices = bound.choices(ids)
    legal_CA = automaton.next_QA[choices[choices >= 0]] >= 0
    return automaton.ids_A[np.argmax(np.where(legal_CA, logits_CA, -np.inf), axis=1)]


@dataclasses.dataclass
class _Mean:
    """A running weighted mean."""

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
    """Accumulates the accuracy of actions."""

    def __init__(self, bound: BoundSpec) -> None:
        self._bound = bound
        self._correct, self._exact = _Mean(), _Mean()
        self._errors = {part.place: (part, _Mean()) for part in bound.spec.parts if isinstance(part, Bins)}

    def add(self, ids: np.ndarray, best_C: np.ndarray, weight: float = 1.0) -> None:
        """Count one action by its ids and the best legal id at each of its C choices; ignored if its weight is 0."""
        if not weight:
            return
        choice = self._bound.choices(ids) >= 0
        correct_C = best_C == ids[choice]
        self._correct.add(correct_C, weight)
        self._exact.add(correct_C.all(), weight)
        best = ids.copy()
        best[choice] = best_C
        for position, part, value_of in self._bound.bins(ids):
            recorded, found = value_of[int(ids[position])], value_of.get(int(best[position]))
            if found is not None:
                self._errors[part.place][1].add(abs(found - recorded), weight)

    def result(self) -> ActionAccuracy | None:
        """The accuracy; None without any choice."""
        if not self._correct.count:
            return None
        errors = tuple(BinError(part.name or part.place, part.unit, error.mean, error.count)
                       for part, error in self._errors.values() if error.count)
        return ActionAccuracy(self._correct.count, self._correct.mean, self._exact.count, self._exact.mean, errors)


def format_errors(errors: tuple[BinError, ...]) -> str:
    """The mean absolute errors on one line: "shoulder_pan 3.1 deg, gripper 0.8"."""
    return ", ".join(f"{one.name} {one.mean_absolute_error:.3g}{' ' * bool(one.unit)}{one.unit}" for one in errors)
