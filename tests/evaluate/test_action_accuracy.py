from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from agent_jax.actions import BABYAI, LANGUAGE_TABLE, MINECRAFT, ActionSpec, BoundSpec
from agent_jax.actions.arms import arm_spec
from agent_jax.actions.vocabulary import MINECRAFT_BUTTONS, Block, ByteTokenizer, Vocabulary
from agent_jax.batch import Batch, RowSize
from agent_jax.data.pipeline.layout import Step, Window, lay_out, stack
from agent_jax.evaluate.action_accuracy import (
    ActionScores,
    BinError,
    ButtonScore,
    DecodedScores,
    best_legal,
    format_errors,
)
from agent_jax.models.agent import AgentOutput
from agent_jax.models.choice_table import ChoiceTable, choice_weight
from agent_jax.models.losses import loss_sums, loss_weights

VOCABULARY = Vocabulary.build("bytes", ("iafm", "babyai"))
TABLE, BABY, GAME = (BoundSpec(spec, VOCABULARY) for spec in (LANGUAGE_TABLE, BABYAI, MINECRAFT))


def test_delimiters_and_forced_ids_are_not_choices() -> None:
    assert (BABY.choices(BABY.encode({"action": 2})) >= 0).tolist() == [False, True, False]
    assert (TABLE.choices(TABLE.encode({"action": [0, 0]})) >= 0).tolist() == [False, True, True, False]
    assert (TABLE.choices(TABLE.terminal_ids()) >= 0).tolist() == [False, True, False, False]
    still = GAME.encode({"buttons": [False] * 23, "camera": [0, 0]})
    assert (GAME.choices(still) >= 0).tolist() == [False, True]  # ending the action is a choice here
    two = np.concatenate([BABY.encode({"action": 2}), BABY.encode({"action": 0})])
    assert (BABY.choices(two) >= 0).tolist() == [False, True, False] * 2
    with pytest.raises(ValueError, match=r"position 1: found id \d+, expected"):
        BABY.choices(two[[0, 2]])


def test_errors_have_the_names_and_units_of_the_spec() -> None:
    spec = ActionSpec.from_dict(arm_spec("arm", names=("shoulder_pan", "gripper"), low=(-90, 0), high=(90, 1), count=19,
                                         unit=("deg", "")))
    bound = BoundSpec(spec, Vocabulary(ByteTokenizer(), (Block("arm", spec.tokens()),)))
    scores = ActionScores(bound)
    recorded, near, far = (bound.encode({"action": [angle, 0.5]}) for angle in (-50.0, -45.0, 90.0))
    scores.add(recorded, near[1:3])  # both in [-50, -40)
    scores.add(recorded, far[1:3])  # 90, its bound, instead of -45
    scores.add(recorded, far[1:3], weight=0.0)
    found = scores.result()
    assert found is not None
    assert dataclasses.replace(found, errors=()) == dataclasses.replace(found, choices=4, accuracy=0.75, actions=2,
                                                                        exact=0.5, errors=())
    pan, gripper = found.errors
    assert dataclasses.replace(pan, mean_absolute_error=0.0) == BinError("shoulder_pan", "deg", 0.0, 2)
    assert pan.mean_absolute_error == pytest.approx(67.5)
    assert gripper == BinError("gripper", "", 0.0, 2)
    assert format_errors(found.errors) == "shoulder_pan 67.5 deg, gripper 0"


def test_a_terminal_action_has_no_error_and_weights_count() -> None:
    scores = ActionScores(TABLE)
    ids = TABLE.encode({"action": [0.01, 0.0]})
    scores.add(ids, np.asarray([TABLE.terminal_ids()[1], ids[2]]), weight=3.0)  # the terminal id
    scores.add(TABLE.terminal_ids(), TABLE.terminal_ids()[1:2])
    found = scores.result()
    assert found is not None
    assert (found.choices, found.accuracy, found.actions, found.exact) == (3, 4 / 7, 2, 1 / 4)
    assert [(one.name, one.count) for one in found.errors] == [("dy", 1)]


def test_buttons_have_precision_and_recall_over_the_choices() -> None:
    scores, names = ActionScores(GAME), MINECRAFT_BUTTONS
    esc, back, drop = (VOCABULARY.id("iafm", name) for name in names[:3])
    end = GAME.encode({"buttons": [False] * 23, "camera": [0, 0]})[-1]
    ids = GAME.encode({"buttons": [True, True, *[False] * 21], "camera": [0, 0]})  # start, ESC, back, end
    scores.add(ids, np.asarray([esc, drop, end]))
    scores.add(ids, np.asarray([back, back, end]), weight=2.0)
    found = scores.result()
    assert found is not None
    assert found.buttons == (
        ButtonScore("ESC", 1.0, 1 / 3, 1, 2), ButtonScore("back", 0.5, 2 / 3, 2, 2),
        ButtonScore("drop", 0.0, None, 1, 0))


def test_the_camera_has_an_error_in_degrees_for_each_axis() -> None:
    def action(*, buttons: int = 0, camera: tuple[float, float]) -> np.ndarray:
        return GAME.encode({"buttons": [i < buttons for i in range(23)], "camera": camera})

    scores, turned, still = ActionScores(GAME), action(camera=(10, -20)), action(camera=(0, 0))
    near = action(camera=(12, -20))
    scores.add(turned, np.asarray([near[1], near[2], still[-1]])[: int((GAME.choices(turned) >= 0).sum())])
    scores.add(still, near[1:2])  # a turn by 12.5 degrees where there is none
    scores.add(turned, np.asarray([still[-1], turned[2]]))  # the end of the action in place of the turn
    scores.add(turned, np.asarray([action(buttons=1, camera=(0, 0))[1], turned[2]]))  # a button: no error of the pitch
    found = scores.result()
    assert found is not None
    pitch, yaw = found.errors
    assert (pitch.name, pitch.unit, pitch.count) == ("pitch", "deg", 3)
    assert pitch.mean_absolute_error == pytest.approx((2 + 12.5 + 10.5) / 3)
    assert yaw == BinError("yaw", "deg", 0.0, 3)


def test_decoded_actions_are_compared_as_a_whole() -> None:
    def action(*down: int, camera: tuple[float, float] = (0, 0)) -> np.ndarray:
        return GAME.encode({"buttons": [i in down for i in range(23)], "camera": camera})

    scores = DecodedScores(GAME)
    scores.add(action(0, 1, camera=(3, 0)), action(1, 2), weight=1.0)
    scores.add(action(1), action(1, camera=(0, -4)), weight=3.0)
    names = MINECRAFT_BUTTONS
    assert scores.buttons() == (ButtonScore(names[0], 0.0, None, 1, 0), ButtonScore(names[1], 1.0, 1.0, 2, 2),
                                ButtonScore(names[2], None, 0.0, 0, 1))
    assert scores.errors() == (BinError("pitch", "deg", 3.5 / 4, 2), BinError("yaw", "deg", 3 * 4.5 / 4, 2))
    arm = DecodedScores(TABLE)
    arm.add(TABLE.encode({"action": [0.01, 0.0]}), TABLE.encode({"action": [-0.01, 0.0]}), 1.0)
    arm.add(TABLE.terminal_ids(), TABLE.encode({"action": [-0.01, 0.0]}), 1.0)  # no number, so no error
    assert [(one.name, one.count) for one in arm.errors()] == [("dx", 1), ("dy", 1)]
    assert arm.errors()[0].mean_absolute_error == pytest.approx(0.021, abs=1e-6)  # seven bins
    assert not arm.buttons()


def test_training_and_acting_use_the_same_choices_and_best_legal_ids() -> None:
    """Two domains in one batch, with random logits over the whole vocabulary."""
    random = np.random.default_rng(0)
    bounds = {0: TABLE, 2: GAME}
    table = ChoiceTable.of({**bounds, 1: None})
    assert table is not None
    actions = {0: [TABLE.encode({"action": random.uniform(-0.03, 0.03, 2)}) for _ in range(2)] + [TABLE.terminal_ids()],
               2: [GAME.encode({"buttons": random.random(23) < 0.2, "camera": random.uniform(-50, 50, 2)})
                   for _ in range(3)]}
    rows = []
    image = np.zeros((8, 8, 3), np.uint8)
    for domain, bound in bounds.items():
        steps = tuple(Step((image,), np.zeros(0, np.int32), ids, action_weight=weight,
                           action_choices=bound.choices(ids))
                      for ids, weight in zip(actions[domain], (1.0, 0.5, 0.0), strict=True))
        rows.append(lay_out([Window(domain, np.asarray([2, 70], np.int32), steps, 0)], RowSize(3, 8, 80, 60), 2, 1))
    batch: Batch = stack(rows)
    logits_BTK = random.normal(size=(2, 60, VOCABULARY.size)).astype(np.float32)
    favoured = random.random((2, 60)) < 0.5  # so that some are correct
    np.put_along_axis(logits_BTK, batch.target_BT[..., None], np.where(favoured, 9.0, 0.0)[..., None].astype("f4"), -1)
    output = AgentOutput(jnp.asarray(logits_BTK))
    sums, weights = loss_sums(output, batch, 3, table), loss_weights(batch, 3, 1)
    for row, (domain, bound) in enumerate(bounds.items()):
        scores, target = ActionScores(bound), 1
        for ids, weight in zip(actions[domain], (1.0, 0.5, 0.0), strict=True):
            choice = bound.choices(ids) >= 0
            logits_CA = logits_BTK[row, target : target + len(ids)][choice][:, bound.automaton.ids_A]
            scores.add(ids, best_legal(bound, ids, logits_CA), weight)
            target += len(ids)
        found = scores.result()
        assert found is not None
        assert 0 < found.accuracy < 1
        assert sums.action_correct[domain] / weights.action_correct[domain] == pytest.approx(found.accuracy)
    assert weights.action_correct.sum() == choice_weight(batch).sum() < weights.action.sum()
    assert sums.action_correct[1] == weights.action_correct[1] == 0
    plain = loss_sums(output, batch, 3)
    for name in ("language", "action", "action_share", "language_correct"):  # the losses do not depend on choices
        np.testing.assert_array_equal(getattr(sums, name), getattr(plain, name))


def test_a_run_without_actions_has_no_choice_table() -> None:
    assert ChoiceTable.of({0: None}) is None
