from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rlds_sets import bridge_set, jpeg
from small_runs import ROOT
from videos import write_video

from agent_jax.actions import ActionSpec, Bins, Camera, Group
from agent_jax.data.__main__ import main
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.images import encode_png, prepare_image
from agent_jax.data.inspect.config import read_check_config
from agent_jax.data.prepare import prepare as prepare_module
from agent_jax.data.prepare import workers as prepare_workers
from agent_jax.data.prepare.config import PrepareConfig, read_prepare_config
from agent_jax.data.prepare.prepare import prepare, split_recordings, summary_lines
from agent_jax.data.prepare.shard import Counts, RecordMaker, buffered, stored_features
from agent_jax.data.prepare.sources import CLASSES, DESCRIPTIONS
from agent_jax.data.prepare.sources.source import Recording, Schema, SourceEpisode, SourceStep
from agent_jax.data.prepare.workers import ShardPlan, write_shard
from agent_jax.data.store.episode import Example
from agent_jax.data.store.store import open_store
from agent_jax.data.store.writer import ShardWriter, begin_store, finish_store, shard_path
from agent_jax.fields import field_comments
from agent_jax.runtime.directory_lock import DirectoryLock

SPEC = ActionSpec("arm", "iafm", (Group("STARTACTION", (Bins("world_vector", 0, "ROBOTACTION0_", -1, 1),
                                                        Bins("world_vector", 1, "ROBOTACTION1_", -1, 1)),
                                        "ENDOFACTION"),))
CONFIG = PrepareConfig(action_spec=SPEC.to_dict(), cameras={"rgb": "image_0"})


def changed(**changes: Any) -> PrepareConfig:
    return dataclasses.replace(CONFIG, **changes)


def test_store_holds_the_data_and_encoded_images_byte_for_byte(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 4, "val": 2})
    store, summary = prepare("rlds", path, tmp_path / "out", CONFIG)
    assert store.splits == {"test": 2, "train": 4}
    assert store.name == "bridge"
    assert summary == {"recordings": 6, "episodes": 6, "records": 6, "steps": 36, "skipped": [], "outside": {},
                       "oddities": {}, "notes": []}
    episode = store.split("train")[2]
    assert episode.values("steps/observation/rgb", 0, 6) == [jpeg(20 + t) for t in range(6)]
    np.testing.assert_allclose(episode.values("steps/world_vector", 4, 5), [[0.02, 0.04]], rtol=1e-6)
    assert episode.value("instruction") == b"put away number 2"
    assert episode.values("steps/is_first", 0, 6).tolist() == [True] + [False] * 5
    assert episode.values("steps/is_last", 0, 6).tolist() == [False] * 5 + [True]
    assert store.metadata["action_spec"] == SPEC.to_dict()
    assert store.metadata["prepared"]["config"]["cameras"] == {"rgb": "image_0"}
    assert store.metadata["summary"] == summary
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bridge", "out"]
    assert not list((tmp_path / "out").glob(".*"))


def test_images_are_resized_as_in_training_and_unchanged_if_they_fit(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 2})
    store, _ = prepare("rlds", path, tmp_path / "out", changed(image_size=8, encoding="png"))
    assert store.field("steps/observation/rgb").shape == (8, 8, 3)
    first = store.split("train")[0]
    number = int(first.texts("instruction")[0].split()[-1])
    expected = encode_png(prepare_image(jpeg(10 * number), 8))
    assert first.values("steps/observation/rgb", 0, 1) == [expected]
    again, _ = prepare("rlds", tmp_path / "out", tmp_path / "again", PrepareConfig(image_size=8))
    assert again.split("train")[0].values("steps/observation/rgb", 0, 1) == [expected]


@pytest.mark.parametrize("image_size", [0, 16])
def test_rotated_image_is_stored_upright_without_the_tag(tmp_path, image_size):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    steps = [SourceStep(images={"rgb": png(np.ascontiguousarray(np.rot90(pixels)), 6)}, actions={})]
    source = Given([SourceEpisode("e", "what is it?", steps, answer="a cat")], Schema({"rgb": (16, 16)}, {},
                                                                                      answers=True), {})
    (record,) = stored(source, PrepareConfig(encoding="png", image_size=image_size), tmp_path / "set")
    (image,) = record.values("steps/observation/rgb", 0, 1)
    with Image.open(io.BytesIO(image)) as read:  # by a reader that knows nothing of orientation
        assert 0x0112 not in read.getexif()
        np.testing.assert_array_equal(np.asarray(read), pixels)


def test_number_of_processes_does_not_change_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_MAX_SHARD_RECORDINGS", 2)
    path = bridge_set(tmp_path, "tfrecord", {"train": 5, "val": 1})
    for processes in (1, 2):
        prepare("rlds", path, tmp_path / str(processes), CONFIG, processes=processes)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("1", "2"))
    assert len(one) == 7  # four shards and three JSON files
    assert one == two


KILLED = """
import os, signal, sys
from agent_jax.data.prepare import prepare
from agent_jax.data.prepare import workers as prepare_workers
from agent_jax.data.__main__ import main
prepare._MAX_SHARD_RECORDINGS = 1
write, written = prepare_workers.write_shard, []
def kill_in_the_third(plan, source, progress):
    def killing(recordings, steps):
        if len(written) == 2 and sys.argv[1] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    written.append(plan.path)
    counts = write(plan, source, lambda *args: len(written) == 3 and killing(*args))
    return counts
prepare_workers.write_shard = kill_in_the_third
code = main(sys.argv[2:])
print("written", len(written))
sys.exit(code)
"""


def test_killed_command_leaves_no_store_and_resumes(tmp_path):
    path, out = bridge_set(tmp_path, "tfrecord", {"train": 5}), tmp_path / "out"
    line = ["prepare", "--source", "rlds", "--path", str(path), "--out", str(out), "--processes", "1",
            "--config.fields.action=world_vector"]

    def run(how: str) -> subprocess.CompletedProcess[str]:
        code = KILLED.replace("len(written) == 2 and", "len(written) == 3 and")
        return subprocess.run([sys.executable, "-c", code, how, *line], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)

    killed = run("kill")
    assert killed.returncode == -9, killed.stderr
    assert not out.exists()
    with pytest.raises(FileNotFoundError):
        open_store(out)
    finished = run("finish")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "written 3"  # of five shards, two were there
    assert sum(open_store(out).splits.values()) == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bridge", "out"]


def test_bad_data_in_one_of_two_processes_ends_both_and_leaves_no_half_written_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_MAX_SHARD_RECORDINGS", 2)
    path = bridge_set(tmp_path, "tfrecord", {"train": 6}, change=spoil)
    with pytest.raises(BadDataError, match="world_vector"):
        prepare("rlds", path, tmp_path / "out", CONFIG, processes=2)
    assert list((tmp_path / ".out.partial").iterdir())
    assert list((tmp_path / ".out.partial").glob("*.tmp")) == []
    assert list((tmp_path / ".out.partial").glob(".*.tmp")) == []


def captions(folder: Path, text: str) -> None:
    rows = [f"{name}.mp4,{text} {name}" for name in "abcdef"]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *rows]) + "\n")


@pytest.mark.parametrize("damaged", [b"no video", b""])
def test_resumed_command_drops_shards_of_changed_files(tmp_path, monkeypatch, damaged):
    monkeypatch.setattr(prepare_module, "_SHARD_BYTES", 4_000)  # one or two of the videos
    raw, config = tmp_path / "raw", PrepareConfig(window=2, validation=0.0, name="clips")
    raw.mkdir()
    for name in "abcdef":
        write_video(raw / f"{name}.mp4", 4)
    whole = (raw / "e.mp4").read_bytes()
    (raw / "e.mp4").write_bytes(damaged)
    captions(raw, "old")
    with pytest.raises(BadDataError, match=r"e\.mp4"):
        prepare("video_text", raw, tmp_path / "out", config)
    assert len(list((tmp_path / ".out.partial").glob("clips-*"))) > 1
    (raw / "e.mp4").write_bytes(whole)
    captions(raw, "new")
    store, summary = prepare("video_text", raw, tmp_path / "out", config)
    assert summary["recordings"] == 6
    assert [bytes(episode.value("answer")).decode() for episode in store.split("train")] == [
        f"new {name}" for name in "abcdef"]
    assert not list((tmp_path / "out").glob(".*"))


def test_resumed_command_rewrites_only_shards_of_changed_files(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_MAX_SHARD_RECORDINGS", 1)
    raw, config = tmp_path / "raw", PrepareConfig(window=2, validation=0.0, name="clips", image_size=32)
    raw.mkdir()
    for name in "abcdef":
        write_video(raw / f"{name}.mp4", 4)
    captions(raw, "a")
    (raw / "f.mp4").write_bytes(b"no video")
    with pytest.raises(BadDataError):
        prepare("video_text", raw, tmp_path / "out", config)
    write_video(raw / "f.mp4", 4)
    write_video(raw / "b.mp4", 8)
    made = []
    monkeypatch.setattr(prepare_workers, "write_shard", lambda plan, *args: made.append(
        plan.recordings[0].name) or write_shard(plan, *args))
    store, _ = prepare("video_text", raw, tmp_path / "out", config)
    assert made == ["b.mp4", "f.mp4"]
    assert [episode.steps for episode in store.split("train")] == [4, 8, 4, 4, 4, 4]


def spoil(number: int, episode: dict[str, Any]) -> None:
    if number in (1, 3):
        episode["steps"][2]["action"]["world_vector"] = np.asarray([np.nan, 0], np.float32)


def test_bad_recording_stops_the_command_or_is_skipped_whole_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_MAX_SHARD_RECORDINGS", 1)
    path = bridge_set(tmp_path, "tfrecord", {"train": 4, "val": 1}, change=spoil)
    bad = r"tfrecord-00000-of-00002, record 1, episode 'train/00000/1', step 2: 'world_vector' is \[nan, 0.0\]"
    with pytest.raises(BadDataError, match=bad) as refused:
        prepare("rlds", path, tmp_path / "out", CONFIG)
    assert "Nothing was written to" in str(refused.value)
    assert not (tmp_path / "out").exists()
    for processes in (1, 2):
        out = tmp_path / f"out{processes}"
        store, summary = prepare("rlds", path, out, CONFIG, on_error="skip", processes=processes)
        assert [item["recording"] for item in summary["skipped"]] == ["train/00000/1", "train/00001/0"]
        assert (summary["recordings"], summary["steps"]) == (3, 18)
        assert store.metadata["summary"] == summary
        stored = [episode.texts("instruction")[0] for episode in store.split("train")]
        assert stored == ["put away number 0", "put away number 2"]


def test_data_without_a_good_recording_are_refused(tmp_path):
    def all_bad(number: int, episode: dict[str, Any]) -> None:
        spoil(1, episode)

    path = bridge_set(tmp_path, "tfrecord", {"train": 2}, change=all_bad)
    with pytest.raises(BadDataError, match="every recording was left out; the first because of .*record 0"):
        prepare("rlds", path, tmp_path / "out", CONFIG, on_error="skip")
    assert not (tmp_path / "out").exists()


def test_values_beyond_the_bounds_are_counted_and_too_many_are_an_error(tmp_path):
    narrow = ActionSpec("arm", "iafm", (Group("STARTACTION", (Bins("world_vector", 0, "ROBOTACTION0_", -1, 1),
                                                              Bins("world_vector", 1, "ROBOTACTION1_", -1, 0.04)),
                                              "ENDOFACTION"),)).to_dict()
    path = bridge_set(tmp_path, "tfrecord", {"train": 4})
    message = r"world_vector\[1\]: 4 of 24 values \(16.7%\) lie beyond the bounds -1 to 0.04 .* at most 1.0%"
    with pytest.raises(BadDataError, match=message):
        prepare("rlds", path, tmp_path / "out", changed(action_spec=narrow))
    _, summary = prepare("rlds", path, tmp_path / "out", changed(action_spec=narrow, out_of_bounds=0.2))
    assert summary["outside"] == {"world_vector[1]": 4}


def test_camera_is_out_of_bounds_from_the_next_whole_degree():
    spec = ActionSpec("camera", "iafm", (Group("STARTACTION", (Camera("camera"),), "ENDOFACTION"),))
    for turn, beyond in ((50.7, {}), (51.2, {"camera[0]": 1})):
        source = Given([SourceEpisode("e", "look", [step(actions={"camera": [turn, 0.0]})])],
                       Schema({"rgb": (8, 8)}, spec.fields), spec.to_dict())
        counts = Counts()
        list(RecordMaker(source, CONFIG).records(source.recordings()[0], counts))
        assert counts.outside == beyond


def test_open_bounds_are_not_checked(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 4})
    spec = SPEC.to_dict()
    part = spec["groups"][0]["parts"][1]
    del part["low"], part["high"]
    part["bounds"] = "quantiles"
    store, summary = prepare("rlds", path, tmp_path / "out", changed(action_spec=spec))
    assert summary["outside"] == {}
    assert store.metadata["action_spec"] == spec
    spec["groups"][0]["parts"][0] |= {"low": 0.5, "high": 1.0}
    with pytest.raises(BadDataError, match=r"world_vector\[0\]: 24 of 24 values"):
        prepare("rlds", path, tmp_path / "other", changed(action_spec=spec))


def test_existing_directory_and_concurrent_command_are_refused(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 1})
    lock, holder = DirectoryLock(tmp_path / ".out.lock", "", ""), f"process {os.getpid()} on host "
    with lock, pytest.raises(FileExistsError, match=f"out is in use by {holder}.*; wait for that one to end"):
        prepare("rlds", path, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()
    prepare("rlds", path, tmp_path / "out", CONFIG)
    with pytest.raises(FileExistsError, match="expected a new directory"):
        prepare("rlds", path, tmp_path / "out", CONFIG)


def test_rate_other_than_the_spec_is_refused(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 1})
    spec = dataclasses.replace(SPEC, rate_hz=5.0).to_dict()
    with pytest.raises(ValueError, match="has rate_hz=5, but the data have 10 steps a second"):
        prepare("rlds", path, tmp_path / "out", changed(action_spec=spec, rate_hz=10.0))


def test_new_recordings_do_not_change_the_split_of_others():
    recordings = [Recording(str(number), "file") for number in range(400)]
    before, after = split_recordings(recordings[:200], 0.1), split_recordings(recordings, 0.1)
    assert set(before["test"]) <= set(after["test"])
    assert 20 <= len(after["test"]) <= 60
    two = split_recordings(recordings[:2], 0.001)
    assert len(two["train"]) == len(two["test"]) == 1
    assert list(split_recordings(recordings[:9], 0.0)) == ["train"]
    own = split_recordings([Recording("a", "f", "train"), Recording("b", "f", "test")], 0.5)
    assert [recording.name for recording in own["test"]] == ["b"]
    with pytest.raises(BadDataError, match="two recordings are named '3': file and file"):
        split_recordings([*recordings, recordings[3]], 0.1)


@dataclasses.dataclass
class Given:
    """A source of one recording with the given episodes."""

    episodes: list[SourceEpisode]
    schema: Schema = dataclasses.field(default_factory=lambda: Schema({"rgb": (8, 8)}, SPEC.fields))
    action_spec: dict[str, Any] = dataclasses.field(default_factory=SPEC.to_dict)
    state_spec: dict[str, Any] = dataclasses.field(default_factory=dict)
    rate_hz: float = 0.0

    def recordings(self) -> list[Recording]:
        return [Recording("one", "file.mp4")]

    def files(self, recording: Recording) -> list[Path]:
        return []

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        yield from self.episodes


def step(**changes: Any) -> SourceStep:
    given = {"images": {"rgb": encode_png(np.zeros((8, 8, 3), np.uint8))}, "actions": {"world_vector": [0.1, 0.2]}}
    return SourceStep(**{**given, **changes})


def stored(source: Given, config: PrepareConfig, directory: Path) -> list[Any]:
    """The records of a source, by way of a shard."""
    build = begin_store(directory, {})
    features = stored_features(source.schema, config)
    with ShardWriter(shard_path(build, "set", "train", 0, 1), features) as writer:
        for record in RecordMaker(source, config).records(source.recordings()[0], Counts()):
            writer.write_serialized(record)
    return list(finish_store(directory, "set", features).split("train"))


@pytest.mark.parametrize(("window", "lengths", "most"), [(4, [8, 3], 2700), (3, [9, 2], 2700), (4, [4, 4, 3], 1),
                                                         (4, [11], 10**6)])
def test_long_episodes_are_cut_at_multiples_of_the_window(tmp_path, window, lengths, most):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    steps = [step(images={"rgb": noise}, reward=float(t)) for t in range(11)]
    source = Given([SourceEpisode("long", "go", steps, start=0, terminal=True)])
    config = changed(window=window, segment_bytes=most, encoding="png")
    records = stored(source, config, tmp_path / "set")
    assert [record.steps for record in records] == lengths
    assert [int(record.value("start")) for record in records] == [sum(lengths[:i]) for i in range(len(lengths))]
    rewards = np.concatenate([record.values("steps/reward", 0, 99) for record in records])
    assert rewards.tolist() == list(range(11))
    for name, places in (("is_first", [0]), ("is_last", [10]), ("is_terminal", [10])):
        flags = np.concatenate([record.values(f"steps/{name}", 0, 99) for record in records])
        assert np.flatnonzero(flags).tolist() == places
    if 1 < most < 10**6:
        sizes = [len(serialized) for serialized in
                 RecordMaker(source, config).records(source.recordings()[0], Counts())]
        assert max(sizes) < most + 500  # names and flags come on top


def test_stretch_keeps_its_start_and_end_flags(tmp_path):
    parts = [SourceEpisode("e", "go", [step()] * 2, start=0, ends=False),
             SourceEpisode("e", "go", [step()] * 3, start=6, ends=True)]
    first, second = stored(Given(parts), changed(encoding="png"), tmp_path / "set")
    assert first.values("steps/is_last", 0, 9).tolist() == [False, False]
    assert int(second.value("start")) == 6
    assert second.values("steps/is_first", 0, 9).tolist() == [False] * 3
    assert second.values("steps/is_last", 0, 9).tolist() == [False, False, True]


def test_several_cameras_answers_and_labels_are_stored(tmp_path):
    schema = Schema({"rgb": (8, 8), "wrist": (4, 6)}, {}, answers=True, labels=True)
    images = {"rgb": np.full((8, 8, 3), 7, np.uint8), "wrist": np.full((4, 6, 3), 9, np.uint8)}
    steps = [SourceStep(images=images, actions={})]
    source = Given([SourceEpisode("e", "what is it?", steps, answer="a cat", label=3)], schema, {})
    (record,) = stored(source, PrepareConfig(encoding="png"), tmp_path / "set")
    assert (record.value("answer"), int(record.value("label"))) == (b"a cat", 3)
    assert prepare_image(record.values("steps/observation/wrist", 0, 1)[0], 0).shape == (4, 6, 3)


def png(pixels: np.ndarray, orientation: int = 1) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, "png", exif=exif)
    return buffer.getvalue()


NOT_WHOLE = jpeg(3, (8, 8))[:-200]
DEPTH = png(np.full((8, 8), 1500, np.uint16))
LYING = png(np.zeros((8, 9, 3), np.uint8), 6)
BOMB = re.sub(rb"(?s)(\xff\xc0...).{4}", lambda found: found[1] + (65_000).to_bytes(2, "big") * 2, jpeg(3, (8, 8)))


@pytest.mark.parametrize(("episode", "message"), [
    ({"steps": [step(actions={"world_vector": [0.1, np.inf]})]}, r"step 0: 'world_vector' is \[0.1, inf\], expected"),
    ({"steps": [step(), step(actions={})]}, "step 1: no 'world_vector'; found none"),
    ({"steps": [step(actions={"world_vector": [0.1]})]}, r"'world_vector' has shape \(1,\), expected \(2,\)"),
    ({"steps": [step(images={"wrist": b""})]}, r"no image of camera 'rgb'; found \['wrist'\]"),
    ({"steps": [step(), step(images={"rgb": jpeg(0, (8, 9))})]},
     "step 1, camera 'rgb': the image is 8 x 9 pixels, but 8 x 8 in the rest of the data; set config.image_size"),
    ({"steps": [step(), step(images={"rgb": LYING})]},
     "the image is 9 x 8 pixels upright .its EXIF orientation .*image_size"),
    ({"steps": [step(images={"rgb": NOT_WHOLE})]}, "camera 'rgb': image: .* that Pillow cannot read .Truncated"),
    ({"steps": [step(images={"rgb": b"nonsense"})]}, "camera 'rgb': image: 8 bytes that Pillow cannot read"),
    ({"steps": [step(images={"rgb": DEPTH})]}, "camera 'rgb': image: PNG of mode 'I;16' .*expected 8 bits a channel"),
    ({"steps": [step(images={"rgb": BOMB})]}, r"camera 'rgb': image of 65000 x 65000 pixels: .*AGENT_JAX_MAX_READ_MB"),
    ({"steps": []}, "episode 'e': no steps, expected at least one"),
    ({"instruction": " "}, "episode 'e': the instruction is empty; give one for all by config.instruction_text"),
])
def test_errors_are_reported_with_their_place(episode, message):
    source = Given([SourceEpisode(**{"name": "e", "instruction": "go", "steps": [step()], **episode})])
    with pytest.raises(BadDataError, match=message) as refused:
        list(RecordMaker(source, CONFIG).records(source.recordings()[0], Counts()))
    assert str(refused.value).startswith("file.mp4, episode 'e'")


def test_recording_without_episodes_is_bad_data():
    source = Given([])
    with pytest.raises(BadDataError, match="file.mp4: recording 'one' holds no episode"):
        list(RecordMaker(source, CONFIG).records(source.recordings()[0], Counts()))


def test_bad_second_episode_drops_the_whole_recording(tmp_path):
    good, bad = (SourceEpisode(name, "go", steps) for name, steps in (("a", [step()]), ("b", [step(actions={})])))
    source = Given([good, bad])
    build = begin_store(tmp_path / "set", {})
    recordings = [Recording("one", "first.mp4"), Recording("two", "second.mp4")]
    plan = ShardPlan("given", "nowhere", CONFIG, str(shard_path(build, "set", "train", 0, 1)), recordings, "skip")
    counts = write_shard(plan, source, lambda recordings, steps: None)
    assert (counts.recordings, counts.records, counts.steps) == (0, 0, 0)
    assert [item["where"] for item in counts.skipped] == ["first.mp4", "second.mp4"]
    assert plan.finished() == counts
    store = finish_store(tmp_path / "set", "set", stored_features(source.schema, CONFIG))
    assert store.splits == {"train": 0}


def test_shard_with_skipped_recordings_is_written_again_if_they_are_errors(tmp_path):
    build = begin_store(tmp_path / "set", {})
    plan = ShardPlan("given", "nowhere", CONFIG, str(shard_path(build, "set", "train", 0, 1)),
                     [Recording("one", "file.mp4")], "skip")
    write_shard(plan, Given([]), lambda recordings, steps: None)
    assert plan.finished() is not None
    assert dataclasses.replace(plan, on_error="stop").finished() is None


def test_shard_of_another_state_is_removed_before_its_new_report_is_written(tmp_path, monkeypatch):
    build = begin_store(tmp_path / "set", {})
    plan = ShardPlan("given", "nowhere", CONFIG, str(shard_path(build, "set", "train", 0, 1)),
                     [Recording("one", "file.mp4")], "stop", "before")
    source = Given([SourceEpisode("e", "go", [step()])])
    write_shard(plan, source, lambda recordings, steps: None)
    assert plan.finished() is not None
    after = dataclasses.replace(plan, state="after")
    assert after.finished() is None

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardWriter, "__exit__", killed)  # the report is written, the shard not yet named
    with pytest.raises(KeyboardInterrupt):
        write_shard(after, source, lambda recordings, steps: None)
    assert after.report.is_file()
    assert after.finished() is None


def test_records_are_buffered_in_a_file_until_the_recording_is_whole(tmp_path):
    records = [os.urandom(40_000_000), b"", b"ab"]
    assert list(buffered(iter(records * 2), tmp_path)) == records * 2

    def broken() -> Iterator[bytes]:
        yield b"one"
        raise BadDataError("broken")

    with pytest.raises(BadDataError):
        next(buffered(broken(), tmp_path))
    assert not list(tmp_path.iterdir())


def test_config_comes_from_file_and_overrides(tmp_path):
    (tmp_path / "set.json").write_text(json.dumps({"image_size": 64, "fields": {"a": "x"}}))
    (tmp_path / "set.py").write_text("def get_config():\n    return {'image_size': 64, 'fields': {'a': 'x'}}\n")
    overrides = ["--config.rate_hz=5", "--config.fields.b=17", "--config.options.classes=[1, 2]", "--config.name=12"]
    for file in ("set.json", "set.py"):
        config = read_prepare_config(str(tmp_path / file), overrides)
        assert (config.image_size, config.rate_hz, config.name) == (64, 5.0, "12")
        assert config.fields == {"a": "x", "b": "17"}
        assert config.options == {"classes": [1, 2]}
    with pytest.raises(FileNotFoundError, match="no such file; expected FILE.json, FILE.py"):
        read_prepare_config(str(tmp_path / "none.py"), [])
    (tmp_path / "broken.json").write_text("{image_size: 64}")
    with pytest.raises(ValueError, match="broken.json: is not JSON: Expecting property name"):
        read_prepare_config(str(tmp_path / "broken.json"), [])


@pytest.mark.parametrize(("command", "resumes"), [("prepare", True), ("check", False), ("stats", False)])
def test_interrupted_command_announces_resuming_only_if_it_can(tmp_path, monkeypatch, capsys, command, resumes):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    room = "prepare" if command == "prepare" else "inspect"
    monkeypatch.setattr(f"agent_jax.data.{room}.{command}.{command}", interrupted)
    line = ["--source", "rlds", "--path", str(tmp_path), "--out", "x"] if command == "prepare" else [str(tmp_path)]
    assert main([command, *line]) == 130
    assert ("repeat the command" in capsys.readouterr().err) == resumes


@pytest.mark.parametrize(("text", "value"), [("True", True), ("true", True), ("False", False), ("false", False)])
def test_booleans_are_accepted_in_json_and_python_form(text, value):
    assert read_prepare_config("", [f"--config.options.state={text}"]).options == {"state": value}
    assert read_check_config(Path(), "", [f"--config.video={text}"]).video is value


@pytest.mark.parametrize(("arguments", "message"), [
    (["--source", "rdls"], "--source=rdls: no such kind of data; did you mean 'rlds'?"),
    (["--path", "nowhere"], "--path=nowhere: not found"),
    (["--config.camera.rgb=x"], "config.camera: no such field; did you mean 'cameras'"),
    (["--config.image_size=big"], "config.image_size: found 'big' of type str, expected int"),
    (["--config.validation=1.5"], "config.validation=1.5 is a share"),
    (["--processes", "0"], "--processes=0: expected at least 1"),
    (["--colour"], "--colour: unexpected argument"),
    (["--config.cameras.rgb=image_5"], "config.cameras.rgb: .* has no feature 'image_5'"),
])
def test_command_line_errors_are_one_line(tmp_path, capsys, arguments, message):
    path = bridge_set(tmp_path, "tfrecord", {"train": 1})
    line = ["prepare", "--source", "rlds", "--path", str(path), "--out", str(tmp_path / "out"), *arguments]
    assert main(line) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert re.search(message, error), error


def test_command_prints_what_it_stored_and_skipped(tmp_path, capsys):
    path = bridge_set(tmp_path, "tfrecord", {"train": 4, "val": 1}, change=spoil)
    line = ["prepare", "--source", "rlds", "--path", str(path), "--out", str(tmp_path / "out"), "--processes", "1",
            "--config.fields.action=world_vector"]
    assert main(line) == 2
    assert "record 1" in capsys.readouterr().err
    assert main([*line, "--on_error=skip", "--json", str(tmp_path / "counts.json")]) == 0
    output = capsys.readouterr().out
    assert "prepared: 3 recordings, 3 episodes, 18 steps in 3 records (1 test, 2 train)" in output
    assert "left out: 2 recordings" in output
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["splits"] == {"test": 1, "train": 2}
    assert len(counts["skipped"]) == 2


@pytest.mark.parametrize("split", ["fold 1", "val.2", "all"])
def test_invalid_split_name_is_refused_before_any_work(tmp_path, split):
    with pytest.raises(BadDataError, match=f"a.mp4: found the split '{split}', expected a name of letters"):
        split_recordings([Recording("a", "a.mp4", split)], 0.0)
    with pytest.raises(ValueError, match=f"split '{split}': expected"):
        shard_path(tmp_path, "set", split, 0, 1)


def test_name_may_contain_brackets(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 1})
    store, _ = prepare("rlds", path, tmp_path / "out", changed(name="Task [v2]"))
    assert (store.name, store.split("train")[0].steps) == ("Task [v2]", 6)


def test_empty_split_is_reported(tmp_path):
    path = bridge_set(tmp_path, "tfrecord", {"train": 1, "val": 1}, change=spoil)
    store, summary = prepare("rlds", path, tmp_path / "out", CONFIG, on_error="skip")
    assert store.splits == {"test": 0, "train": 1}
    assert any("split 'test' is empty: all its recordings were left out" in line
               for line in summary_lines(store, summary))


def test_records_follow_the_canonical_schema():
    (record,) = RecordMaker(Given([SourceEpisode("e", "go", [step()])]), CONFIG).records(Recording("r", "f"), Counts())
    features = Example.FromString(record).features.feature
    assert set(features) >= {"episode_id", "recording_id", "start", "instruction", "steps/world_vector",
                             "steps/action_weight"}


def test_help_describes_every_source_and_field(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert DESCRIPTIONS.keys() == CLASSES.keys()
    for kind, text in DESCRIPTIONS.items():
        assert f"  {kind} " in output
        assert text in output
    for name, comment in field_comments(PrepareConfig).items():
        assert f"--config.{name} (default " in output
        assert comment
