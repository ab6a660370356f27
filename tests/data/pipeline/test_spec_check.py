"""Specs compared with their data: the table of the log, and every disagreement that is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_stores import arm_store, babyai_store, game_store

from agent_jax.actions import (
    BABYAI,
    LANGUAGE_TABLE,
    LANGUAGE_TABLE_STATE,
    MINECRAFT,
    ActionSpec,
    Camera,
    Choice,
    Group,
)
from agent_jax.actions.codec import BoundSpec
from agent_jax.actions.declarations import vocabulary_blocks
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.config import DomainConfig, presets
from agent_jax.data.pipeline.domain_specs import find_specs
from agent_jax.data.pipeline.spec_check import check_specs
from agent_jax.data.store.store import Store, open_store

VALUES = np.linspace((-1.0, 0.0), (1.0, 2.0), 201).astype(np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return arm_store(tmp_path / "set", [VALUES[:50], VALUES[50:]])


def arm(**fields: Any) -> dict[str, Any]:
    return presets.arm_spec("arm", names=("dx", "grip"), unit="m", count=21, **fields)


def checked(store: Store, spec: dict[str, Any], out_of_bounds: float = 0.01) -> list[str]:
    specs = find_specs("mine", DomainConfig(action_spec=spec), store)
    declared = [found.to_dict() for found in specs.specs]
    blocks = vocabulary_blocks(tuple({content["block"] for content in declared}), declared)
    vocabulary = Vocabulary.build("bytes", blocks)
    bound = [BoundSpec(found, vocabulary) for found in specs.specs]
    return check_specs("mine", specs, bound, out_of_bounds)


def test_the_table_shows_specs_and_data(store):
    lines = checked(store, arm(low=(-1, 0.01), high=(1, 2), rate_hz=5, frame="gripper", absolute=True))
    assert [" ".join(line.split()) for line in lines] == [
        "actions of mine: arm, absolute in gripper, 5 Hz",
        "value name bounds tokens data outside at a bound",
        "action[0] dx [-1, 1] m 21 [-1, 1] 0.00% 1.00%",
        "action[1] grip [0.01, 2] m 21 [0, 2] 0.50% 1.00%",
    ]


def test_too_many_values_out_of_bounds_are_refused_by_component(store):
    with pytest.raises(ValueError, match="outside its bounds") as error:
        checked(store, arm(low=(-1, 0), high=(1, 1.5)))
    message = str(error.value)
    for found in ("config.data.domains.mine.action_spec: 24.88%", "action[1] (grip)", "[0, 1.5]", "[0, 2]",
                  "[0.02, 1.98]", "set low and high"):
        assert found in message
    assert "action[0]" not in message
    assert len(checked(store, arm(low=(-1, 0), high=(1, 1.5)), out_of_bounds=0.3)) == 4


def test_bounds_by_quantiles_may_cut_off_values(store):
    spec = arm(bounds="quantiles")
    for part in spec["groups"][0]["parts"]:
        part["quantiles"] = [0.05, 0.95]
    assert any("9.95%" in line for line in checked(store, spec))


def test_wrong_bounds_of_the_data_sets_spec_are_to_be_fixed_by_prepare(tmp_path):
    store = arm_store(tmp_path / "own", [VALUES], metadata={"action_spec": arm(low=-0.5, high=2)})
    with pytest.raises(ValueError, match="prepare the data again"):
        checked(store, {})


def test_another_rate_than_that_of_the_data_is_refused(tmp_path):
    store = arm_store(tmp_path / "fast", [VALUES], metadata={"rate_hz": 30.0})
    with pytest.raises(ValueError, match="action_spec: found rate_hz=10, expected 30"):
        checked(store, arm(low=-1, high=2, rate_hz=10))
    assert checked(store, arm(low=-1, high=2, rate_hz=30))
    assert checked(store, arm(low=-1, high=2))  # a spec without a rate


def test_a_value_that_is_not_a_choice_is_refused_with_the_choices(tmp_path):
    values = VALUES.copy()
    values[:, 1] = np.arange(len(values)) % 2
    store = arm_store(tmp_path / "set", [values])
    spec = ActionSpec.from_dict(arm(low=-1, high=1))
    grip = Choice("action", 1, ("OPEN", "CLOSE"), (1.0, -1.0), name="grip")
    spec = dataclasses.replace(spec, groups=(Group("STARTACTION", (spec.parts[0], grip), "ENDOFACTION"),))
    with pytest.raises(ValueError, match=r"action\[1\] \(grip\) holds 0, expected one of 1 \(OPEN\), -1 \(CLOSE\)"):
        checked(store, spec.to_dict())
    right = dataclasses.replace(grip, values=(1.0, 0.0))
    assert checked(store, dataclasses.replace(
        spec, groups=(Group("STARTACTION", (spec.parts[0], right), "ENDOFACTION"),)).to_dict())


def test_choices_buttons_and_cameras_are_compared_with_their_data(tmp_path):
    assert "one of 7" in checked(babyai_store(tmp_path / "tiles"), BABYAI.to_dict())[2]
    game = game_store(tmp_path / "game")
    lines = checked(game, {})
    assert "23 buttons" in lines[2]
    assert "0.00%" in lines[3]
    camera = dataclasses.replace(MINECRAFT.parts[1], low=-2, high=2, x_prefix="CAMERAX")
    narrow = dataclasses.replace(MINECRAFT, groups=(Group("STARTACTION", (MINECRAFT.parts[0], camera), "ENDOFACTION"),))
    foreign = Store(**{field.name: getattr(game, field.name) for field in dataclasses.fields(game)} | {"metadata": {}})
    with pytest.raises(ValueError, match=r"camera \(pitch, yaw\) outside its bounds: declared \[-2, 2\]"):
        checked(foreign, narrow.to_dict())


@pytest.mark.parametrize(("turn", "beyond"), [((50.7, -49.9), False), ((51.2, 0.0), True), ((0.0, -50.1), True)])
def test_a_camera_is_out_of_bounds_from_the_next_whole_degree_on(tmp_path, turn, beyond):
    store = arm_store(tmp_path / "set", [np.asarray([turn, (0.0, 0.0)])])
    parts = (Camera("action"),)
    spec = ActionSpec("camera", "iafm", (Group("STARTACTION", parts, "ENDOFACTION"),)).to_dict()
    if beyond:
        with pytest.raises(ValueError, match=r"50.00% of the steps have action \(pitch, yaw\) outside its bounds"):
            checked(store, spec)
    else:
        assert "0.00%" in checked(store, spec)[2]


def test_a_round_trip_that_is_off_by_more_than_half_a_bin_is_refused(store, monkeypatch):
    decode = BoundSpec.decode

    def wrong(self, ids):
        return {key: value + np.float32(0.06) for key, value in decode(self, ids).items()}  # bins are 0.1 wide

    monkeypatch.setattr(BoundSpec, "decode", wrong)
    with pytest.raises(ValueError, match=r"config.data.domains.mine: .* decodes to .*"):
        checked(store, arm(low=(-1, 0), high=(1, 2)))


def test_without_a_check_the_data_are_not_read(store, cache):
    lines = checked(store, arm(low=(-1, 0), high=(1, 0.1)), out_of_bounds=1.0)
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "value name bounds tokens", "action[0] dx [-1, 1] m 21", "action[1] grip [0, 0.1] m 21"]
    assert not cache.exists()


def test_the_specs_of_language_table_fit_its_real_data(language_table_data):
    fields = {"action_spec": LANGUAGE_TABLE.to_dict(), "state_spec": LANGUAGE_TABLE_STATE.to_dict()}
    specs = find_specs("table", DomainConfig(**fields), open_store(language_table_data))
    assert specs.state is not None
    vocabulary = Vocabulary.build("bytes", ("iafm",))
    lines = check_specs("table", specs, [BoundSpec(specs.action, vocabulary), BoundSpec(specs.state, vocabulary)], 0.01)
    assert " ".join(lines[2].split()) == "action[0] dx [-0.03, 0.03] m 21 [-0.03, 0.03] 0.00% 0.01%"
    assert len(lines) == 10
