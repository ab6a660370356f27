"""Every n-th step gets the joined action of n steps: the last target, or the sum of deltas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent_jax.actions import BLEEDING_EDGE, CALVIN, MINECRAFT, ActionSpec
from agent_jax.config import presets
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.resampling import Resampling, stride_of

ABSOLUTE = presets.arm_spec("arm", names=("x", "gripper"), low=-9, high=9, absolute=True)
RELATIVE = presets.arm_spec("arm", names=("dx", "gripper"), low=-9, high=9)
ACTIONS = [{"action": np.array([1.0, 0.0])}, {"action": np.array([2.0, 1.0])}, {"action": np.array([4.0, 1.0])}]


def joined(spec: dict[str, Any] | ActionSpec | None, actions: list[dict[str, Any]], how: str = "", *,
           absolute: bool | None = None) -> dict[str, Any]:
    made = ActionSpec.from_dict(spec) if isinstance(spec, dict) else spec
    config = PrepareConfig(resample_actions=how)  # pyright: ignore[reportArgumentType]
    absolute = made.absolute if made and absolute is None else absolute
    return Resampling(config, len(actions), 30.0, made, absolute=absolute).joined(actions)


@pytest.mark.parametrize(("spec", "how", "expected"), [
    (ABSOLUTE, "", [4, 1]), (ABSOLUTE, "first", [1, 0]), (ABSOLUTE, "sum", [7, 1]),
    (RELATIVE, "", [7, 1]),  # a gripper's command does not add up
    (RELATIVE, "last", [4, 1]), (RELATIVE, "first", [1, 0]),
    (None, "last", [4, 1]), (None, "sum", [7, 2]), (None, "first", [1, 0]),
])
def test_last_target_is_kept_and_deltas_are_summed(spec: Any, how: str, expected: list[float]) -> None:
    np.testing.assert_array_equal(joined(spec, ACTIONS, how)["action"], expected)
    np.testing.assert_array_equal(ACTIONS[0]["action"], [1, 0])  # the step's own is as it was


def test_last_choice_is_kept_and_calvin_deltas_are_summed() -> None:
    made = joined(CALVIN, [{"action": np.array([0.1] * 6 + [1.0], np.float32)},
                           {"action": np.array([0.3] * 6 + [-1.0], np.float32)}])
    np.testing.assert_allclose(made["action"], [0.4] * 6 + [-1.0], rtol=1e-6)


def test_any_press_counts_and_camera_turns_are_summed() -> None:
    down = [np.arange(23) == 1, np.arange(23) == 4]
    actions = [{"buttons": pressed, "camera": np.array([3.0, -1.0])} for pressed in down]
    made = joined(MINECRAFT, actions)
    assert np.flatnonzero(made["buttons"]).tolist() == [1, 4]
    assert made["camera"].tolist() == [6, -2]
    assert np.flatnonzero(joined(MINECRAFT, actions, "last")["buttons"]).tolist() == [4]


def test_stick_has_its_position_of_the_image() -> None:
    actions = [{"buttons": np.zeros(11, bool), "left_stick": np.array([x, 0.0]), "right_stick": np.zeros(2)}
               for x in (0.5, 1.0)]
    assert joined(BLEEDING_EDGE, actions)["left_stick"].tolist() == [0.5, 0]
    assert joined(BLEEDING_EDGE, actions, "last")["left_stick"].tolist() == [1, 0]


def test_note_lists_the_rules_by_name() -> None:
    made = Resampling(PrepareConfig(), 3, 30.0, ActionSpec.from_dict(RELATIVE), absolute=False)
    assert made.rate_hz == 10
    assert made.notes == ("rate: 10 of 30 steps a second; of the actions of 3 steps: sum of dx; last of gripper "
                          "(config.resample_actions)",)
    assert Resampling(PrepareConfig(), 1, 30.0, None, absolute=None).notes == ()


def test_actions_of_unknown_meaning_require_the_option() -> None:
    with pytest.raises(ValueError, match=r"config\.rate_hz=10: the data have 30 .*config\.resample_actions=last .*"
                                         r"config\.resample_actions=sum"):
        Resampling(PrepareConfig(rate_hz=10.0), 3, 30.0, None, absolute=None)


def test_rate_must_be_a_whole_fraction() -> None:
    assert stride_of(PrepareConfig(), 30.0) == 1
    assert stride_of(PrepareConfig(rate_hz=30.0), 30.0) == 1
    assert stride_of(PrepareConfig(rate_hz=10.0), 30.0) == 3
    for rate_hz in (60.0, 20.0, 29.0):
        with pytest.raises(ValueError, match="the data have 30 steps a second, expected that"):
            stride_of(PrepareConfig(rate_hz=rate_hz), 30.0)
