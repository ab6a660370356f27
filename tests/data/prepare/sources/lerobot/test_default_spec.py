"""The default ActionSpec of LeRobot data: from their names and statistics, overridden by the config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_sets import RATE_HZ, info, version_2, version_3, write_info, write_table
from prepared_runs import train_two_steps

from agent_jax.actions import ActionSpec
from agent_jax.config import DomainConfig, presets
from agent_jax.data.__main__ import main
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.prepare.sources.source import Source
from agent_jax.data.store.store import open_store

NAMES = ["pan", "lift", "gripper"]
QUANTILES = {"min": [-9, -9, 0], "max": [9, 9, 1], "q01": [0, -0.19, 0.4], "q99": [0.19, 0, 0.6]}  # of the actions
Limits = list[tuple[float, float]]


def data_set(path: Path, version: str = "v2.1", **changes: Any) -> Path:
    """A set with images in its tables, whose action has names; `changes` are fields of info.json."""
    (version_3 if version == "v3.0" else version_2)(path, "image")
    content = {**info(version, "image"), "robot_type": "SO-100 follower", **changes}
    content["features"]["action"]["names"] = {"motors": NAMES}
    write_info(path, content)
    return path


def with_stats(path: Path, **features: dict[str, Any]) -> Path:
    (path / "meta" / "stats.json").write_text(json.dumps(features))
    return path


def opened(path: Path, **config: Any) -> Source:
    return open_source("lerobot", path, PrepareConfig(**config))


def limits_of(source: Source) -> Limits:
    return [limit for part in ActionSpec.from_dict(source.action_spec).parts for limit in part.limits]


def test_spec_has_names_and_quantiles_of_the_data(tmp_path: Path) -> None:
    source = opened(with_stats(data_set(tmp_path / "set"), action=QUANTILES))
    assert source.action_spec == presets.arm_spec("so_100_follower", names=NAMES, low=(0, -0.19, 0.4),
                                                  high=(0.19, 0, 0.6), rate_hz=RATE_HZ)
    assert source.schema.defaults == ("action_spec",)
    [note] = source.schema.notes
    for message in ("none was given", "1% and 99% quantiles of meta/stats.json: pan [0, 0.19], lift [-0.19, 0]",
                  "unknown whether targets or deltas", "config.vocabulary.blocks=('so_100_follower',)"):
        assert message in note
    declared = presets.arm_spec("arm", names="xyz", low=-1, high=1)
    source = opened(tmp_path / "set", action_spec=declared)
    assert (source.action_spec, source.schema.defaults, source.schema.notes) == (declared, (), ())


def test_minimum_and_maximum_replace_missing_quantiles(tmp_path: Path) -> None:
    path = with_stats(data_set(tmp_path / "a"), action={"min": [-1, -2, 0], "max": [1, 2, 3]})
    assert limits_of(opened(path)) == [(-1, 1), (-2, 2), (0, 3)]
    path = data_set(tmp_path / "b")
    (path / "meta" / "episodes_stats.jsonl").write_text("".join(json.dumps({"episode_index": number, "stats": {
        "action": {"min": [-number, 0, 1], "max": [1, number + 1, 2]}}}) + "\n" for number in (2, 1, 0)))
    assert limits_of(opened(path)) == [(-2, 1), (0, 3), (1, 2)]
    path = data_set(tmp_path / "c", "v3.0")
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    content = pq.read_table(file)
    for name, values in (("min", [[-3.0, 0, 1], [0, -1, 1], [0, 0, 1]]), ("max", [[1.0, 1, 2], [4, 1, 2], [1, 1, 2]])):
        content = content.append_column(f"stats/action/{name}", pa.array(values))
    write_table(file, content)
    source = opened(path)
    assert limits_of(source) == [(-3, 4), (-1, 1), (1, 2)]
    assert "of the episodes' statistics in meta/episodes" in source.schema.notes[0]


@pytest.mark.parametrize("text", ["{", "[]", '{"action": 3}', '{"action": {"min": ["x"], "max": [1]}}',
                                  '{"action": {"min": [0, 0], "max": [1, 1]}}',
                                  '{"action": {"min": [0, 0, NaN], "max": [1, 1, 1]}}',
                                  '{"action": {"min": [0, 0, 0], "max": [1e300, 1, 1]}}', ""])
def test_unusable_statistics_leave_the_bounds_to_the_train_split(tmp_path: Path, text: str) -> None:
    path = data_set(tmp_path / "set")
    if text:
        (path / "meta" / "stats.json").write_text(text)
    source = opened(path)
    assert source.action_spec == presets.arm_spec("so_100_follower", names=NAMES, bounds="quantiles", rate_hz=RATE_HZ)
    assert "the train split's quantiles" in source.schema.notes[0]


def test_constant_number_gets_bounds(tmp_path: Path) -> None:
    constant = {"min": [0, 0, 5], "max": [1, 1, 5], "q01": [0.5, 0, 5], "q99": [0.5, 1, 5]}
    assert limits_of(opened(with_stats(data_set(tmp_path / "set"), action=constant))) == [
        (0, 1), (0, 1), (4.995, 5.005)]


@pytest.mark.parametrize(("names", "state", "absolute", "message"), [
    (NAMES, {"min": [-8, -9, 0], "max": [9, 9, 1]}, True, "absolute targets (their ranges"),
    (NAMES, {"min": [100, -9, 0], "max": [109, 9, 1]}, False, "unknown"),
    (NAMES, None, False, "unknown"),
    (["delta_x", "delta_y", "gripper"], {"min": [-9, -9, 0], "max": [9, 9, 1]}, False, "deltas (by their names)"),
])
def test_actions_with_the_range_of_the_state_are_targets(tmp_path: Path, names: list[str], state: Any,
                                                         absolute: bool, message: str) -> None:
    path = data_set(tmp_path / "set")
    content = json.loads((path / "meta" / "info.json").read_text())
    content["features"]["action"]["names"] = names
    content["features"]["observation.state"] |= {"shape": [3]}
    write_info(path, content)
    stats = {"action": {"min": [-9, -9, 0], "max": [9, 9, 1]}}
    with_stats(path, **(stats if state is None else {**stats, "observation.state": state}))
    source = opened(path)
    assert ActionSpec.from_dict(source.action_spec).absolute == absolute
    assert message in source.schema.notes[0]


def test_parts_of_features_have_their_names_and_bounds(tmp_path: Path) -> None:
    path = with_stats(data_set(tmp_path / "set"), action=QUANTILES, gripper={"min": [0], "max": [1]})
    source = opened(path, fields={"action": "action[1:3],gripper"})
    spec = ActionSpec.from_dict(source.action_spec)
    assert [part.name for part in spec.parts] == ["lift", "gripper", "gripper_2"]  # pyright: ignore[reportAttributeAccessIssue]
    assert limits_of(source) == [(-0.19, 0), (0.4, 0.6), (0, 1)]


def test_summed_actions_leave_the_bounds_to_the_train_split(tmp_path: Path) -> None:
    path = with_stats(data_set(tmp_path / "set"), action=QUANTILES)
    source = opened(path, rate_hz=5.0, resample_actions="sum")
    assert source.action_spec["groups"][0]["parts"][0]["bounds"] == "quantiles"
    assert source.action_spec["rate_hz"] == 5
    assert limits_of(opened(path, rate_hz=5.0, resample_actions="last"))[0] == (0, 0.19)
    with pytest.raises(ValueError, match=r"config\.resample_actions=last"):
        opened(path, rate_hz=5.0)


def test_action_of_too_many_numbers_gets_no_spec(tmp_path: Path) -> None:
    path = data_set(tmp_path / "set")
    content = json.loads((path / "meta" / "info.json").read_text())
    content["features"]["action"] |= {"shape": [900_000_000], "names": None}
    write_info(path, content)
    source = opened(path)
    assert (source.action_spec, source.schema.defaults) == ({}, ())
    assert "more than 128 numbers" in source.schema.notes[0]


def test_default_spec_is_stored_reported_checked_and_trained_on(tmp_path: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    path, out = with_stats(data_set(tmp_path / "set"), action=QUANTILES), tmp_path / "store"
    assert main(["prepare", "--source", "lerobot", "--path", str(path), "--out", str(out), "--processes", "1",
                 "--config.image_size=16"]) == 0
    output = capsys.readouterr()
    assert "action_spec: none was given" in output.out
    assert "prepare: action_spec: none was given" in output.err
    store = open_store(out)
    assert store.metadata["action_spec"] == opened(path).action_spec
    assert store.metadata["prepared"]["defaults"] == ["action_spec"]
    assert main(["check", str(out)]) == 0  # what the quantiles cut off is not wrong
    assert "action[0] (pan)" in capsys.readouterr().out
    metrics = train_two_steps(out, DomainConfig(window=2, stride=2, max_text=32), blocks=("so_100_follower",))
    assert np.isfinite(metrics.weights.action[0])
    other = presets.arm_spec("arm", names="xyz", bounds="min_max", rate_hz=RATE_HZ)
    train_two_steps(out, DomainConfig(action_spec=other, window=2, stride=2, max_text=32), blocks=("arm",))


def test_statistics_of_other_data_are_refused_with_the_name_of_the_number(tmp_path: Path,
                                                                          capsys: pytest.CaptureFixture[str]) -> None:
    path = with_stats(data_set(tmp_path / "set"), action={"min": [0, -1, 0], "max": [0.05, 1, 1]})
    assert main(["prepare", "--source", "lerobot", "--path", str(path), "--out", str(tmp_path / "out"),
                 "--processes", "1", "--config.image_size=16"]) == 2
    assert "error: action[0] (pan): 14 of 20 values (70.0%) lie beyond the bounds 0 to 0.05" in capsys.readouterr().err
