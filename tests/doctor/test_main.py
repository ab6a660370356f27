from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import lerobot_sets
import numpy as np
import pyarrow as pa
import pytest
from data_stores import arm_store, babyai_store, clip_store, language_table_store
from dot_arms import dot_episodes
from PIL import Image
from rlds_sets import bridge_set

import agent_jax.doctor.environment as environment
from agent_jax.data.images import encode_png
from agent_jax.data.store.writer import episode_features, write_store
from agent_jax.doctor.__main__ import main
from agent_jax.doctor.readers import sample


def dot_store(directory, change=lambda episode: None):
    """The sound episodes of dot_arms as a store without specs; `change` spoils one."""
    features = episode_features({"front": (32, 32, 3), "wrist": (32, 32, 3)}, {"action": ((3,), np.float32)},
                                {"state": ((3,), np.float32)})
    splits = {"train": [], "test": []}
    for one in dot_episodes(8):
        change(one)
        steps = [{"observation": {**{camera: images[t] for camera, images in one.images.items()},
                                  "state": one.states[t].astype(np.float32)},
                  "action": one.actions[t].astype(np.float32), "action_weight": 1.0, "reward": 0.0, "is_first": t == 0,
                  "is_last": t == 39, "is_terminal": False} for t in range(40)]
        splits[one.split].append({"episode_id": f"{one.number}", "recording_id": f"{one.number}", "start": 0,
                                  "instruction": one.instruction, "steps": steps})
    return write_store(directory, "dots", features, splits, {"rate_hz": 10}).directory


def findings(arguments, tmp_path, capsys):
    """Exit status, findings by detector, and what was printed."""
    file = tmp_path / "findings.json"
    status = main(["data", *map(str, arguments), "--json", str(file)])
    found = json.loads(file.read_text())["findings"] if file.is_file() else []
    output = capsys.readouterr()
    return status, {finding["detector"]: finding for finding in found}, output.out + output.err


def test_a_sound_store_has_no_finding(tmp_path, capsys):
    status, found, output = findings([dot_store(tmp_path / "dots"), "--out", tmp_path / "pictures"], tmp_path, capsys)
    assert status == 0, output
    assert not found
    assert "nothing was found" in output
    assert not (tmp_path / "pictures").exists()


def test_a_finding_names_its_episodes_and_has_a_picture(tmp_path, capsys):
    def freeze(episode):
        if episode.number == 4:
            episode.images["wrist"][10:20] = episode.images["wrist"][10]

    path = dot_store(tmp_path / "dots", freeze)
    for _ in range(2):  # the second run replaces the picture of the first
        status, found, output = findings([path, "--out", tmp_path / "pictures"], tmp_path, capsys)
    assert status == 1
    assert set(found) == {"frozen_frames"}
    assert found["frozen_frames"]["episodes"] == ["train/3"]  # the fourth record of train
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == ["frozen_frames.png"]
    with Image.open(tmp_path / "pictures" / "frozen_frames.png") as picture:
        assert picture.width > 8 * 160
    assert "train/3" in output
    assert 'doctor.md, "frozen_frames"' in output


def test_the_problems_of_check_are_findings(tmp_path, capsys):
    status, found, output = findings([clip_store(tmp_path / "clips").directory], tmp_path, capsys)
    assert status == 1
    assert "empty instruction" in found["check"]["text"], output
    assert "conflicting_labels" not in found  # there are no actions
    assert main(["data", str(tmp_path / "clips"), "--config.camera=front"]) == 2
    assert "camera" in capsys.readouterr().err


def test_stores_of_other_kinds_are_read_without_a_config(tmp_path, capsys):
    for store in (babyai_store(tmp_path / "a"), language_table_store(tmp_path / "b")):
        _, found, output = findings([store.directory], tmp_path, capsys)
        assert not {"unreadable", "unusable_values"} & set(found), output


def test_a_test_split_of_training_episodes_is_a_leak(tmp_path, capsys):
    actions = [np.random.default_rng(number).normal(size=(20, 2)) for number in range(3)]
    _, found, output = findings([arm_store(tmp_path / "arm", actions).directory], tmp_path, capsys)
    assert found["leaks_between_splits"]["episodes"] == ["test/0", "train/0"], output


@pytest.mark.parametrize("version", ["version_2", "version_3"])
def test_a_lerobot_set_is_read_with_all_cameras_and_times(tmp_path, capsys, version):
    path = getattr(lerobot_sets, version)(tmp_path / "set")
    status, found, output = findings([path], tmp_path, capsys)
    assert status == 1
    assert "3 of 3 records read" in output
    assert {"top: observation.images.top", "wrist: observation.images.wrist"} <= set(output.splitlines())
    assert found["blank_frames"]["episodes"]  # its images are grey
    assert not {"unreadable", "uneven_times"} & set(found)


def dot_lerobot(path):
    """The sound episodes of dot_arms as a LeRobot set with stored images."""
    number = {"dtype": "float32", "shape": [3]}
    camera = {"dtype": "image", "shape": [32, 32, 3], "names": ["height", "width", "channels"]}
    names = ("frame_index", "episode_index", "index", "task_index")
    content = lerobot_sets.info("v2.1", "image")
    lerobot_sets.write_info(path, {**content, "total_episodes": 8, "total_frames": 320, "splits": {"train": "0:8"},
                                   "features": {
        "front": camera, "wrist": camera, "action": {**number, "names": ["dx", "dy", "gripper"]},
        "observation.state": {**number, "names": ["x", "y", "gripper"]},
        "timestamp": {"dtype": "float32", "shape": [1]},
        **{name: {"dtype": "int64", "shape": [1]} for name in names}}})
    texts = ["go left", "go right"]
    lines = {"episodes": [{"episode_index": e, "tasks": [texts[e % 2]], "length": 40} for e in range(8)],
             "tasks": [{"task_index": task, "task": text} for task, text in enumerate(texts)]}
    for name, rows in lines.items():
        (path / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for one in dot_episodes(8):
        images = {camera: [{"bytes": encode_png(image), "path": None} for image in images]
                  for camera, images in one.images.items()}
        columns = {"frame_index": np.arange(40), "episode_index": np.full(40, one.number), "index": np.arange(40),
                   "task_index": np.full(40, one.number % 2), "timestamp": one.times_s.astype(np.float32), **images}
        for name, values in (("action", one.actions), ("observation.state", one.states)):
            columns[name] = pa.array(values.astype(np.float32).tolist(), pa.list_(pa.float32(), 3))
        lerobot_sets.write_table(path / f"data/chunk-000/episode_{one.number:06d}.parquet", pa.table(columns))
    return path


def test_a_sound_lerobot_set_has_no_finding(tmp_path, capsys):
    status, found, output = findings([dot_lerobot(tmp_path / "set")], tmp_path, capsys)
    assert status == 0, output
    assert not found, output


def test_open_x_in_tfrecord_is_read_with_all_numbers(tmp_path, capsys):
    path = bridge_set(tmp_path, "tfrecord", {"train": 4, "val": 2})
    file = tmp_path / "findings.json"
    main(["data", str(path), "--json", str(file)])
    output = capsys.readouterr().out
    assert "6 of 6 records read" in output
    assert {"image_0: steps/observation/image_0", "image_1: steps/observation/image_1"} <= set(output.splitlines())
    assert json.loads(file.read_text())["actions"] == ["action[0]", "action[1]", "action[2]"]
    assert json.loads(file.read_text())["states"] == ["state[0]", "state[1]"]


def test_missing_steps_and_a_damaged_episode_of_lerobot_are_found(tmp_path, capsys):
    path = lerobot_sets.version_2(tmp_path / "set", "image")
    table = lerobot_sets.table([1], "image")
    times = [t / 10 + (0.8 if t > 4 else 0) for t in range(9)]
    lerobot_sets.write_table(path / "data/chunk-000/episode_000001.parquet", table.set_column(
        table.column_names.index("timestamp"), "timestamp", pa.array(times, pa.float32())))
    (path / "data/chunk-000/episode_000002.parquet").write_bytes(b"damaged")
    status, found, output = findings([path, "--config.options.pairing=order"], tmp_path, capsys)
    assert status == 1
    assert found["uneven_times"]["episodes"] == ["all/1"], output
    assert found["unreadable"]["episodes"] == ["all/2"]
    assert "episode_000002.parquet" in found["unreadable"]["text"]


def test_a_data_set_of_the_hub_is_taken_from_its_cache(tmp_path, capsys, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "datasets--robots--pushing"
    lerobot_sets.version_2(repository / "snapshots" / "0123456789abcdef", "image")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef")
    _, _, output = findings(["robots/pushing"], tmp_path, capsys)
    assert "3 of 3 records read" in output
    shutil.rmtree(repository)
    status, _, output = findings(["robots/pushing"], tmp_path, capsys)
    assert status == 2
    assert "robots/pushing" in output
    assert "hf download --repo-type dataset" in output


@pytest.mark.parametrize(("arguments", "words"), [
    (["nothing_here"], ["nothing_here", "no such folder"]),
    ([".", "--source", "lerobt"], ["--source=lerobt", "lerobot"]),
    ([".", "--episodes", "-1"], ["--episodes=-1"]),
])  # fmt: skip
def test_bad_arguments_are_user_errors(arguments, words, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    status, _, output = findings(arguments, tmp_path, capsys)
    assert status == 2
    assert all(word in output for word in words), output


def test_a_folder_of_an_unknown_format_is_named_with_its_files(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("hello")
    status, _, output = findings([tmp_path / "set"], tmp_path, capsys)
    assert status == 2
    assert "notes.txt" in output
    assert "--source KIND" in output


def test_a_sample_is_spread_over_the_splits():
    assert sample({"train": 1000, "test": 3}, 9) == [
        *(("train", number) for number in (0, 200, 400, 599, 799, 999)), *(("test", number) for number in range(3))]
    assert len(sample({"train": 1000, "test": 3}, 0)) == 1003
    assert sample({"train": 1}, 300) == [("train", 0)]


def test_the_machine_is_described_in_one_line_each(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(environment, "NAMES", ("babyai", "libero"))  # the others take seconds to import
    monkeypatch.delenv("AGENT_JAX_LIBERO", raising=False)
    file = tmp_path / "machine.json"
    assert main(["--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    checks = {check["name"]: check for check in json.loads(file.read_text())["checks"]}
    assert len(lines) == len(checks)
    assert {"python", "libraries", "memory", "devices", "attention", "image codecs", "video codecs", "env babyai",
            "tokenizer", "disk here"} <= set(checks)
    assert "cpu in float32" in checks["attention"]["found"]
    assert checks["env babyai"]["found"].startswith("minigrid")
    assert checks["env libero"]["state"] == "missing"
    assert "AGENT_JAX_LIBERO" in checks["env libero"]["found"]
    assert "git clone" in checks["env libero"]["advice"]
    assert all(check["advice"] for check in checks.values() if check["state"] != "ok")


def test_what_every_run_needs_is_broken_and_the_rest_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(environment, "NAMES", ())
    monkeypatch.setattr(environment, "PYTHON", ((2, 0), (3, 0)))
    monkeypatch.setattr(environment.importlib.metadata, "requires", lambda _: [
        "numpy<2", "jax>=0.1", 'av>=99; extra == "data"', 'nosuch>=1; extra == "serve"'])
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert main([]) == 1
    found = {line[9:23].strip(): line for line in capsys.readouterr().out.splitlines()}
    for name, state, words in (("python", "broken", "3.11 to 3.13"), ("libraries", "broken", "numpy"),
                               ("extra data", "missing", "av"), ("extra serve", "missing", "nosuch is not installed"),
                               ("disk here", "broken", "0.0 GB")):
        assert found[name].startswith(state), found[name]
        assert words in found[name], found[name]
    assert "jax" not in found["libraries"]


def test_a_check_that_fails_leaves_the_others(monkeypatch):
    def broken():
        raise OSError("no such thing")
        yield

    monkeypatch.setattr(environment, "_devices", broken)
    monkeypatch.setattr(environment, "NAMES", ())
    checks = {check.name: check for check in environment.examine_machine()}
    assert checks["broken"].state == "broken"
    assert "no such thing" in checks["broken"].found
    assert "disk here" in checks
