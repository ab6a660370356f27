from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from data_stores import BABYAI_FEATURES, babyai_episodes, babyai_store, language_table_store

from agent_jax.data.__main__ import main
from agent_jax.data.images import encode_png
from agent_jax.data.store.episode import Episode, Example, RecordError
from agent_jax.data.store.record_serializer import record_serializer
from agent_jax.data.store.schema import Field
from agent_jax.data.store.split_index import _labels
from agent_jax.data.store.statistics import SplitNumbers
from agent_jax.data.store.store import open_store
from agent_jax.data.store.writer import ShardWriter, begin_store, finish_store, shard_path, write_store


def as_dict(serialized: bytes) -> dict[str, list]:
    features = Example.FromString(serialized).features.feature
    return {key: list(getattr(value, value.WhichOneof("kind")).value) for key, value in features.items()}


def test_tfds_opens_a_written_store(tmp_path):
    babyai_store(tmp_path / "set")
    builder = tfds.builder_from_directory(str(tmp_path / "set"))
    records = list(babyai_episodes((6, 1, 4, 5, 9, 2)))
    source = builder.as_data_source("train")
    assert len(source) == 6
    for found, record in zip(source, records, strict=True):
        assert found["instruction"].decode() == record["instruction"]
        steps = list(found["steps"])
        assert len(steps) == len(record["steps"])
        for step, expected in zip(steps, record["steps"], strict=True):
            np.testing.assert_array_equal(step["observation"]["rgb"], expected["observation"]["rgb"])
            assert step["action"] == expected["action"]
            assert step["is_last"] == expected["is_last"]
            assert step["reward"] == expected["reward"]


def test_the_serializer_writes_the_same_example_as_tfds():
    for record in babyai_episodes((3, 1)):
        found = as_dict(record_serializer(BABYAI_FEATURES)(record))
        for step in record["steps"]:  # without TensorFlow, tfds takes images only as bytes
            step["observation"]["rgb"] = encode_png(step["observation"]["rgb"])
        assert found == as_dict(BABYAI_FEATURES.serialize_example(BABYAI_FEATURES.encode_example(record)))


def test_ranges_of_steps_are_read_with_dtype_and_shape(tmp_path):
    store = language_table_store(tmp_path / "set")
    builder = tfds.builder_from_directory(str(tmp_path / "set"))
    for episode, expected in zip(store.split("train"), builder.as_data_source("train"), strict=True):
        steps = list(expected["steps"])
        assert episode.steps == len(steps)
        action = episode.values("steps/action", 1, 3)
        assert action.dtype == np.float32
        np.testing.assert_array_equal(action, [step["action"] for step in steps[1:3]])
        np.testing.assert_array_equal(episode.values("steps/is_last", 0, 99), [step["is_last"] for step in steps])
        assert len(episode.values("steps/observation/rgb", 1, 3)) == 2
        assert episode.value("episode_id") == expected["episode_id"]


def test_instructions_are_read_from_codes_of_steps_and_from_texts_of_records(tmp_path):
    table = language_table_store(tmp_path / "table").split("train")[1]
    assert table.texts("steps/observation/instruction") == ["push block 1 left \N{RIGHTWARDS ARROW}"] * 8
    tiles = babyai_store(tmp_path / "tiles").split("train")[1]
    assert tiles.texts("instruction") == ["go to blue"]


def test_the_real_language_table_set_opens(language_table_data):
    store = open_store(language_table_data)
    assert store.splits == {"train": 198, "test": 22}
    assert store.metadata == {}
    episode = store.split("train")[0]
    assert episode.texts("steps/observation/instruction")[0].isprintable()
    assert episode.values("steps/observation/rgb", 0, 1)[0][:2] == b"\xff\xd8"  # JPEG


def test_several_writers_fill_one_store(tmp_path):
    records = list(babyai_episodes((2, 3, 4)))
    build = begin_store(tmp_path / "set", {"seed": 1})
    paths = [shard_path(build, "tiles", "train", index, 2) for index in range(2)]
    with ShardWriter(paths[0], BABYAI_FEATURES) as one, ShardWriter(paths[1], BABYAI_FEATURES) as two:
        one.write(records[0])
        two.write(records[2])
        one.write(records[1])
    store = finish_store(tmp_path / "set", "tiles", BABYAI_FEATURES)
    assert [episode.steps for episode in store.split("train")] == [2, 3, 4]
    assert store.metadata == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_interrupted_write_is_invisible_and_continues_with_finished_shards(tmp_path):
    generated = []

    def episodes(seed, fail):
        for record in babyai_episodes((2, 3), seed):
            generated.append(record["episode_id"])
            yield record
            if fail:
                raise KeyboardInterrupt

    def write(*, fail, metadata):
        splits = {"train": episodes(0, fail=False), "test": episodes(1, fail=fail)}
        return write_store(tmp_path / "set", "tiles", BABYAI_FEATURES, splits, metadata)

    with pytest.raises(KeyboardInterrupt):
        write(fail=True, metadata={"seed": 1})
    assert not (tmp_path / "set").exists()
    generated.clear()
    with pytest.raises(KeyboardInterrupt):
        write(fail=True, metadata={"seed": 2})
    assert generated == ["0-0", "0-1", "1-0"]  # other metadata: nothing is reused
    generated.clear()
    store = write(fail=False, metadata={"seed": 2})
    assert generated == ["1-0", "1-1"]
    assert store.splits == {"train": 2, "test": 2}


def test_shards_of_an_interrupted_write_with_other_features_or_names_are_removed(tmp_path):
    def write(name, features, *splits, fail=False):
        def failing():
            raise KeyboardInterrupt
            yield

        episodes = {split: babyai_episodes((2, 3)) for split in splits}
        return write_store(tmp_path / "set", name, features, episodes | ({"late": failing()} if fail else {}), {})

    with pytest.raises(KeyboardInterrupt):
        write("tiles", BABYAI_FEATURES, "train", fail=True)
    less = tfds.features.FeaturesDict({key: value for key, value in BABYAI_FEATURES.items() if key != "recording_id"})
    with pytest.raises(KeyboardInterrupt):
        write("tiles", less, "train", fail=True)
    store = write("rooms", less, "test")
    assert store.splits == {"test": 2}
    assert sorted(file.name for file in (tmp_path / "set").iterdir()) == [
        "agent_jax.json", "dataset_info.json", "features.json", "rooms-test.array_record-00000-of-00001"]
    assert "recording_id" not in store.fields
    assert store.split("test")[0].texts("instruction")


@pytest.mark.parametrize(("path", "count", "message"), [
    ("steps/text", 4, "record 0: 'steps/text' holds 4 texts, expected 2, one for each step"),
    ("steps/text", 0, "record 0: 'steps/text' holds 0 texts, expected 2"),
    ("instruction", 0, "record 0: 'instruction' holds 0 texts, expected 1"),
    ("steps/codes", 1, "record 0: 'steps/codes' holds 1 texts, expected 2"),
])
def test_a_wrong_number_of_texts_is_refused(path, count, message):
    fields = {"instruction": Field("instruction", "text", False, (), np.dtype(object)),
              "steps/text": Field("steps/text", "text", True, (2,), np.dtype(object)),
              "steps/codes": Field("steps/codes", "array", True, (3,), np.dtype(np.int32)),
              "steps/action": Field("steps/action", "array", True, (), np.dtype(np.int32))}
    record = Example()
    record.features.feature["steps/action"].int64_list.value.extend([1, 2])
    if fields[path].kind == "array":
        record.features.feature[path].int64_list.value.extend([97, 98, 0] * count)
    else:
        record.features.feature[path].bytes_list.value.extend([b"go"] * count)
    episode = Episode(record.SerializeToString(), "record 0", fields, fields["steps/action"])
    with pytest.raises(ValueError, match=message):
        episode.texts(path)


def test_an_existing_directory_is_never_overwritten(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="expected a new directory"):
        babyai_store(tmp_path / "set")
    assert (tmp_path / "set" / "mine").read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_shard_is_named_when_finishing(tmp_path):
    build = begin_store(tmp_path / "set", {})
    with ShardWriter(shard_path(build, "tiles", "train", 1, 2), BABYAI_FEATURES) as writer:
        writer.write(next(babyai_episodes((1,))))
    with pytest.raises(ValueError, match=r"expected 2; missing: tiles-train.array_record-00000-of-00002"):
        finish_store(tmp_path / "set", "tiles", BABYAI_FEATURES)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(("change", "message"), [
    (lambda record: record.pop("instruction"), "field 'instruction' .* is missing"),
    (lambda record: record["steps"][0].pop("action"), "field 'steps/action' .* is missing"),
    (lambda record: record["steps"][0].update(action=1.5), "'steps/action' has dtype float64, expected int32"),
    (lambda record: record["steps"][0].update(action=[1, 2]), r"'steps/action' has shape \(2,\), expected \(\)"),
    (lambda record: record.update(instruction=3), "'instruction' holds int, expected text"),
    (lambda record: record["steps"][0]["observation"].update(rgb=np.zeros((8, 8, 3), np.uint8)),
     r"'steps/observation/rgb' holds uint8\[8, 8, 3\], expected uint8\[16, 16, 3\]"),
])
def test_a_record_that_breaks_the_schema_is_refused_by_field(change, message):
    record = next(babyai_episodes((1,)))
    change(record)
    with pytest.raises(ValueError, match=message):
        record_serializer(BABYAI_FEATURES)(record)


def test_a_bucket_is_refused_with_advice_to_mount_it():
    with pytest.raises(ValueError, match=r"gs:.*mount the bucket, as with `gcsfuse"):
        open_store("gs://bucket/set/0.0.1")


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere'?: not found; expected a directory with dataset_info.json"):
        open_store(tmp_path / "nowhere")


def test_a_directory_without_a_data_set_is_refused_and_one_below_it_suggested(tmp_path):
    (tmp_path / "photo.jpg").write_text("")
    missing = r"not a TFDS data set, dataset_info.json and features.json missing; found 'photo.jpg'"
    with pytest.raises(ValueError, match=missing):
        open_store(tmp_path)
    babyai_store(tmp_path / "tiles" / "1.0.0")
    with pytest.raises(ValueError, match=r"did you mean '.*/tiles/1.0.0'"):
        open_store(tmp_path)


def test_tfrecord_is_refused_with_the_command_that_converts_it(tmp_path):
    babyai_store(tmp_path / "set")
    info = tmp_path / "set" / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    message = r"file format 'tfrecord', expected 'array_record'.*prepare --source rlds --path .*/set"
    with pytest.raises(ValueError, match=message):
        open_store(tmp_path / "set")


def test_a_set_without_steps_is_refused(tmp_path):
    features = tfds.features.FeaturesDict({"label": np.int64})
    with pytest.raises(ValueError, match=r"no 'steps' field .* it has 'label'"):
        write_store(tmp_path / "set", "flat", features, {"train": [{"label": 1}]}, {})


def test_unknown_splits_and_fields_are_refused_with_the_known_ones(tmp_path):
    store = babyai_store(tmp_path / "set")
    with pytest.raises(ValueError, match="no split 'valid'; it has 'test', 'train'"):
        store.split("valid")
    with pytest.raises(ValueError, match="no field 'steps/observation/rbg'; nearest: 'steps/observation/rgb'"):
        store.field("steps/observation/rbg")


def test_a_missing_shard_is_named(tmp_path):
    store = babyai_store(tmp_path / "set")
    store.files("test")[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"tiles-test.array_record-00000-of-00001: missing"):
        store.split("test")
    assert len(store.split("train")) == 6


def test_a_spec_key_is_a_field_of_the_steps_or_their_observations(tmp_path):
    store = language_table_store(tmp_path / "set")
    assert store.step_field("action").path == "steps/action"
    assert store.step_field("effector_translation").path == "steps/observation/effector_translation"
    with pytest.raises(ValueError, match="no field 'steps/effector'"):
        store.step_field("effector")


def test_a_record_without_a_declared_field_is_named(tmp_path):
    directory = tmp_path / "set"
    babyai_store(directory)
    features = json.loads((directory / "features.json").read_text())
    inner = features["featuresDict"]["features"]
    inner["other_id"] = inner["episode_id"]
    (directory / "features.json").write_text(json.dumps(features))
    episode = open_store(directory).split("train")[0]
    with pytest.raises(ValueError, match="split 'train', record 0: the record lacks 'other_id'"):
        episode.value("other_id")


def rewritten(shard: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace record 2 by what `change` makes of it, with valid checksums."""
    reader = ArrayRecordReader(str(shard))
    records = reader.read_all()
    reader.close()
    writer = ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
    for number, record in enumerate(records):
        writer.write(change(record) if number == 2 else record)
    writer.close()


def without_action(record: bytes) -> bytes:
    example = Example.FromString(record)
    example.features.feature["steps/action"].bytes_list.value.append(b"left")
    return example.SerializeToString()


def with_more_weights(record: bytes) -> bytes:
    example = Example.FromString(record)
    example.features.feature["steps/action_weight"].float_list.value.append(1)
    return example.SerializeToString()


@pytest.mark.parametrize(("change", "message"), [
    (lambda record: record[: len(record) // 2], r"bytes that are not a tf.train.Example .*Copy the file"),
    (lambda record: b"\xff" * 9, "9 bytes that are not a tf.train.Example"),
    (lambda record: b"", "the record lacks 'steps/action'"),
    (without_action, "'steps/action' holds a bytes_list, but features.json declares array"),
    (with_more_weights, r"'steps/action_weight' holds 5 values, expected 1 for each of 4 steps"),
])
def test_every_command_names_a_damaged_record_by_file_and_number(tmp_path, change, message, capsys):
    store = babyai_store(tmp_path / "set")
    shard = store.files("train")[0]
    rewritten(shard, change)
    place = f"{shard}, split 'train', record 2: "
    with pytest.raises(RecordError, match=rf"{place}.*{message}"):
        _ = SplitNumbers(open_store(store.directory), "train", ["action", "steps/action_weight"]).statistics
    assert main(["stats", str(store.directory)]) == 2
    assert place in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert main(["check", str(store.directory)]) == 1
    assert f"wrong: {place}" in capsys.readouterr().out


def test_a_wrong_number_of_shards_is_refused_with_both_numbers(tmp_path):
    store = babyai_store(tmp_path / "set")
    shard = store.files("train")[0]
    for index in range(2):
        shutil.copy(shard, shard.with_name(f"tiles-train.array_record-{index:05d}-of-00002"))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"of-00001: missing; dataset_info.json lists 1 files of split 'train', "
                                                r"found 2 of other names, as tiles-train.array_record-00001-of-00002"):
        store.split("train")


def test_a_label_out_of_range_is_refused_by_record():
    fields = {name: Field(name, "array", name != "label", (), np.dtype(np.int64)) for name in ("label", "steps/action")}
    record = Example()
    record.features.feature["steps/action"].int64_list.value.extend([1, 2])
    record.features.feature["label"].int64_list.value.append(2**40)
    episode = Episode(record.SerializeToString(), "record 3", fields, fields["steps/action"])
    with pytest.raises(RecordError, match="record 3: 'label' is 1099511627776, expected the number of a class"):
        _labels(episode, "label", per_step=False)
