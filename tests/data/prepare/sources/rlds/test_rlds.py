from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_stores import arm_store, clip_store
from rlds_sets import STEPS, bridge_set, jpeg, written_set
from small_runs import small_config, trained
from tensorboardX.record_writer import RecordWriter
from tensorboardX.record_writer import masked_crc32c as other_masked_crc32c

from agent_jax.actions import ActionSpec, Bins, Choice, Group
from agent_jax.config import DomainConfig, presets
from agent_jax.data.__main__ import main
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.images import encode_png, prepare_image
from agent_jax.data.inspect.check import check
from agent_jax.data.inspect.config import complete
from agent_jax.data.inspect.contact_sheet import show
from agent_jax.data.prepare.config import PrepareConfig, prepare_config
from agent_jax.data.prepare.prepare import prepare
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.prepare.sources.rlds.tfrecord import masked_crc32c, record_offsets
from agent_jax.data.store.split_index import split_index
from agent_jax.data.store.store import Store, open_store
from agent_jax.data.store.writer import ShardWriter, begin_store, finish_store, shard_path

ARM = ActionSpec("arm", "iafm", (Group("STARTACTION", (
    *(Bins("action", d, f"ROBOTACTION{d}_", -0.1, 0.1) for d in range(2)),
    Choice("action", 2, ("GRIPPER_OPEN", "GRIPPER_CLOSE"), (1.0, 0.0)),
), "ENDOFACTION"),))
JOINED = {"action": "world_vector,open_gripper"}


def config(**changes: Any) -> PrepareConfig:
    given = {"cameras": {"rgb": "image_0"}, "fields": JOINED, "action_spec": ARM.to_dict(), **changes}
    return PrepareConfig(**given)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_joined_action_and_chosen_cameras_are_read(tmp_path, file_format):
    path = bridge_set(tmp_path, file_format, {"train": 4, "val": 2})
    source = open_source("rlds", path, config(cameras={"rgb": "image_0", "wrist": "steps/observation/image_1"}))
    assert source.schema.cameras == {"rgb": (16, 24), "wrist": (16, 24)}
    assert source.schema.actions["action"][0] == (3,)
    recordings = source.recordings()
    assert [recording.split for recording in recordings] == ["train"] * 4 + ["test"] * 2
    assert [recording.name for recording in recordings][3:] == ["train/00001/0", "val/00000/0", "val/00000/1"]
    (episode,) = source.read(recordings[4])
    assert episode.instruction == "put away number 4"
    assert (episode.start, episode.ends, episode.terminal) == (0, True, True)
    steps = list(episode.steps)
    assert len(steps) == STEPS
    np.testing.assert_allclose([step.actions["action"] for step in steps],
                               [[0.04, t / 100, t % 2] for t in range(STEPS)], rtol=1e-6)
    assert [step.images["rgb"] for step in steps] == [jpeg(40 + t) for t in range(STEPS)]
    assert steps[0].images["wrist"] == jpeg(196)


def test_tfrecord_and_array_record_give_equal_episodes(tmp_path):
    read = []
    for file_format in ("array_record", "tfrecord"):
        source = open_source("rlds", bridge_set(tmp_path / file_format, file_format, {"train": 4}), config())
        read.append([(episode.name, [step.images["rgb"] for step in episode.steps])
                     for recording in source.recordings() for episode in source.read(recording)])
    assert read[0] == read[1]
    assert len(read[0]) == 4


def test_newest_version_in_a_folder_is_opened(tmp_path):
    bridge_set(tmp_path, "tfrecord", {"train": 1})
    old = bridge_set(tmp_path / "old", "tfrecord", {"train": 2})
    old.rename(tmp_path / "bridge" / "0.0.9")
    assert len(open_source("rlds", tmp_path / "bridge", config()).recordings()) == 1


def test_single_split_is_left_for_prepare_to_divide(tmp_path):
    source = open_source("rlds", bridge_set(tmp_path, "tfrecord", {"train": 2}), config())
    assert [recording.split for recording in source.recordings()] == ["", ""]


def test_changing_instruction_divides_an_episode(tmp_path):
    def change(number: int, episode: dict[str, Any]) -> None:
        for step in episode["steps"][4:]:
            step["language_instruction"] = "stop"

    source = open_source("rlds", bridge_set(tmp_path, "tfrecord", {"train": 1}, change=change), config())
    parts = list(source.read(source.recordings()[0]))
    assert [(part.instruction, part.start, len(list(part.steps)), part.ends, part.terminal) for part in parts] == [
        ("put away number 0", 0, 4, False, False), ("stop", 4, 2, True, True)]
    assert parts[0].name == parts[1].name


def test_last_action_drop_sets_its_weight_to_zero(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 1})
    source = open_source("rlds", path, config(options={"last_action": "drop"}))
    (episode,) = source.read(source.recordings()[0])
    assert [step.action_weight for step in episode.steps] == [1.0] * (STEPS - 1) + [0.0]


def damage(path: Path, record: int, place: str) -> None:
    """Change one byte of a record's length or content."""
    content = bytearray(path.read_bytes())
    content[record_offsets(path)[0][record] + {"length": 0, "content": 100}[place]] ^= 1
    path.write_bytes(content)


def outcomes(path: Path) -> list[str]:
    """What reading each recording comes to: its length, or the error."""
    source = open_source("rlds", path, config())
    found = []
    for recording in source.recordings():
        try:
            (episode,) = source.read(recording)
            found.append(str(len(list(episode.steps))))
        except BadDataError as error:
            found.append(str(error).removeprefix(f"{path}/"))
    return found


def test_damaged_record_is_reported_and_the_others_are_read(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 3})
    damage(path / "bridge-train.tfrecord-00000-of-00001", 1, "content")
    first, second, third = outcomes(path)
    assert (first, third) == ("6", "6")
    assert second.startswith("bridge-train.tfrecord-00000-of-00001, record 1: the content is damaged (crc32c differs")


def test_damaged_length_loses_only_the_rest_of_its_file(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 5})
    damage(path / "bridge-train.tfrecord-00000-of-00002", 1, "length")
    found = outcomes(path)
    assert len(found) == 4
    assert (found[0], found[2], found[3]) == ("6", "6", "6")
    assert found[1].startswith("bridge-train.tfrecord-00000-of-00002: the length of record 1 is damaged")


@pytest.mark.parametrize(("cut", "message"), [(5, "the file ends within record 2"), (None, "missing, but"),
                                              ("record", "holds 2 records, but dataset_info.json says 3")])
def test_truncated_or_missing_file_is_reported(tmp_path, cut, message):
    path = bridge_set(tmp_path, "tfrecord", {"train": 3})
    file = path / "bridge-train.tfrecord-00000-of-00001"
    content = file.read_bytes()
    if cut is None:
        file.unlink()
    else:
        file.write_bytes(content[: record_offsets(file)[0][2]] if cut == "record" else content[:-cut])
    assert outcomes(path)[-1].startswith(f"{file.name}: {message}")


@pytest.mark.parametrize("cut", [200, 70_000])  # within its footer; within its records
def test_damaged_array_record_file_is_reported(tmp_path, cut):
    path = bridge_set(tmp_path, "array_record", {"train": 3})
    file = sorted(path.glob("*train*"))[0]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - cut] if cut < len(content) else content[:100])
    assert f"{file.name}: " in outcomes(path)[-1]


def test_framing_and_checksum_agree_with_tensorboardx(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 2})
    file = path / "bridge-train.tfrecord-00000-of-00001"
    offsets, wrong = record_offsets(file)
    assert (len(offsets), wrong) == (2, "")
    for content in (b"", b"123456789", struct.pack("<Q", 4711)):
        assert masked_crc32c(content) == other_masked_crc32c(content)


def tensor_set(directory: Path, file_format: Literal["array_record", "tfrecord"] = "tfrecord") -> Path:
    """Two episodes whose camera `pixels` is a tensor, with other tensors that are not images."""
    tensor, image = tfds.features.Tensor, tfds.features.Image
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset({
        "observation": {"pixels": tensor(shape=(4, 6, 3), dtype=np.uint8),
                        "packed": tensor(shape=(4, 6, 3), dtype=np.uint8, encoding="zlib"),
                        "points": tensor(shape=(4, 6, 3), dtype=np.float32),
                        "depth": image(shape=(4, 6, 1), dtype=np.uint16)},
        "action": tensor(shape=(2,), dtype=np.float32), "language_instruction": tfds.features.Text(),
        "is_last": np.bool_})})
    grey = encode_png(np.zeros((4, 6, 3), np.uint8))

    def step(number: int, t: int) -> dict[str, Any]:
        return {"observation": {"pixels": tensor_pixels(number, t), "packed": np.zeros((4, 6, 3), np.uint8),
                                "points": np.zeros((4, 6, 3), np.float32), "depth": io.BytesIO(grey)},
                "action": np.zeros(2, np.float32), "language_instruction": "push", "is_last": t == 2}

    episodes = [{"steps": [step(number, t) for t in range(3)]} for number in range(2)]
    return written_set(directory, features, {"train": episodes}, file_format)


def tensor_pixels(number: int, t: int) -> np.ndarray:
    return (np.arange(72).reshape(4, 6, 3) * 3 + 10 * number + t).astype(np.uint8)


def test_pixel_tensors_are_images(tmp_path):
    chosen = PrepareConfig(encoding="png")  # `rgb` is the only images there are
    source = open_source("rlds", tensor_set(tmp_path), chosen)
    assert source.schema.cameras == {"rgb": (4, 6)}
    (episode,) = source.read(source.recordings()[1])
    np.testing.assert_array_equal([step.images["rgb"] for step in episode.steps],
                                  [tensor_pixels(1, t) for t in range(3)])
    store, _ = prepare("rlds", tensor_set(tmp_path / "again"), tmp_path / "out", chosen)
    split = next(split for split, count in store.splits.items() if count)
    (image,) = store.split(split)[0].values("steps/observation/rgb", 1, 2)
    assert any(np.array_equal(prepare_image(image, 0), tensor_pixels(number, 1)) for number in range(2))


def test_store_with_pixel_tensors_is_checked_shown_and_read(tmp_path):
    path = tensor_set(tmp_path, "array_record")
    spec = presets.arm_spec("arm", names=("x", "y"), low=-1, high=1)
    chosen = DomainConfig(cameras=("steps/observation/pixels",), instruction="steps/language_instruction",
                          action_spec=spec)
    report = check(path, chosen, images=True)
    assert report.problems == []
    assert report.figures["images"] == {"steps/observation/pixels": {"4x6": 6}}
    show(path, tmp_path / "sheet.png", chosen, split="train", episodes=1, frames=2)
    wrong = check(path, dataclasses.replace(chosen, cameras=("steps/observation/depth",))).problems
    assert any("cameras='steps/observation/depth'" in problem and "uint16" in problem for problem in wrong), wrong


@pytest.mark.parametrize(("camera", "found"), [
    ("points", r"array \[4, 6, 3\] of float32"), ("depth", r"image \[4, 6, 1\] of uint16"),
    ("packed", "text .*of object")])
def test_features_other_than_8_bit_images_are_refused_as_cameras(tmp_path, camera, found):
    with pytest.raises(ValueError, match=f"config.cameras.rgb: .*{camera}.* is not an image; expected one of "
                                         f"steps/observation/pixels: .*found {found}"):
        open_source("rlds", tensor_set(tmp_path), PrepareConfig(cameras={"rgb": camera}))


@pytest.mark.parametrize(("changes", "message"), [
    ({"cameras": {"rgb": "image_7"}}, r"config.cameras.rgb: .* no feature 'image_7'; nearest: steps/observation/image"),
    ({"cameras": {"rgb": "state"}}, r"'steps/observation/state' is not an image; .*image_0"),
    ({"fields": {"action": "world_vector"}}, r"expects shape \(3,\) for 'action', found \(2,\) in steps/action/world"),
    ({"fields": {}}, r"config.fields.action: .* no feature 'action'"),
    ({"fields": {**JOINED, "actions": "world_vector"}}, "config.fields.actions: no key .* did you mean 'action'?"),
    ({"fields": {}, "action_spec": {}}, "no feature 'steps/action'; give an ActionSpec"),
    ({"instruction": "task"}, "config.instruction: .* no feature 'task'"),
    ({"options": {"fps": 3}}, "config.options.fps: no such field; known fields: last_action"),
])
def test_missing_features_are_reported_with_the_existing_ones(tmp_path, changes, message):
    path = bridge_set(tmp_path, "tfrecord", {"train": 1})
    with pytest.raises(ValueError, match=message):
        open_source("rlds", path, config(**changes))


def test_folder_without_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no dataset_info.json and features.json, expected the directory of a TFDS"):
        open_source("rlds", tmp_path, config())


def test_array_record_of_tfds_with_several_cameras_opens_without_conversion(tmp_path):
    store = open_store(bridge_set(tmp_path, "array_record", {"train": 4, "val": 1}))
    episode = store.split("train")[3]
    assert episode.values("steps/observation/image_1", 2, 3) == [jpeg(197)]
    np.testing.assert_allclose(episode.values("steps/action/world_vector", 2, 3), [[0.03, 0.02]], rtol=1e-6)
    assert episode.texts("steps/language_instruction")[0] == "put away number 3"


def test_preparing_a_prepared_set_keeps_recordings_whole(tmp_path):
    raw = bridge_set(tmp_path, "tfrecord", {"train": 9})
    first, _ = prepare("rlds", raw, tmp_path / "first", config(segment_bytes=1, window=2, validation=0.0))
    assert first.splits == {"train": 27}
    again, summary = prepare("rlds", first.directory, tmp_path / "again", PrepareConfig(validation=0.4))
    assert (summary["recordings"], summary["episodes"], summary["records"]) == (9, 9, 27)
    recordings = {split: {bytes(episode.value("recording_id")) for episode in again.split(split)}
                  for split in ("train", "test")}
    assert not recordings["train"] & recordings["test"]
    assert set().union(*recordings.values()) == {bytes(episode.value("recording_id"))
                                                 for episode in first.split("train")}
    names = ("episode_id", "start", "instruction")
    assert _values(again, names) == _values(first, names)


def _values(store: Store, names: Sequence[str]) -> list[tuple[Any, ...]]:
    return sorted(tuple(bytes(np.asarray(episode.value(name))) for name in names)
                  for split in store.splits for episode in store.split(split))


def test_recording_in_two_splits_is_refused(tmp_path):
    actions = [np.zeros((2, 2), np.float32)] * 2
    store = arm_store(tmp_path / "leaky", actions)  # its test episode is one of those trained on
    with pytest.raises(BadDataError, match="two recordings are named '0': .*test.*record 0 and .*train.*record 0"):
        prepare("rlds", store.directory, tmp_path / "out", PrepareConfig())


def test_preparing_a_prepared_set_keeps_answers_and_labels(tmp_path):
    store = clip_store(tmp_path / "clips")
    asked = PrepareConfig(cameras={"rgb": "front"}, instruction_text="who?")
    again, _ = prepare("rlds", store.directory, tmp_path / "again", asked)
    assert _values(again, ("episode_id", "answer", "label")) == _values(store, ("episode_id", "answer", "label"))
    assert again.splits == store.splits


@pytest.mark.slow
def test_tfds_and_prepared_sets_train_in_one_run(tmp_path):
    steps = ActionSpec("arm", "iafm", (Group("STARTACTION", (
        Bins("action/world_vector", 0, "ROBOTACTION0_", -0.1, 0.1),
        Bins("action/world_vector", 1, "ROBOTACTION1_", -0.1, 0.1),
    ), "ENDOFACTION"),))
    direct = bridge_set(tmp_path / "direct", "array_record", {"train": 4, "val": 1})
    tfrecord = bridge_set(tmp_path / "tfrecord", "tfrecord", {"train": 4, "val": 1})
    prepare("rlds", tfrecord, tmp_path / "prepared", config(image_size=16))
    domains = {
        "direct": presets.domain(path=str(direct), window=2, stride=2, max_text=32, action_spec=steps.to_dict(),
                                 cameras=("steps/observation/image_0", "steps/observation/image_1"),
                                 instruction="steps/language_instruction", validation_split="val"),
        "prepared": presets.domain(path=str(tmp_path / "prepared"), window=2, stride=2, max_text=32),
    }
    changes = {"data.domains": domains, "vocabulary.blocks": ("iafm",), "train.steps": 2}
    run = trained(small_config(tmp_path, **changes), tmp_path / "run")
    assert int(run.state.step) == 2
    assert run.validation is not None
    assert set(run.validation.domains) == {"direct", "prepared"}


TEXTS = [("put it down", "place it", "drop it"), ("", "move it", ""), ("  ", "", "open it"), ("", "", "")]


def droid_set(tmp_path: Path) -> Path:
    """Four episodes with three instructions as in DROID, some of them empty."""
    names = ("language_instruction", "language_instruction_2", "language_instruction_3")
    text = tfds.features.Text()
    steps = tfds.features.Dataset({"observation": {"image_0": tfds.features.Image(shape=(16, 24, 3))},
                                   "action": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                                   "is_last": np.bool_, **dict.fromkeys(names, text)})
    build = begin_store(tmp_path / "droid", {})
    features = tfds.features.FeaturesDict({"steps": steps})
    with ShardWriter(shard_path(build, "droid", "train", 0, 1), features) as writer:
        for texts in TEXTS:
            writer.write({"steps": [{"observation": {"image_0": jpeg(t)}, "action": np.zeros(2, np.float32),
                                     "is_last": t == 2, **dict(zip(names, texts, strict=True))} for t in range(3)]})
    finish_store(tmp_path / "droid", "droid", features)
    return tmp_path / "droid"


@pytest.mark.parametrize(("instruction", "expected"), [
    ("", ["put it down", "move it", "open it", ""]),  # the default
    ("language_instruction_3, steps/language_instruction", ["drop it", "", "open it", ""]),
    (["language_instruction_2", "language_instruction"], ["place it", "move it", "  ", ""]),
    ('["language_instruction_2", "language_instruction_3"]', ["place it", "move it", "open it", ""]),
])
def test_first_nonempty_instruction_is_taken(tmp_path, instruction, expected):
    given = prepare_config({"instruction": instruction, "cameras": {"rgb": "image_0"}})
    source = open_source("rlds", droid_set(tmp_path), given)
    found = [episode.instruction for recording in source.recordings() for episode in source.read(recording)]
    assert [text.strip() for text in found] == [text.strip() for text in expected]


def test_check_and_training_take_the_first_nonempty_instruction(tmp_path, capsys):
    path = droid_set(tmp_path)
    names = "steps/language_instruction,steps/language_instruction_2,steps/language_instruction_3"
    index = split_index(open_store(path), "train", names)
    assert index.texts == ("put it down", "move it", "open it", "")
    assert main(["check", str(path), f"--config.instruction={names}"]) == 1
    assert "wrong: 1 episodes have an empty instruction" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no field 'steps/nothing'"):
        complete(DomainConfig(instruction=f"{names},steps/nothing", cameras=("steps/observation/image_0",)),
                 open_store(path))
    assert main(["prepare", "--source", "rlds", "--path", str(path), "--out", str(tmp_path / "out"), "--processes=1",
                 "--on_error=skip", "--config.validation=0"]) == 0
    assert open_store(tmp_path / "out").splits == {"train": 3}


def test_wrong_number_of_shards_is_reported_with_both_numbers(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 7})
    for file in sorted(path.glob("*tfrecord*")):
        file.rename(path / file.name.replace("-of-00003", "-of-00004"))
    assert outcomes(path)[0].startswith(
        "bridge-train.tfrecord-00000-of-00003: missing; dataset_info.json lists 3 files of split 'train', found 3 of "
        "other names, as bridge-train.tfrecord-00002-of-00004")


def test_invalid_example_is_skipped_and_length_beyond_the_file_ends_it(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 3})
    file = path / "bridge-train.tfrecord-00000-of-00001"
    writer = RecordWriter(str(file))
    contents = [b"x" * 99, b""]
    for content in contents:
        writer.write(content)
    writer.close()
    whole = file.read_bytes()
    header = struct.pack("<Q", 2**60)
    file.write_bytes(whole + header + struct.pack("<I", masked_crc32c(header)) + b"x" * 50)
    first, second, end = outcomes(path)
    assert first.startswith(f"{file.name}, record 0: 99 bytes that are not a tf.train.Example")
    assert second.startswith(f"{file.name}, record 1: the record lacks 'steps/")
    assert end.startswith(f"{file.name}: the file ends within record 2, which needs 1,152,921,504,606,847,")
