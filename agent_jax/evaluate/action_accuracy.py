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
from agent_jax.actions.controls import Buttons, Camera
from agent_jax.actions.parts import Bins


@dataclasses.dataclass(frozen=True)
class BinError:
    """Error of one binned number of the action, or of one axis of a camera."""

    name: str  # of the part, or its place in the action if it has no name
    unit: str  # "": the spec has none
    mean_absolute_error: float  # between the decoded values of the best and the recorded id
    count: int  # of choices, without those whose best id is not a value of the number (TERMINAL, a button)


@dataclasses.dataclass(frozen=True)
class ButtonScore:
    """How often one button is the best legal id, and how often the recorded one."""

    name: str
    precision: float | None  # share of choices with this best id whose recorded id it is; None: it is never the best
    recall: float | None  # share of choices with this recorded id whose best id it is; None: it is never recorded
    predicted: int
    recorded: int


@dataclasses.dataclass(frozen=True)
class ActionAccuracy:
    """Accuracy over many actions, weighted by the steps' action weights as in the action loss."""

    choices: int
    accuracy: float  # share of choices whose best legal id is the recorded one
    actions: int
    exact: float  # share of actions with all choices correct
    errors: tuple[BinError, ...]  # in the order of the spec
    buttons: tuple[ButtonScore, ...] = ()  # of the spec, without those that are neither recorded nor predicted


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
        self._cameras = [_CameraErrors(bound, part) for part in bound.spec.parts if isinstance(part, Camera)]
        self._buttons = {int(token): _Presses(name) for part in bound.spec.parts if isinstance(part, Buttons)
                         for name, token in zip(part.names, bound.vocabulary.ids(bound.spec.block, part.tokens),
                                                strict=True)}

    def add(self, ids: np.ndarray, best_C: np.ndarray, weight: float = 1.0) -> None:
        """Count one action by its ids and the best legal id at each of its C choices; ignored if its weight is 0."""
        if not weight:
            return
        choices = self._bound.choices(ids)
        choice = choices >= 0
        correct_C = best_C == ids[choice]
        self._correct.add(correct_C, weight)
        self._exact.add(correct_C.all(), weight)
        best = ids.copy()
        best[choice] = best_C
        for position, part, value_of in self._bound.bins(ids):
            recorded, found = value_of[int(ids[position])], value_of.get(int(best[position]))
            if found is not None:
                self._errors[part.place][1].add(abs(found - recorded), weight)
        if self._buttons or self._cameras:
            for state, target, predicted in zip(choices[choice].tolist(), ids[choice].tolist(), best_C.tolist(),
                                                strict=True):
                for token in {target, predicted} & self._buttons.keys():
                    self._buttons[token].add(recorded=token == target, predicted=token == predicted, weight=weight)
                for camera in self._cameras:
                    camera.add(state, target, predicted, weight)

    def result(self) -> ActionAccuracy | None:
        """The accuracy; None without any choice."""
        if not self._correct.count:
            return None
        errors = [BinError(part.name or part.place, part.unit, error.mean, error.count)
                  for part, error in self._errors.values() if error.count]
        errors += [error for camera in self._cameras for error in camera.result()]
        buttons = tuple(score for presses in self._buttons.values() if (score := presses.result()))
        return ActionAccuracy(self._correct.count, self._correct.mean, self._exact.count, self._exact.mean,
                              tuple(errors), buttons)


class DecodedScores:
    """Compares whole decoded actions with recorded ones: errors of numbers, precision and recall of buttons."""

    def __init__(self, bound: BoundSpec) -> None:
        self._bound = bound
        self._errors = {(part.place, axis): (name, part.unit, _Mean()) for part in bound.spec.parts
                        if isinstance(part, (Bins, Camera)) for axis, name in enumerate(_axes(part))}
        self._buttons = {name: _Presses(name) for part in bound.spec.parts if isinstance(part, Buttons)
                         for name in part.names}

    def add(self, ids: np.ndarray, recorded: np.ndarray, weight: float) -> None:
        """Count an action by its ids; one that ends the episode, or should, has no errors."""
        found, expected = self._bound.decode(ids), self._bound.decode(recorded)
        for part in self._bound.spec.parts:
            if part.key not in found or part.key not in expected:
                continue
            at = ... if part.index is None else part.index
            values, target = np.atleast_1d(found[part.key][at]), np.atleast_1d(expected[part.key][at])
            if isinstance(part, Buttons):
                for name, is_down, was_down in zip(part.names, values, target, strict=True):
                    self._buttons[name].add(recorded=bool(was_down), predicted=bool(is_down), weight=weight)
            elif isinstance(part, (Bins, Camera)):
                for axis, error in enumerate(np.abs(values - target)):
                    self._errors[part.place, axis][2].add(error, weight)

    def errors(self) -> tuple[BinError, ...]:
        """The mean absolute errors, in the order of the spec."""
        return tuple(BinError(name, unit, error.mean, error.count)
                     for name, unit, error in self._errors.values() if error.count)

    def buttons(self) -> tuple[ButtonScore, ...]:
        """Of the buttons that are pressed or recorded; of actions, not of choices."""
        return tuple(score for presses in self._buttons.values() if (score := presses.result()))


def _axes(part: Bins | Camera) -> tuple[str, ...]:
    """The names of a part's numbers."""
    if isinstance(part, Bins):
        return (part.name or part.place,)
    names = tuple(part.name.split(", "))
    return names if len(names) == 2 else (f"{part.key}[0]", f"{part.key}[1]")


@dataclasses.dataclass
class _Presses:
    """Counts of one button."""

    name: str
    recorded: _Mean = dataclasses.field(default_factory=_Mean)  # whether it is predicted where it is recorded
    predicted: _Mean = dataclasses.field(default_factory=_Mean)  # whether it is recorded where it is predicted

    def add(self, *, recorded: bool, predicted: bool, weight: float) -> None:
        if recorded:
            self.recorded.add(predicted, weight)
        if predicted:
            self.predicted.add(recorded, weight)

    def result(self) -> ButtonScore | None:
        recorded, predicted = self.recorded, self.predicted
        if not recorded.count and not predicted.count:
            return None
        return ButtonScore(self.name, predicted.mean if predicted.count else None,
                           recorded.mean if recorded.count else None, predicted.count, recorded.count)


class _CameraErrors:
    """Errors of both axes of a camera.

    The first axis is decided where the recorded action has no further button: ending the action there is 0 degrees. The
    second axis is decided after the first.
    """

    def __init__(self, bound: BoundSpec, part: Camera) -> None:
        ids = bound.vocabulary.ids(bound.spec.block, part.tokens).tolist()
        half, x0, y0 = len(ids) // 2, part.symbols((0.0, 1.0))[0], part.symbols((1.0, 0.0))[1]
        self._values = ({token: part.value([symbol, y0])[0] for symbol, token in enumerate(ids[:half])},
                        {token: part.value([x0, symbol])[1] for symbol, token in enumerate(ids[half:], half)})
        next_QA, ids_A = bound.automaton.next_QA, bound.automaton.ids_A
        # The second axis has no 0 after a first axis of 0: look at its last id.
        self._states = [set(np.flatnonzero(next_QA[:, np.flatnonzero(ids_A == axis)[0]] >= 0).tolist())
                        for axis in (ids[0], ids[-1])]
        buttons = [other for other in bound.spec.parts if isinstance(other, Buttons)]
        self._buttons = {int(token) for other in buttons for token in bound.vocabulary.ids(bound.spec.block,
                                                                                           other.tokens)}
        self._names, self._unit, self._errors = _axes(part), part.unit, (_Mean(), _Mean())

    def add(self, state: int, recorded: int, predicted: int, weight: float) -> None:
        """Count a choice, if it decides an axis."""
        if recorded in self._buttons or predicted in self._buttons:
            return
        for values, states, error in zip(self._values, self._states, self._errors, strict=True):
            if state in states:
                error.add(abs(values.get(predicted, 0.0) - values.get(recorded, 0.0)), weight)

    def result(self) -> list[BinError]:
        return [BinError(name, self._unit, error.mean, error.count)
                for name, error in zip(self._names, self._errors, strict=True) if error.count]


def format_errors(errors: tuple[BinError, ...]) -> str:
    """The mean absolute errors on one line: "shoulder_pan 3.1 deg, gripper 0.8"."""
    return ", ".join(f"{one.name} {one.mean_absolute_error:.3g}{' ' * bool(one.unit)}{one.unit}" for one in errors)
