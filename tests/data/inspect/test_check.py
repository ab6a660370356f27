from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_stores import (
    BABYAI_FEATURES,
    CAMERAS,
    arm_store,
    babyai_episodes,
    babyai_store,
    clip_store,
    language_table_store,
)
from PIL import Image
from small_runs import ROOT

from agent_jax.actions import BABYAI, LANGUAGE_TABLE, LANGUAGE_TABLE_STATE, ActionSpec, Camera, Group
from agent_jax.config import DomainConfig, presets
from agent_jax.data.__main__ import main
from agent_jax.data.inspect.check import check
from agent_jax.data.inspect.config import read_check_config
from agent_jax.data.store.store import Store
from agent_jax.data.store.writer import write_store

TABLE = DomainConfig(action_spec=LANGUAGE_TABLE.to_dict(), state_spec=LANGUAGE_TABLE_STATE.to_dict())


def store_with(directory: Path, change: Callable[[int, dict[str, Any]], None], **metadata: Any) -> Store:
    """A small store; `change` gets the number and the content of each of its six training records."""
    episodes = {split: [*babyai_episodes(lengths, seed)]
                for split, lengths, seed in (("train", (6, 1, 4, 5, 9, 2), 0), ("test", (3, 5), 1))}
    for number, record in enumerate(episodes["train"]):
        change(number, record)
    return write_store(directory, "tiles", BABYAI_FEATURES, episodes, {"action_spec": BABYAI.to_dict(), **metadata})


def test_good_data_are_described_without_problems(tmp_path):
    report = check(babyai_store(tmp_path / "set").directory, DomainConfig())
    assert report.problems == []
    assert report.figures["splits"] == {"train": {"records": 6, "steps": 27}, "test": {"records": 2, "steps": 8}}
    assert report.figures["episodes"] == 8
    assert report.figures["steps_of_an_episode"] == {"min": 1, "max": 9}
    assert report.figures["images"] == {"steps/observation/rgb": {"16x16": 35}}
    numbers = report.figures["numbers"]["action"]
    assert (numbers["low"], numbers["high"], numbers["outside"]) == (0, 6, 0)
    assert 0 < numbers["at_bound"] < 1
    text = report.text()
    for line in ("train            6 records         6 episodes          27 steps", "action spec 'babyai': the agent's",
                 "3 distinct in 8 episodes", "'go to red'", "</s> go to red", "[STARTACTION]", "nothing is wrong"):
        assert line in text, text
    json.dumps(report.figures)


def test_the_real_language_table_set_has_no_problems(language_table_data):
    config = read_check_config(language_table_data, str(ROOT / "configs" / "language_table.py"), [])
    report = check(language_table_data, config)
    assert report.problems == []
    assert report.figures["splits"]["train"] == {"records": 198, "steps": 9261}
    assert report.figures["numbers"]["action[0]"]["at_bound"] < 0.001
    assert report.figures["numbers"]["effector_translation[1]"]["outside"] == pytest.approx(0.0018, abs=1e-4)
    assert "[ROBOTACTIONX" in report.text()


def test_a_set_without_specs_is_described_by_the_range_of_its_values(tmp_path):
    report = check(language_table_store(tmp_path / "set").directory, DomainConfig())
    assert report.problems == []
    assert "no ActionSpec" in report.text()
    assert set(report.figures["numbers"]) >= {"steps/action[0]", "steps/observation/effector_translation[1]"}
    assert "low" not in report.figures["numbers"]["steps/action[0]"]


def test_values_beyond_the_declared_bounds_are_a_problem(tmp_path):
    narrow = LANGUAGE_TABLE.to_dict()
    narrow["groups"][0]["parts"][1] |= {"low": -0.01, "high": 0.01}
    report = check(language_table_store(tmp_path / "set").directory, DomainConfig(action_spec=narrow))
    (problem,) = report.problems
    assert problem.startswith("action[1] (dy): ")
    assert "lie beyond -0.01 to 0.01" in problem
    assert report.figures["numbers"]["action[1]"]["outside"] > 0.5


def test_bounds_by_quantiles_are_no_problem(tmp_path):
    store = arm_store(tmp_path / "set", [np.random.default_rng(0).normal(size=(400, 2))])
    spec = presets.arm_spec("arm", names=("x", "y"), bounds="quantiles")
    report = check(store.directory, DomainConfig(action_spec=spec))
    assert not [problem for problem in report.problems if "lie beyond" in problem]
    assert report.figures["numbers"]["action[0]"]["outside"] == pytest.approx(0.02, abs=2e-3)


@pytest.mark.parametrize(("turn", "beyond"), [(50.7, False), (51.2, True)])
def test_a_camera_is_out_of_bounds_from_the_next_whole_degree_on(tmp_path, turn, beyond):
    store = arm_store(tmp_path / "set", [np.asarray([(turn, -49.9), (0.0, 0.0)])])
    spec = ActionSpec("camera", "iafm", (Group("STARTACTION", (Camera("action"),), "ENDOFACTION"),)).to_dict()
    found = [problem for problem in check(store.directory, DomainConfig(action_spec=spec)).problems
             if problem.startswith("action[0]: 50.0% of the values lie beyond -49 to 50")]
    assert bool(found) == beyond


def test_a_number_that_is_not_finite_is_named_if_bounds_are_open(tmp_path):
    actions = np.random.default_rng(0).normal(size=(40, 2))
    actions[7, 1] = np.nan
    store = arm_store(tmp_path / "set", [np.zeros((3, 2)), actions])
    spec = presets.arm_spec("arm", names=("x", "y"), bounds="quantiles")
    report = check(store.directory, DomainConfig(action_spec=spec))
    assert any("record 1: episode '1', step 7" in problem for problem in report.problems), report.problems
    assert any("the specs cannot be used: " in problem for problem in report.problems)
    assert report.figures["splits"]["train"] == {"records": 2, "steps": 43}
    assert "the specs cannot be used; numbers found:" in report.text()


@pytest.mark.parametrize(("config", "line"), [
    ({}, "  answer: a nurse"), ({"layout": "answer"}, "  answer: a nurse"), ({"layout": "label"}, "  class 2")])
def test_answers_and_labels_are_shown_as_they_are_learned(tmp_path, config, line):
    store = clip_store(tmp_path / "set", lengths=(6, 3), test=(4,))
    report = check(store.directory, DomainConfig(cameras=CAMERAS, **config))
    assert report.problems == ["2 episodes have an empty instruction"]
    text = report.text()
    assert f"layout {config.get('layout', 'answer')!r}: no actions are predicted" in text
    assert line in text, text


@pytest.mark.parametrize(("config", "message"), [
    ({"layout": "answer", "answer": "nope"}, "no field 'nope'"),
    ({"layout": "label", "label": "answer"}, "expected one whole number")])
def test_a_layout_without_its_field_is_a_problem(tmp_path, config, message):
    store = clip_store(tmp_path / "set")
    report = check(store.directory, DomainConfig(cameras=CAMERAS, **config))
    assert any(message in problem for problem in report.problems), report.problems


def set_image(record: dict[str, Any], step: int, image: bytes) -> None:
    record["steps"][step]["observation"]["rgb"] = image


def test_a_damaged_image_is_named_with_its_episode_and_step(tmp_path):
    from agent_jax.data.images import encode_png

    whole = encode_png(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    changes = lambda n, record: set_image(record, 2, b"x" + whole) if n == 3 else None  # noqa: E731
    damaged = store_with(tmp_path / "damaged", changes)
    found = check(damaged.directory, DomainConfig()).problems
    assert len(found) == 1
    assert "split 'train', record 3: episode '0-3', step 2, steps/observation/rgb: image: " in found[0]
    cut = store_with(tmp_path / "cut", lambda n, record: set_image(record, 0, whole[:-40]) if n == 4 else None)
    assert check(cut.directory, DomainConfig(), images=False).problems == []
    (problem,) = check(cut.directory, DomainConfig(), images=True).problems
    assert "record 4: episode '0-4', step 0" in problem


def png_of(pixels: np.ndarray, **options: Any) -> bytes:
    """Pillow's PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("images", [False, True])
def test_rotated_images_are_counted_and_measured_upright(tmp_path, images):
    exif = Image.Exif()
    exif[0x0112] = 8
    lying = png_of(np.zeros((12, 16, 3), np.uint8), exif=exif)
    store = store_with(tmp_path / "set", lambda n, record: set_image(record, 0, lying) if n < 2 else None)
    report = check(store.directory, DomainConfig(), images=images)
    assert report.figures["images"] == {"steps/observation/rgb": {"16x16": 33, "16x12": 2}}
    assert report.figures["turned_images"] == {"steps/observation/rgb": 2}
    assert "2 of them are rotated or mirrored by their EXIF" in report.text()


@pytest.mark.parametrize("images", [False, True])
def test_images_of_more_than_8_bits_are_a_problem(tmp_path, images):
    depth = png_of(np.linspace(300, 4000, 256).reshape(16, 16).astype(np.uint16))
    store = store_with(tmp_path / "set", lambda n, record: set_image(record, 1, depth) if n == 2 else None)
    (problem,) = check(store.directory, DomainConfig(), images=images).problems
    assert "record 2: episode '0-2', step 1, steps/observation/rgb: image: PNG of mode 'I;16'" in problem


def test_damaged_files_are_reported_and_the_rest_is_read(tmp_path):
    store = store_with(tmp_path / "set", lambda n, record: None)
    file = store.files("train")[0]
    content = bytearray(file.read_bytes())
    middle = content.index(b"0-4") - 20
    content[middle : middle + 60] = bytes(60)
    file.write_bytes(content)
    report = check(store.directory, DomainConfig())
    assert report.problems
    assert all("record" in problem for problem in report.problems)
    assert report.figures["splits"]["test"]["records"] == 2


@pytest.mark.parametrize(("change", "metadata", "message"), [
    (lambda n, record: record.update(instruction=" ") if n < 2 else None, {}, "2 episodes have an empty instruction"),
    (lambda n, record: record.update(recording_id="1-0") if n == 1 else None, {},
     "1 recordings are in more than one split, as '1-0'"),
    (lambda n, record: record["steps"][0].update(action=9) if n < 5 else None, {},
     "of the values lie beyond 0 to 6"),
    (lambda n, record: None, {"action_spec": {**BABYAI.to_dict(), "rate_hz": 5.0}, "rate_hz": 10.0}, "rate_hz=5"),
])
def test_each_problem_has_a_message(tmp_path, change, metadata, message):
    report = check(store_with(tmp_path / "set", change, **metadata).directory, DomainConfig())
    assert any(message in problem for problem in report.problems), report.problems


def test_images_of_different_sizes_are_a_problem(tmp_path):
    from agent_jax.data.images import encode_png

    other = encode_png(np.zeros((8, 16, 3), np.uint8))
    store = store_with(tmp_path / "set", lambda n, record: set_image(record, 0, other) if n == 0 else None)
    (problem,) = check(store.directory, DomainConfig()).problems
    assert "images of steps/observation/rgb differ in size: 16 x 16 (34), 8 x 16 (1)" in problem


def test_short_and_similar_instructions_are_listed_but_no_problem(tmp_path):
    texts = ["Go to red.", "go to  red", "a", "go to blue", "go to blue", "go to grey"]
    store = store_with(tmp_path / "set", lambda n, record: record.update(instruction=texts[n]))
    report = check(store.directory, DomainConfig())
    assert report.problems == []
    assert "nearly empty: 'a', 1 episodes" in report.text()
    assert sorted(report.figures["similar_instructions"][0]) == ["Go to red.", "go to  red", "go to red"]


def test_an_instruction_counts_once_for_all_records_of_an_episode(tmp_path):
    def change(number: int, record: dict[str, Any]) -> None:
        record.update(instruction="begin" if number == 0 else "go on")
        record.update(start=6, episode_id=f"{number // 2}")  # two records an episode, none from its beginning

    report = check(store_with(tmp_path / "set", change).directory, DomainConfig())
    text = report.text()
    assert "instructions (instruction): 4 distinct in 6 episodes" in text, text
    assert "3  'go on'" in text
    assert "1  'begin'" in text


def test_the_command_exits_with_one_if_there_are_problems(tmp_path, capsys):
    good = babyai_store(tmp_path / "good").directory
    assert main(["check", str(good), "--json", str(tmp_path / "good.json")]) == 0
    assert json.loads((tmp_path / "good.json").read_text())["problems"] == []
    bad = store_with(tmp_path / "bad", lambda n, record: record.update(instruction="")).directory
    capsys.readouterr()
    assert main(["check", str(bad)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "wrong: 6 episodes have an empty instruction"
    assert main(["check", str(good), "--config.instruktion=x"]) == 2
    assert "did you mean 'instruction'?" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert "not found" in capsys.readouterr().err


def test_the_domain_is_read_from_the_config_of_a_run(tmp_path):
    run = {"data": {"domains": {"one": {"path": str(tmp_path), "instruction": "a"},
                                "two": {"path": "x", "instruction": "b"}}}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert read_check_config(tmp_path, str(tmp_path / "run.json"), []).instruction == "a"
    assert read_check_config(tmp_path, str(tmp_path / "run.json"), ["--config.cameras=a,b"]).cameras == ("a", "b")
    with pytest.raises(ValueError, match="found the domains one, two, expected exactly one"):
        read_check_config(tmp_path / "other", str(tmp_path / "run.json"), [])
