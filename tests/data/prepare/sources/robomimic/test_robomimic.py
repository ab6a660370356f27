"""HDF5 demonstrations of robomimic and LIBERO: numbers and images by step, and no access to other files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_demonstrations import LANGUAGE, ROBOSUITE, STEPS, libero_file, numbers, pixels, robomimic_file
from prepared_runs import train_two_steps

from agent_jax.actions import ActionSpec, StateSpec, arms
from agent_jax.actions.simulators import LIBERO, LIBERO_STATE
from agent_jax.config import DomainConfig, presets
from agent_jax.data.__main__ import main
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.prepare import prepare
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.prepare.sources.source import SourceEpisode, SourceStep
from agent_jax.data.store.store import open_store

LIFT: dict[str, Any] = {"instruction_text": "lift the cube"}


def read_all(path: Path, **changes: Any) -> dict[str, tuple[SourceEpisode, list[SourceStep]]]:
    source = open_source("robomimic", path, PrepareConfig(**changes))
    return {recording.name: (episode, list(episode.steps)) for recording in source.recordings()
            for episode in source.read(recording)}


def test_robomimic_file_gives_numbers_images_and_splits(tmp_path: Path) -> None:
    file = robomimic_file(tmp_path / "image_v15.hdf5")
    source = open_source("robomimic", file, PrepareConfig(**LIFT, cameras={"rgb": "agentview_image",
                                                                           "wrist": "robot0_eye_in_hand_image"}))
    spec = ActionSpec.from_dict(source.action_spec)
    assert spec == ActionSpec.from_dict(arms.osc_pose_spec("robosuite"))
    names = [getattr(part, "name", "") for part in spec.parts]
    assert names == ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    assert (source.rate_hz, source.state_spec, source.schema.notes) == (20.0, {}, ())
    assert source.schema.cameras == {"rgb": (16, 16), "wrist": (16, 16)}
    assert [(item.name, item.split) for item in source.recordings()] == [
        ("image_v15/demo_0", "train"), ("image_v15/demo_1", "test"), ("image_v15/demo_2", "train"),
        ("image_v15/demo_10", "train")]
    assert list(source.files(source.recordings()[0])) == [file]
    episodes = read_all(file, **LIFT)
    assert [len(steps) for _, steps in episodes.values()] == [6, 5, 7, 4]
    for name, (episode, steps) in episodes.items():
        number = int(name.rpartition("_")[2])
        assert (episode.instruction, episode.terminal) == ("lift the cube", True)
        count = len(steps)
        np.testing.assert_array_equal([step.images["rgb"] for step in steps], pixels(number, count))
        np.testing.assert_array_equal([step.actions["action"] for step in steps], numbers(number, count, 7))
        hand, fingers = [numbers(number, count, width) for width in (3, 4)], numbers(number, count, 2) / 20
        state = np.concatenate([*hand, fingers], 1)
        np.testing.assert_array_equal([step.observations["state"] for step in steps], state)
        assert [step.reward for step in steps] == [0.0] * (count - 1) + [1.0]


def test_libero_folder_gives_instructions_specs_and_upright_images(tmp_path: Path) -> None:
    libero_file(tmp_path / "libero_90")
    libero_file(tmp_path / "libero_90", "LIVING_ROOM_SCENE1_pick_up_the_soup", language="")
    source = open_source("robomimic", tmp_path / "libero_90", PrepareConfig())
    assert ActionSpec.from_dict(source.action_spec) == LIBERO
    assert StateSpec.from_dict(source.state_spec) == LIBERO_STATE
    assert source.schema.notes == ("images: turned by half a turn, as LIBERO stores them upside down "
                                   "(config.options.turn=half)",)
    episodes = read_all(tmp_path / "libero_90")
    assert [episode.instruction for episode, _ in episodes.values()] == [LANGUAGE] * 2 + ["pick up the soup"] * 2
    episode, steps = episodes["KITCHEN_SCENE3_turn_on_the_stove_demo/demo_1"]
    np.testing.assert_array_equal([step.images["rgb"] for step in steps], pixels(1, 5)[:, ::-1, ::-1])
    assert np.asarray(steps[0].images["rgb"])[-1, -1, 0] == 250
    np.testing.assert_array_equal([step.observations["state"][:6] for step in steps],
                                  numbers(1, 5, 6) + np.array([0, 0, 0.5, 0, 0, 0]))
    for turn, expected in (("none", pixels(1, 5)), ("flip", pixels(1, 5)[:, ::-1])):
        _, steps = read_all(tmp_path / "libero_90", options={"turn": turn})[episode.name]
        np.testing.assert_array_equal([step.images["rgb"] for step in steps], expected)


def test_config_chooses_columns_mask_rate_and_instructions(tmp_path: Path) -> None:
    file = robomimic_file(tmp_path / "lift.hdf5")
    spec = presets.arm_spec("panda", names=list("xyzabcg"), low=-2.0, high=2.0, absolute=True)
    (tmp_path / "texts.csv").write_text("name,instruction\nlift,lift it\n")
    found = read_all(file, action_spec=spec, fields={"action": "actions_abs", "state": "robot0_eef_pos[2],object[0:3]"},
                     rate_hz=10.0, options={"filter": "half", "instructions": "texts.csv"})
    assert list(found) == ["lift/demo_1", "lift/demo_2"]
    episode, steps = found["lift/demo_1"]
    assert episode.instruction == "lift it"
    np.testing.assert_array_equal([step.images["rgb"] for step in steps], pixels(1, 5)[::2])
    np.testing.assert_array_equal([step.actions["action"] for step in steps], (numbers(1, 5, 7) * 3)[[1, 3, 4]])
    state = np.concatenate([numbers(1, 5, 3)[:, 2:], numbers(1, 5, 10)[:, :3]], 1)[::2]
    np.testing.assert_array_equal([step.observations["state"] for step in steps], state)
    assert read_all(file, **LIFT, options={"state": False})["lift/demo_0"][1][0].observations == {}


def test_robocasa_instructions_and_a_named_attribute_are_read(tmp_path: Path) -> None:
    file = robomimic_file(tmp_path / "demo_gentex.hdf5")
    with h5py.File(file, "a") as content:
        for name in STEPS:
            content[f"data/{name}"].attrs["ep_meta"] = json.dumps({"lang": f"open the door {name}"})
            content[f"data/{name}"].attrs["task"] = f"task {name}"
    assert read_all(file)["demo_gentex/demo_2"][0].instruction == "open the door demo_2"
    assert read_all(file, instruction="task")["demo_gentex/demo_2"][0].instruction == "task demo_2"


@pytest.mark.parametrize(("changes", "message"), [
    ({}, r"demo_0: holds no instruction; give one.*config\.instruction_text.*config\.options\.instructions"),
    ({**LIFT, "options": {"filter": "no"}}, r"config\.options\.filter='no'.*it has half, train, valid"),
    ({**LIFT, "options": {"turn": "up"}}, r"config\.options\.turn: found 'up', .*'half\'"),
    ({**LIFT, "cameras": {"rgb": "agentview_imag"}}, "did you mean 'agentview_image'"),
    ({**LIFT, "cameras": {"rgb": "agentview_depth"}}, r"neither images \(N, H, W, 3\) of uint8 nor vectors"),
    ({**LIFT, "fields": {"action": "actions_abs"}}, r"'actions_abs'.*give config\.action_spec"),
    ({**LIFT, "fields": {"state": "robot0_eef"}}, r"config\.fields\.state='robot0_eef': no feature"),
    ({**LIFT, "rate_hz": 15.0}, "have 20 steps a second"),
])
def test_invalid_config_is_reported(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = robomimic_file(tmp_path / "lift.hdf5")
    with pytest.raises(ValueError, match=message):
        read_all(file, **changes)


@pytest.mark.parametrize(("controller", "message"), [
    ({"type": "OSC_POSE", "control_delta": False}, "OSC_POSE of targets, not OSC_POSE of deltas"),
    ({"type": "JOINT_VELOCITY"}, "JOINT_VELOCITY, not OSC_POSE"),
    ({"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE", "input_type": "absolute"}}}, "of targets"),
])
def test_actions_of_another_controller_require_a_spec(tmp_path: Path, controller: dict[str, Any], message: str) -> None:
    env_args = copy.deepcopy(ROBOSUITE)
    env_args["env_kwargs"]["controller_configs"] = controller
    file = robomimic_file(tmp_path / "x.hdf5", env_args)
    with pytest.raises(ValueError, match=message + r".*config\.action_spec"):
        open_source("robomimic", file, PrepareConfig(**LIFT))
    env_args["env_kwargs"]["controller_configs"] = {"type": "BASIC", "body_parts": {"right": {
        "type": "OSC_POSE", "input_type": "delta"}}}
    assert open_source("robomimic", robomimic_file(tmp_path / "y.hdf5", env_args), PrepareConfig(**LIFT)).action_spec


def replace(file: h5py.File, path: str, **made: Any) -> None:
    del file[path]
    file.create_dataset(path, **made)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((5, 7), "f8")
    layout[:] = h5py.VirtualSource("secret.hdf5", "x", shape=(5, 7))
    del file["data/demo_1/actions"]
    file.create_virtual_dataset("data/demo_1/actions", layout)


def linked(path: str, link: Any) -> Any:
    def change(file: h5py.File) -> None:
        del file[path]
        file[path] = link
    return change


@pytest.mark.parametrize(("change", "message"), [
    (linked("data/demo_1/actions", h5py.ExternalLink("secret.hdf5", "/x")), r"link to the file 'secret\.hdf5"),
    (linked("data/demo_1/obs", h5py.ExternalLink("secret.hdf5", "/")), r"link to the file 'secret\.hdf5"),
    (virtual, "keeps its data in other files"),
    (lambda file: replace(file, "data/demo_1/actions", shape=(5, 7), dtype="f8",
                          external=[("secret.hdf5", 0, 280)]), "keeps its data in other files"),
    (linked("data/demo_1/actions", h5py.SoftLink("/data/demo_1/actions")), "more than 8 links"),
    (lambda file: replace(file, "data/demo_1/actions", data=numbers(1, 4, 7)), "actions has 4 steps, but .* 5"),
    (lambda file: replace(file, "data/demo_1/actions", data=numbers(1, 5, 6)), r"shape \[5, 6\], expected \[5, 7\]"),
    (lambda file: replace(file, "data/demo_1/actions", data=np.array(["a"] * 5, "S")), r"holds \|S1, expected numbers"),
    (lambda file: replace(file, "data/demo_1/obs/agentview_image", data=pixels(1, 5, 12)), r"uint8\[5, 12, 12, 3\]"),
    (lambda file: replace(file, "data/demo_1/actions", shape=(2**40, 7), dtype="f8", chunks=(64, 7)), "has 109951162"),
    (lambda file: file["data/demo_1"].attrs.modify("num_samples", 9), "attribute num_samples 9"),
    (linked("data/demo_1/obs/agentview_image", h5py.SoftLink("../../no")), "agentview_image: not found"),
], ids=["external", "external group", "virtual", "storage", "circle", "length", "width", "text", "image", "rows",
        "samples", "nowhere"])
def test_damaged_or_external_demonstration_does_not_affect_the_others(tmp_path: Path, change: Any,
                                                                      message: str) -> None:
    file = robomimic_file(tmp_path / "lift.hdf5")
    with h5py.File(tmp_path / "secret.hdf5", "w") as secret:
        secret["x"] = np.ones((5, 7))
    with h5py.File(file, "a") as content:
        change(content)
    source = open_source("robomimic", file, PrepareConfig(**LIFT))
    for recording in source.recordings():
        if not recording.name.endswith("demo_1"):
            assert [len(list(episode.steps)) for episode in source.read(recording)]
            continue
        with pytest.raises(BadDataError, match=rf"lift\.hdf5, (data/)?demo_1.*{message}"):
            [list(episode.steps) for episode in source.read(recording)]


def test_huge_declared_data_set_is_refused_before_allocation(tmp_path: Path) -> None:
    file = robomimic_file(tmp_path / "lift.hdf5")
    with h5py.File(file, "a") as content:
        demo: Any = content["data/demo_1"]
        del demo["actions"], demo.attrs["num_samples"], demo["obs"]
        demo.create_dataset("actions", shape=(2**30, 7), dtype="f8", chunks=(64, 7))
        for name, shape in (("robot0_eef_pos", (3,)), ("robot0_eef_quat", (4,)), ("robot0_gripper_qpos", (2,)),
                            ("agentview_image", (16, 16, 3))):
            demo.create_dataset(f"obs/{name}", shape=(2**30, *shape), dtype="u1", chunks=(64, *shape))
    assert file.stat().st_size < 2**20
    with pytest.raises(BadDataError, match=r"lift\.hdf5, .*demo_1.*unpack to .*AGENT_JAX_MAX_READ_MB="):
        read_all(file, **LIFT)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(BadDataError, match=r"x\.hdf5: cannot be read"):
        open_source("robomimic", tmp_path / "x.hdf5", PrepareConfig())
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["observations/qpos"] = np.ones((3, 14))
    with pytest.raises(BadDataError, match=r"x\.hdf5: found observations, expected a group `data`"):
        open_source("robomimic", tmp_path / "x.hdf5", PrepareConfig())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"found no file \*\.hdf5"):
        open_source("robomimic", tmp_path / "empty", PrepareConfig())
    whole = robomimic_file(tmp_path / "lift.hdf5").read_bytes()
    (tmp_path / "lift.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadDataError, match=r"lift\.hdf5: cannot be read"):
        open_source("robomimic", tmp_path / "lift.hdf5", PrepareConfig())
    with h5py.File(tmp_path / "low.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.ones((3, 7))
        file["data/demo_0/obs/object"] = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"obs holds no images.*dataset_states_to_obs\.py"):
        open_source("robomimic", tmp_path / "low.hdf5", PrepareConfig())


def test_link_to_a_file_outside_the_folder_is_refused(tmp_path: Path) -> None:
    robomimic_file(tmp_path / "lift.hdf5")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.hdf5").symlink_to(tmp_path / "lift.hdf5")
    with pytest.raises(BadDataError, match="allow_root"):
        open_source("robomimic", tmp_path / "folder", PrepareConfig())
    open_source("robomimic", tmp_path / "folder", PrepareConfig(allow_root=(str(tmp_path),)))


def test_damaged_demonstration_is_skipped_by_the_flag(tmp_path: Path) -> None:
    file = robomimic_file(tmp_path / "lift.hdf5")
    with h5py.File(file, "a") as content:
        replace(content, "data/demo_2/actions", data=numbers(2, 3, 7))
    _, summary = prepare("robomimic", file, tmp_path / "out", PrepareConfig(**LIFT), on_error="skip")
    assert (summary["episodes"], len(summary["skipped"])) == (3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["robomimic", "libero"])
def test_prepared_demonstrations_pass_the_check_and_train(tmp_path: Path, layout: str) -> None:
    path = robomimic_file(tmp_path / "lift.hdf5") if layout == "robomimic" else libero_file(tmp_path / "goal").parent
    out = tmp_path / "store"
    given = ["--config.instruction_text=lift the cube"] if layout == "robomimic" else []
    assert main(["prepare", "--source", "robomimic", "--path", str(path), "--out", str(out), "--processes", "1",
                 "--config.encoding=png", *given]) == 0
    assert open_store(out).splits == ({"test": 1, "train": 3} if layout == "robomimic" else {"test": 1, "train": 1})
    block = "robosuite" if layout == "robomimic" else "libero"
    assert main(["check", str(out)]) == 0
    metrics = train_two_steps(out, DomainConfig(window=2, stride=2, max_text=32), blocks=("iafm", block))
    assert metrics.weights.action[0] >= 2 * 9  # of each step: seven tokens and two delimiters
