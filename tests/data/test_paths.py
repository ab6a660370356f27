from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from data_stores import babyai_store
from gamepads import write_play
from rlds_sets import bridge_set
from videos import write_video

from agent_jax.config import Config, DataConfig, DomainConfig
from agent_jax.data.__main__ import main
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.paths import ALLOW_ROOT, Folder
from agent_jax.data.pipeline.run_data import open_data
from agent_jax.data.prepare.config import read_prepare_config
from agent_jax.data.store.store import open_store

TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def changed_info(directory: Path, template: str = "", **fields: Any) -> None:
    file = directory / "dataset_info.json"
    content = {**json.loads(file.read_text()), **fields}
    for split in content["splits"] if template else ():
        split["filepathTemplate"] = template
    file.write_text(json.dumps(content))


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """A data set without shards, and a copy with them elsewhere."""
    elsewhere = Path(babyai_store(tmp_path / "elsewhere").directory)
    shutil.copytree(elsewhere, tmp_path / "set", ignore=shutil.ignore_patterns("*array_record*"))
    return tmp_path / "set", elsewhere


@pytest.mark.parametrize("change", [
    {"template": f"../elsewhere/{TEMPLATE}"},
    {"template": "ELSEWHERE/" + TEMPLATE},
    {"name": "../elsewhere/tiles"},
])
def test_shards_outside_the_folder_are_refused_except_under_an_allowed_root(sets, change, monkeypatch):
    directory, elsewhere = sets
    changed_info(directory, **{key: value.replace("ELSEWHERE", str(elsewhere)) for key, value in change.items()})
    with pytest.raises(BadDataError, match=rf"dataset_info.json: filepathTemplate of split 'test'.*{ALLOW_ROOT}="):
        open_store(directory)
    monkeypatch.setenv(ALLOW_ROOT, f"/nowhere{os.pathsep}{elsewhere}")
    assert open_store(directory).split("train").serialized(0)


def test_links_out_of_a_data_set_are_refused_and_links_within_it_are_not(sets, monkeypatch):
    directory, elsewhere = sets
    (directory / "content").mkdir()
    for file in elsewhere.glob("*array_record*"):
        shutil.copy(file, directory / "content" / file.name)
        (directory / file.name).symlink_to(f"content/{file.name}")
    link = directory.parent / "link"
    link.symlink_to(directory)
    assert len(open_store(link).split("train")) == 6
    shard = next(elsewhere.glob("*array_record*")).name
    for name in ("agent_jax.json", "features.json", "dataset_info.json", shard):
        original = (directory / name).rename(directory / "kept")
        (directory / name).symlink_to(elsewhere / name)
        with pytest.raises(BadDataError, match=rf"names the file '.*{name}', which is {elsewhere}/{name}, outside"):
            open_store(link)
        original.rename(directory / name)
    assert len(open_store(link).split("train")) == 6


def test_a_snapshot_of_hugging_face_may_link_to_the_blobs_of_its_repository(sets):
    directory, elsewhere = sets
    repository = directory.parent / "hub" / "datasets--me--tiles"
    snapshot = repository / "snapshots" / "0123abc" / "tiles" / "1.0.0"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in elsewhere.iterdir():
        shutil.copy(file, repository / "blobs" / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../../../blobs/blob-{file.name}")
    assert len(open_store(snapshot).split("train")) == 6
    (repository / "blobs").rename(directory.parent / "blobs")
    (repository / "blobs").symlink_to(directory.parent / "blobs")
    with pytest.raises(BadDataError, match="outside the data set's folder"):
        open_store(snapshot)


@pytest.mark.parametrize("kind", ["relative", "absolute", "link"])
def test_videos_outside_the_folder_of_a_table_are_refused_except_under_an_allowed_root(tmp_path, kind, capsys):
    private, folder, out = tmp_path / "private", tmp_path / "table", tmp_path / "out"
    for made in (private, folder):
        made.mkdir()
    write_video(private / "v.mp4", 8)
    (folder / "link.mp4").symlink_to(private / "v.mp4")
    name = {"relative": "../private/v.mp4", "absolute": str(private / "v.mp4"), "link": "link.mp4"}[kind]
    (folder / "table.csv").write_text(f"file,caption\n{name},a\n{name},b\n")
    command = ["prepare", "--source", "video_text", "--path", str(folder / "table.csv"), "--out", str(out),
               "--processes", "1"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "table.csv:2, column 'file': names the file" in error
    assert f"which is {private}/v.mp4, outside the data set's folder {folder}" in error
    assert f"--config.allow_root={private} " in error
    assert not out.exists()
    assert main([*command, f"--config.allow_root=/nowhere,{private}"]) == 0
    assert open_store(out).splits == {"train": 2}


def test_recordings_that_are_links_out_of_the_folder_are_skipped(tmp_path, capsys):
    folder, private = tmp_path / "plays", tmp_path / "private"
    for name in "ab":
        write_play(folder, name)
    private.mkdir()
    (folder / "b.mp4").rename(private / "b.mp4")
    (folder / "b.mp4").symlink_to(private / "b.mp4")
    command = ["prepare", "--source", "gamepad", "--path", str(folder), "--out", str(tmp_path / "out"), "--processes",
               "1", "--config.instruction_text=win", "--config.validation=0"]
    assert main(command) == 2
    assert f"b.mp4', which is {private}/b.mp4, outside" in capsys.readouterr().err
    assert main([*command, "--on_error=skip"]) == 0
    assert open_store(tmp_path / "out").splits == {"train": 1}
    assert main([*command[:6], str(tmp_path / "all"), *command[7:], f"--config.allow_root={private}"]) == 0
    assert open_store(tmp_path / "all").splits == {"train": 2}


def test_an_rlds_template_cannot_leave_its_folder(tmp_path, capsys):
    other = bridge_set(tmp_path / "other", "tfrecord", {"train": 2})
    path = bridge_set(tmp_path / "mine", "tfrecord", {"train": 2})
    changed_info(path, template=f"{other}/{TEMPLATE}")
    command = ["prepare", "--source", "rlds", "--path", str(path), "--out", str(tmp_path / "out"), "--processes", "1",
               "--config.cameras.rgb=image_0", "--config.fields.action=world_vector"]
    assert main(command) == 2
    assert f"filepathTemplate of split 'train': names the file '{other}/bridge-train" in capsys.readouterr().err
    assert main([*command, f"--config.allow_root={other}"]) == 0


@pytest.mark.parametrize("template", ["{SPLIT:>1000000000}", "{SPLIT.__class__}", "{NOTHING}", "{SPLIT"])
def test_a_template_with_formats_or_other_names_is_refused(sets, template):
    changed_info(sets[0], template=template)
    with pytest.raises(ValueError, match=r"filepathTemplate of split 'test' is .*DATASET, SPLIT"):
        open_store(sets[0])


def test_circular_links_and_null_bytes_are_not_files(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    folder = Folder(tmp_path)
    assert not folder.file("a", "here").exists()
    with pytest.raises(BadDataError, match=r"table:3: names the file .*null byte"):
        folder.file("v\0.mp4", "table:3")


def test_allowed_roots_are_separated_by_commas_or_a_list(tmp_path):
    assert read_prepare_config("", ["--config.allow_root=/a,/b"]).allow_root == ("/a", "/b")
    (tmp_path / "c.json").write_text('{"allow_root": ["/a"]}')
    assert read_prepare_config(str(tmp_path / "c.json"), []).allow_root == ("/a",)


@pytest.mark.parametrize(("name", "advice"), [
    ("gs://bucket/set/1.0.0", "gcsfuse --implicit-dirs BUCKET DIR"), ("s3://bucket/set", "mount-s3 BUCKET DIR"),
    ("hf://datasets/me/set", "hf download --repo-type dataset"), ("https://host/set", "copy it to a disk"),
])
def test_every_command_refuses_a_bucket_with_advice(tmp_path, name, advice, capsys):
    prepare = ["prepare", "--source", "rlds", "--path", name, "--out", str(tmp_path / "out")]
    for command in (prepare, ["check", name], ["stats", name], ["show", name, "--out", str(tmp_path / "a.png")]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert name in error, command
        assert advice in error, command
    with pytest.raises(ValueError, match=advice):
        open_data(Config(data=DataConfig(domains={"mine": DomainConfig(path=name)})))
    assert main([*prepare[:4], str(tmp_path), "--out", name]) == 2
    assert f"--out: found '{name}'" in capsys.readouterr().err
