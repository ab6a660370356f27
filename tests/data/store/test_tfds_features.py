from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_stores import BABYAI_FEATURES, babyai_store
from rlds_sets import bridge_features, bridge_set

from agent_jax.data.__main__ import main
from agent_jax.data.store.schema import features_fields
from agent_jax.data.store.store import open_store
from agent_jax.data.store.tfds_features import read_features

F = tfds.features
EVERY_CLASS = F.FeaturesDict({
    "episode_metadata": {"file": F.Text(), "box": F.BBoxFeature(), "kind": F.ClassLabel(num_classes=3)},
    "spoken": F.Translation(["de", "en"]),
    "many": F.TranslationVariableLanguages(["de", "en"]), "list": F.Sequence(F.Tensor(shape=(2,), dtype=np.float32)),
    "marked": F.LabeledImage(labels=5, shape=(4, 4, 1)),
    "steps": F.Dataset({
        "observation": {"rgb": F.Image(shape=(None, None, 3), encoding_format="jpeg"), "png": F.Image(shape=(8, 9, 3)),
                        "packed": F.Tensor(shape=(4,), dtype=np.float32, encoding="zlib"),
                        "wide": F.Tensor(shape=(None, 2), dtype=np.uint8)},
        "reward": F.Scalar(np.float64), "is_last": np.bool_, "names": F.Tensor(shape=(3,), dtype=np.object_),
        "label": F.ClassLabel(names=["a", "b"]), "big": np.uint64,
    }, length=4),
})


@pytest.mark.parametrize("features", [EVERY_CLASS, BABYAI_FEATURES, bridge_features()])
def test_features_are_read_as_by_tfds(tmp_path, features):
    features.save_config(str(tmp_path))
    expected = features_fields(F.FeaturesDict.from_config(str(tmp_path)))
    assert features_fields(read_features(tmp_path)) == expected
    assert len(expected) > 5


def test_features_of_old_tfds_versions_are_read(tmp_path):
    def old(name: str, content: Any) -> dict[str, Any]:
        return {"type": f"tensorflow_datasets.core.features.{name}", "content": content}

    (tmp_path / "features.json").write_text(json.dumps(old("features_dict.FeaturesDict", {
        "feature": old("text_feature.Text", {}),
        "steps": old("dataset_feature.Dataset", {"length": None, "feature": old("features_dict.FeaturesDict", {
            "action": old("feature.Tensor", {"shape": [2], "dtype": "float32"}),
            "rgb": old("image_feature.Image", {"shape": [None, 8, 3], "dtype": "uint8", "encoding_format": "png"}),
        })}),
    })))
    expected = features_fields(F.FeaturesDict.from_config(str(tmp_path)))
    assert features_fields(read_features(tmp_path)) == expected
    assert set(expected) == {"feature", "steps/action", "steps/rgb"}
    (tmp_path / "features.json").write_text(json.dumps(EVERY_CLASS.to_json()))  # with content of a proto
    assert features_fields(read_features(tmp_path)) == features_fields(EVERY_CLASS)


def test_video_and_audio_are_skipped_without_tensorflow(tmp_path):
    BABYAI_FEATURES.save_config(str(tmp_path))
    content = json.loads((tmp_path / "features.json").read_text())
    content["featuresDict"]["features"] |= {
        "film": {"pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
                 "video": {"shape": {"dimensions": ["-1", "8", "8", "3"]}, "dtype": "uint8"}},
        "sound": {"pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
                  "audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "sampleRate": "16000"}}}
    (tmp_path / "features.json").write_text(json.dumps(content))
    found = features_fields(read_features(tmp_path))
    assert found.pop("sound").shape == (-1,)
    assert found == features_fields(BABYAI_FEATURES)


def hostile(directory: Path, module: str) -> Path:
    """Make the first feature class that of a module next to the data set, which writes a file when it is imported."""
    file = directory / "features.json"
    file.write_text(file.read_text().replace("tensorflow_datasets.core.features.features_dict.FeaturesDict",
                                             f"{module}.FeaturesDict", 1))
    ran = directory / "ran"
    (directory / "holiday_pictures.py").write_text(f"open({str(ran)!r}, 'w').close()")
    return ran


@pytest.mark.parametrize("inside", [True, False])
def test_no_command_imports_a_module_that_a_data_set_names(tmp_path, inside, monkeypatch, capsys):
    store = Path(babyai_store(tmp_path / "set").directory)
    ran = hostile(store, "holiday_pictures" if inside else "set.holiday_pictures")
    monkeypatch.chdir(store if inside else tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    path = "." if inside else "set"
    for command in (["check", path], ["stats", path], ["show", path, "--out", "sheet.png"],
                    ["prepare", "--source", "rlds", "--path", path, "--out", str(tmp_path / "out")]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "features.json" in error, command
        assert "holiday_pictures.FeaturesDict' is unknown" in error, command
    with pytest.raises(ValueError, match="expected one of Audio, BBoxFeature, ClassLabel, Dataset"):
        open_store(path)
    assert not ran.exists()


@pytest.mark.parametrize(("change", "message"), [
    ({"pythonClassName": ["a"]}, "is unknown"),
    ({"tensor": {"dtype": "f8,f8", "shape": {}}}, "dtype 'f8,f8', expected bool"),
    ({"tensor": {"dtype": "float32", "shape": {"dimensions": ["-2"]}}}, "expected sizes of at most"),
    ({"tensor": {"dtype": "float32", "shape": {"dimensions": [str(10**12)]}}}, "expected sizes of at most"),
    ({"tensor": {"dtype": "float32", "shape": 3}}, "cannot be read as Tensor"),
    ({"tensor": {"dtype": "float32", "encoding": "folded"}}, "cannot be read as Tensor"),
])
def test_damaged_features_are_named_by_file_and_path(tmp_path, change, message):
    bridge_features().save_config(str(tmp_path))
    content = json.loads((tmp_path / "features.json").read_text())
    steps = content["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    steps["observation"]["featuresDict"]["features"]["state"] |= change
    (tmp_path / "features.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"features.json: steps/observation/state: .*{message}"):
        read_features(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"name": 3}, "name is 3, expected a text"), ({"name": None}, "name is None"), ({"splits": {}}, "expected a list"),
    ({"fileFormat": []}, "fileFormat is"), ({"splits": [{"name": "train", "shardLengths": ["x"]}]}, "found 'x'"),
    ({"splits": [{"name": "train", "shardLengths": [10**14]}]}, "at most 1,099"),
    ({"splits": [{"shardLengths": []}]}, "name is None"),
])
def test_damaged_information_is_named_by_file_and_field(tmp_path, change, message):
    path = bridge_set(tmp_path, "array_record", {"train": 1})
    file = path / "dataset_info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=rf"dataset_info.json: .*{message}"):
        open_store(path)
