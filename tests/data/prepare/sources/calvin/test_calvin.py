from __future__ import annotations

import dataclasses
import math
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calvin_sets import ANNOTATED, MEAN, PLAYS, STD, calvin_folder, save_annotations, save_step, step_arrays
from prepared_runs import train_two_steps

from agent_jax.actions import CALVIN, ActionSpec, StateSpec
from agent_jax.config import DomainConfig
from agent_jax.data.__main__ import main
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.prepare import prepare
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.prepare.sources.source import SourceStep
from agent_jax.data.store.store import open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return calvin_folder(tmp_path / "task_D_D")


def read_all(folder: Path, config: PrepareConfig | None = None) -> dict[str, tuple[str, list[SourceStep]]]:
    """Instruction and steps by name of the episode."""
    source = open_source("calvin", folder, config or PrepareConfig())
    return {episode.name: (episode.instruction, list(episode.steps))
            for recording in source.recordings() for episode in source.read(recording)}


def test_files_of_a_recording_are_its_steps_and_the_files_of_the_split(folder: Path) -> None:
    source = open_source("calvin", folder, PrepareConfig())
    for recording in source.recordings():
        split, annotations = recording.detail["folder"], recording.detail["annotations"]
        steps = {number for start, end, _ in (ANNOTATED[split][i] for i in annotations) for number in range(start, end)}
        files = {file for file in source.files(recording) if file.is_file()}
        assert {file.name for file in files} == {
            "auto_lang_ann.npy", "ep_start_end_ids.npy", "statistics.yaml",
            *(f"episode_{number:07d}.npz" for number in steps)}
        assert {file for file in files if file.suffix == ".npz"} == {
            folder / split / f"episode_{number:07d}.npz" for number in steps}



def test_annotation_becomes_an_episode_without_its_end_step(folder: Path) -> None:
    episodes = read_all(folder)
    assert len(episodes) == 5
    for name, annotated in ANNOTATED.items():
        for number, (start, end, text) in enumerate(annotated):
            instruction, steps = episodes[f"{name}/{number:05d}"]
            assert instruction == text
            assert [np.mean(np.asarray(step.images["rgb"])) for step in steps] == list(range(start, end))
            for index, step in zip(range(start, end), steps, strict=True):
                expected = step_arrays(index)
                np.testing.assert_array_equal(step.actions["action"], expected["rel_actions"])
                np.testing.assert_array_equal(step.observations["robot_obs"], expected["robot_obs"])


def test_annotations_with_shared_steps_form_one_recording_in_the_data_split(folder: Path) -> None:
    recordings = open_source("calvin", folder, PrepareConfig()).recordings()
    assert [(recording.split, recording.detail["annotations"]) for recording in recordings] == [
        ("train", [1, 2, 3]), ("train", [0]), ("test", [0])]
    assert len({recording.name for recording in recordings}) == 3
    seen = [set(range(*ANNOTATED["training"][number][:2])) for number in range(4)]
    assert not (seen[1] | seen[2] | seen[3]) & seen[0]


def test_state_bounds_come_from_the_training_statistics(folder: Path) -> None:
    (folder / "validation" / "statistics.yaml").write_text("robot_obs: []")  # not asked
    source = open_source("calvin", folder, PrepareConfig())
    low, high = StateSpec.from_dict(source.state_spec).bounds("robot_obs")
    np.testing.assert_allclose(low[:14], np.asarray(MEAN[:14]) - 3 * np.asarray(STD[:14]))
    np.testing.assert_allclose(high[:14], np.asarray(MEAN[:14]) + 3 * np.asarray(STD[:14]))
    assert ActionSpec.from_dict(source.action_spec) == CALVIN
    assert source.rate_hz == 30


def test_config_chooses_cameras_columns_and_task_names(folder: Path) -> None:
    spec = dataclasses.replace(CALVIN, name="absolute", absolute=True, rate_hz=15.0).to_dict()
    config = PrepareConfig(cameras={"rgb": "rgb_static", "hand": "rgb_gripper"}, fields={"action": "actions"},
                           action_spec=spec, instruction="task", rate_hz=15.0, options={"state": False})
    source = open_source("calvin", folder, config)
    assert source.schema.cameras == {"rgb": (20, 20), "hand": (12, 12)}
    assert source.rate_hz == 15
    assert (source.state_spec, source.schema.observations) == ({}, {})
    instruction, steps = read_all(folder, config)["training/00000"]
    assert instruction == "a_task"
    np.testing.assert_array_equal(steps[0].images["hand"], step_arrays(30)["rgb_gripper"])
    np.testing.assert_array_equal([step.actions["action"] for step in steps],
                                  [step_arrays(number)["actions"] for number in (31, 33, 35, 37)])  # the last targets


def test_deltas_between_kept_steps_are_summed(folder: Path) -> None:
    _, steps = read_all(folder, PrepareConfig(rate_hz=10.0))["training/00000"]
    expected = []
    for group in ((30, 31, 32), (33, 34, 35), (36, 37)):
        moves = np.asarray([step_arrays(number)["rel_actions"] for number in group])
        expected.append([*moves[:, :6].sum(0), moves[-1, 6]])
    np.testing.assert_allclose([step.actions["action"] for step in steps], expected, rtol=1e-6)
    assert [step.images["rgb"][0, 0, 0] for step in steps] == [30, 33, 36]  # pyright: ignore[reportCallIssue, reportArgumentType]


@pytest.mark.parametrize(("changes", "message"), [
    ({"fields": {"action": "actions"}}, r"config\.fields\.action='actions'.*give config\.action_spec"),
    ({"fields": {"acton": "actions"}}, r"config\.fields\.acton: .*did you mean 'action'"),
    ({"cameras": {"rgb": "rgb_statik"}}, "did you mean 'rgb_static'"),
    ({"cameras": {"rgb": "rgb_tactile"}}, "no such camera"),
    ({"options": {"langauge": "x"}}, r"config\.options\.langauge: .*'language'"),
    ({"options": {"state": "no"}}, r"config\.options\.state: found 'no' of type str, expected bool"),
    ({"rate_hz": 25.0}, "have 30 steps a second"),
    ({"instruction": "words"}, r"language\.words.*config\.instruction is 'ann' or 'task'"),
    ({"instruction_text": "play"}, "leave it out"),
])
def test_invalid_config_is_reported(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source("calvin", folder, PrepareConfig(**changes))


@pytest.mark.parametrize(("arrays", "message"), [
    ({"rel_actions": np.full(7, math.nan)}, "'rel_actions' is .nan.*expected finite numbers"),
    ({"rel_actions": np.zeros(6)}, r"'rel_actions' is float64\[6\], expected numbers of shape \[7\]"),
    ({"rgb_static": np.zeros((10, 20, 3), np.uint8)}, r"\[10, 20, 3\], expected uint8 of shape \[20, 20, 3\]"),
    ({"rgb_static": np.zeros((20, 20, 3))}, r"float64\[20, 20, 3\], expected uint8"),
    ({"robot_obs": None}, "has no 'robot_obs'; it has actions"),
])
def test_wrong_step_is_reported_with_its_file(folder: Path, arrays: dict[str, Any], message: str) -> None:
    save_step(folder / "training", 17, **arrays)
    with pytest.raises(BadDataError, match=r"training/episode_0000017\.npz: .*" + message):
        read_all(folder)


def test_missing_and_damaged_steps_are_reported_with_their_annotation(folder: Path) -> None:
    file = folder / "training" / "episode_0000017.npz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(BadDataError, match=r"episode_0000017\.npz: cannot be read"):
        read_all(folder)
    file.unlink()
    with pytest.raises(BadDataError, match=r"episode_0000017\.npz: not found, but .*annotation 1 needs it"):
        read_all(folder)


def test_annotation_outside_play_does_not_affect_the_others(folder: Path, tmp_path: Path) -> None:
    save_annotations(folder / "training", [*ANNOTATED["training"], (24, 30, "across two stretches")])
    with pytest.raises(BadDataError, match=r"annotation 4: found the steps 24 to 30, expected a range within one"):
        prepare("calvin", folder, tmp_path / "stopped", PrepareConfig())
    _, summary = prepare("calvin", folder, tmp_path / "skipped", PrepareConfig(), on_error="skip")
    assert summary["episodes"] == 5
    assert len(summary["skipped"]) == 1
    assert "annotation 4" in summary["skipped"][0]["why"]


def test_missing_files_are_reported_with_advice(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"with training/ or validation/ in it"):
        open_source("calvin", folder / "training", PrepareConfig())
    with pytest.raises(FileNotFoundError, match=r"set config\.options\.language to one of lang_annotations"):
        open_source("calvin", folder, PrepareConfig(options={"language": "lang_BERT"}))
    (folder / "training" / "statistics.yaml").write_text("robot_obs: 3")
    with pytest.raises(BadDataError, match=r"statistics\.yaml: found no mean and std"):
        open_source("calvin", folder, PrepareConfig())
    for name in PLAYS:
        (folder / name / "statistics.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.options\.state=False"):
        open_source("calvin", folder, PrepareConfig())


@pytest.mark.slow
def test_training_on_prepared_calvin(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert main(["prepare", "--source", "calvin", "--path", str(folder), "--out", str(out), "--processes", "1",
                 "--config.image_size=16", "--config.encoding=png"]) == 0
    store = open_store(out)
    assert store.splits == {"test": 1, "train": 4}
    metrics = train_two_steps(out, DomainConfig(window=2, stride=2, max_text=32))
    assert metrics.weights.action[0] >= 2 * 9  # of each step: seven tokens and two delimiters


def test_wrong_headers_of_steps_and_plays_are_reported_without_allocation(folder: Path, tmp_path: Path) -> None:
    file = folder / "training" / "episode_0000010.npz"
    whole = file.read_bytes()
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,)}\n"
    for content, message in ((b"\x93NUMPY\x01\x00" + bytes([len(header), 0]) + header, "float64[10000000000000]"),
                             (b"no array", "magic string")):
        save_step(folder / "training", 10, rel_actions=None)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("rel_actions.npy", content)
        with pytest.raises(BadDataError, match=r"episode_0000010\.npz.*rel_actions.*" + re.escape(message)):
            read_all(folder)
        _, summary = prepare("calvin", folder, tmp_path / message[:5], PrepareConfig(out_of_bounds=0.9),
                             on_error="skip")
        assert [item["why"].count("episode_0000010.npz") for item in summary["skipped"]] == [1]
    (folder / "training" / "ep_start_end_ids.npy").write_bytes(whole)
    with pytest.raises(BadDataError, match=r"ep_start_end_ids\.npy: cannot be read"):
        open_source("calvin", folder, PrepareConfig())
    np.save(folder / "training" / "ep_start_end_ids.npy", np.asarray([[0, 2**62]]))
    save_annotations(folder / "training", [(0, 2**61, "play without end"), *ANNOTATED["training"]])
    source = open_source("calvin", folder, PrepareConfig())
    assert sum(len(list(source.files(recording))) for recording in source.recordings()) < 100
    with pytest.raises(BadDataError, match="training.*annotation 0: found the steps 0 to 2305843009213693952"):
        read_all(folder)


def test_damaged_first_step_affects_only_its_recording(folder: Path, tmp_path: Path) -> None:
    (folder / "training" / "episode_0000030.npz").write_bytes(b"PK")  # of annotation 0
    _, summary = prepare("calvin", folder, tmp_path / "store", PrepareConfig(), on_error="skip")
    assert summary["episodes"] == 4
    assert [item["why"].count("episode_0000030.npz: cannot be read") for item in summary["skipped"]] == [1]
    for number in range(8, 41):
        (folder / "training" / f"episode_{number:07d}.npz").write_bytes(b"PK")
    with pytest.raises(BadDataError, match=r"episode_0000030\.npz: cannot be read"):
        open_source("calvin", folder, PrepareConfig())


def test_split_without_annotations_is_skipped_by_the_option(folder: Path,
                                                            tmp_path: Path) -> None:
    shutil.rmtree(folder / "validation" / "lang_annotations")
    with pytest.raises(FileNotFoundError, match=r"validation/lang_annotations.*config\.options\.skip_unannotated=true"):
        open_source("calvin", folder, PrepareConfig())
    store, summary = prepare("calvin", folder, tmp_path / "store", PrepareConfig(options={"skip_unannotated": True}))
    assert (store.splits, summary["episodes"]) == ({"train": 4}, 4)
    assert summary["notes"] == ["validation: left out, for it has no language annotations "
                                "(config.options.skip_unannotated)"]
    shutil.rmtree(folder / "training" / "lang_annotations")
    with pytest.raises(FileNotFoundError, match="training/lang_annotations"):  # nothing would be left
        open_source("calvin", folder, PrepareConfig(options={"skip_unannotated": True}))
