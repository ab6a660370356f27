"""LeRobot data sets: all layouts give equal values, and inconsistent data are refused."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_sets import (
    CHANGE,
    HEIGHT,
    LENGTHS,
    LEVEL,
    RATE_HZ,
    TASKS,
    TOP,
    WIDTH,
    WRIST,
    action,
    info,
    rows,
    table,
    version_2,
    version_3,
    write_info,
    write_table,
    write_video,
)
from PIL import Image
from prepared_runs import train_two_steps

from agent_jax.config import DomainConfig, presets
from agent_jax.data.__main__ import main
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.prepare.sources.lerobot.info import CameraFeature, LeRobotInfo
from agent_jax.data.prepare.sources.source import SourceStep
from agent_jax.data.store.store import open_store

BOTH = PrepareConfig(cameras={"rgb": TOP, "wrist": WRIST})
Maker = Callable[[Path, str], Path]


def read_all(path: Path, config: PrepareConfig = BOTH) -> dict[str, list[tuple[str, int, bool, list[SourceStep]]]]:
    """(instruction, start, ends, steps) of each stretch, by name of the recording."""
    source = open_source("lerobot", path, config)
    return {recording.name: [(episode.instruction, episode.start, episode.ends, list(episode.steps))
                             for episode in source.read(recording)] for recording in source.recordings()}


def level_of(image: bytes | np.ndarray) -> float:
    pixels = np.asarray(Image.open(io.BytesIO(image))) if isinstance(image, bytes) else image
    return float(pixels.mean())


@pytest.mark.parametrize("make", [version_2, version_3])
def test_each_row_has_its_numbers_and_the_frame_of_its_time(tmp_path: Path, make: Maker) -> None:
    found = read_all(make(tmp_path / "set", "video"))
    assert list(found) == [f"episode_{episode:06d}" for episode in range(3)]
    for episode, stretches in enumerate(found.values()):
        steps = [step for stretch in stretches for step in stretch[3]]
        assert len(steps) == LENGTHS[episode]
        for row, step in zip(rows(episode), steps, strict=True):
            np.testing.assert_allclose(step.actions["action"], action(row), rtol=1e-6)
            np.testing.assert_array_equal(step.observations["state"], [row] * 4)
            assert step.reward == float(row - rows(episode)[0] == 4)
            assert step.images["rgb"].shape == (HEIGHT, WIDTH, 3)  # pyright: ignore[reportAttributeAccessIssue]
            assert abs(level_of(step.images["rgb"]) - LEVEL * row) <= 2
            assert abs(level_of(step.images["wrist"]) - (255 - LEVEL * row)) <= 2


@pytest.mark.parametrize("make", [version_2, version_3])
def test_stored_images_are_copied_byte_for_byte(tmp_path: Path, make: Maker) -> None:
    path = make(tmp_path / "set", "image")
    source = open_source("lerobot", path, PrepareConfig())
    assert source.schema.cameras == {"rgb": (HEIGHT, WIDTH)}  # though info.json says channels first
    images = [step.images["rgb"] for stretches in read_all(path, PrepareConfig()).values()
              for stretch in stretches for step in stretch[3]]
    assert images == [content["bytes"] for content in table([0, 1, 2], "image")[TOP].to_pylist()]


def test_image_files_must_lie_within_the_data_set(tmp_path: Path) -> None:
    path = version_2(tmp_path / "set", "image")
    (path / "images").mkdir()
    content = table([0], "image")[TOP].to_pylist()
    (path / "images" / "1.png").write_bytes(content[1]["bytes"])
    (tmp_path / "secret.png").write_bytes(content[1]["bytes"])
    for name, there in (("images/1.png", True), ("../secret.png", False), (str(tmp_path / "secret.png"), False)):
        content[1] = {"bytes": None, "path": name}
        write_table(path / "data/chunk-000/episode_000000.parquet",
                    table([0], "image", **{TOP.replace(".", "__"): content}))
        if there:
            assert level_of(read_all(path, PrepareConfig())["episode_000000"][0][3][1].images["rgb"]) == LEVEL
        else:
            with pytest.raises(BadDataError, match=r"episode_000000\.parquet, episode 0, row 1, .*names the file"):
                read_all(path, PrepareConfig())


def test_episode_is_cut_where_its_task_changes(tmp_path: Path) -> None:
    path = version_3(tmp_path / "set")
    first, second, third = read_all(path).values()
    assert [(text, start, ends, len(steps)) for text, start, ends, steps in second] == [
        (TASKS[0], 0, False, CHANGE - 6), (TASKS[1], CHANGE - 6, True, 15 - CHANGE)]
    assert [(text, start, ends) for text, start, ends, _ in (*first, *third)] == [(TASKS[0], 0, True)] * 2
    source = open_source("lerobot", path, BOTH)
    (episode,) = source.read(source.recordings()[0])
    assert episode.terminal  # as next.done says


def test_parts_of_features_are_chosen_and_joined(tmp_path: Path) -> None:
    path = version_3(tmp_path / "set", "image")
    spec = presets.arm_spec("arm", names=("x", "gripper", "y"), low=-1.0, high=1.0)
    config = PrepareConfig(action_spec=spec, fields={"action": "action[0], gripper,action[1:2]"})
    steps = read_all(path, config)["episode_000001"][0][3]
    np.testing.assert_allclose(steps[1].actions["action"], [0.07, 1.0, -0.07], rtol=1e-6)


def test_open_bounds_are_accepted(tmp_path: Path) -> None:
    spec = presets.arm_spec("arm", names=("x", "y", "z"), bounds="quantiles")
    path = version_3(tmp_path / "set")
    [episode, *_] = [*read_all(path, dataclasses.replace(BOTH, action_spec=spec)).values()]
    assert episode[0][3][0].actions["action"].shape == (3,)
    assert open_source("lerobot", path, dataclasses.replace(BOTH, action_spec=spec)).action_spec == spec


def test_resampling_keeps_the_last_target_or_sums_deltas_and_sums_rewards(tmp_path: Path) -> None:
    path = version_2(tmp_path / "set")
    absolute = presets.arm_spec("arm", names="xyz", low=-1.0, high=1.0, absolute=True)
    config = PrepareConfig(cameras={"rgb": TOP}, action_spec=absolute, rate_hz=5.0, instruction_text="go")
    assert open_source("lerobot", path, config).rate_hz == 5
    steps = read_all(path, config)["episode_000001"][0][3]
    assert [round(float(step.actions["action"][0]) * 100) for step in steps] == [7, 9, 11, 13, 14]
    assert [round(level_of(step.images["rgb"]) / LEVEL) for step in steps] == [6, 8, 10, 12, 14]
    assert [step.reward for step in steps] == [0, 0, 1, 0, 0]  # of rows 10 and 11
    config = dataclasses.replace(config, rate_hz=10 / 4, action_spec={**absolute, "absolute": False})
    steps = read_all(path, config)["episode_000001"][0][3]
    assert [round(float(step.actions["action"][0]) * 100) for step in steps] == [6 + 7 + 8 + 9, 10 + 11 + 12 + 13, 14]
    unclear = PrepareConfig(cameras={"rgb": TOP}, rate_hz=5.0)
    with pytest.raises(ValueError, match=r"config\.resample_actions=last .*config\.resample_actions=sum"):
        open_source("lerobot", path, unclear)
    last = read_all(path, dataclasses.replace(unclear, resample_actions="last"))["episode_000000"][0][3]
    np.testing.assert_allclose([step.actions["action"][0] for step in last], [0.01, 0.03, 0.05], rtol=1e-6)


def test_several_splits_of_the_data_are_kept(tmp_path: Path) -> None:
    path = version_2(tmp_path / "set")
    assert {recording.split for recording in open_source("lerobot", path, BOTH).recordings()} == {""}
    write_info(path, {**info("v2.1", "video"), "splits": {"train": "0:2", "val": "2:3"}})
    assert [recording.split for recording in open_source("lerobot", path, BOTH).recordings()] == [
        "train", "train", "test"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"cameras": {}}, f"the cameras {TOP}, {WRIST}; .*--config.cameras.rgb={TOP}"),
    ({"cameras": {"rgb": "observation.images.depth"}},
     r"config\.cameras\.rgb='observation\.images\.depth': .*info\.json: features\.\S* is a depth map"),
    ({"cameras": {"rgb": "observation.images.dept"}}, "no such camera"),
    ({"fields": {"action": "acton"}}, "no feature 'acton' that holds numbers; expected one of observation.state"),
    ({"fields": {"action": "action[2:4]"}}, "'action' has 3 numbers, expected a part"),
    ({"fields": {"arm": "action"}}, r"config\.fields\.arm: no key of the action or state spec"),
    ({"options": {"x": 1}}, r"config\.options\.x: no such field"),
    ({"rate_hz": 4.0}, "a whole fraction"),
    ({"action_spec": presets.arm_spec("arm", names="xy", low=-1.0, high=1.0)}, "3 numbers, but the spec expects"),
])
def test_invalid_config_is_reported(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = {"cameras": {"rgb": TOP}, **changes}
    with pytest.raises(ValueError, match=message):
        open_source("lerobot", version_2(tmp_path / "set"), PrepareConfig(**given))


@pytest.mark.parametrize(("changes", "message"), [
    ({"codebase_version": "v1.6"}, "found codebase_version 'v1.6', expected v2.0, v2.1 or v3.x; convert it"),
    ({"codebase_version": "v4.0"}, "found codebase_version 'v4.0'"),
    ({"fps": 0}, "fps is 0, expected a number above 0"),
    ({"total_episodes": 5}, "total_episodes=5, but 3 episodes are listed"),
    ({"data_path": "../{episode_index}.parquet"}, "expected a path within the data set"),
    ({"data_path": "{nothing}.parquet"}, "expected a path with episode_chunk, episode_index in braces"),
    ({"features": []}, "features is .., expected an object"),
    ({"splits": {"train": "all"}}, r"splits\.train is 'all', expected a range"),
    ({"splits": ["train"]}, r"splits is \['train'\], expected an object"),
    ({"chunks_size": 0.5}, "chunks_size is 0.5, expected a whole number"),
    ({"data_path": "{episode_index:3000000000d}.parquet"}, "found episode_index with the format '3000000000d'"),
    ({"data_path": "{episode_index:000000000000d}.parquet"}, "found episode_index with the format"),
    ({"data_path": "{episode_index.__class__}.parquet"}, r"found \{episode_index\.__class__\}; expected a path with"),
    ({"data_path": "{episode_index[0]}.parquet"}, r"found \{episode_index\[0\]\}"),
    ({"data_path": "{episode_index!r}.parquet"}, "found episode_index with the format 'r'"),
    ({"data_path": "{episode_index:{episode_chunk}d}.parquet"}, "found episode_index with the format"),
    ({"data_path": "{episode_index"}, "data_path is '{episode_index': .* expected a path"),
    ({"data_path": "x" * 501}, "data_path is 'x.*: 501 characters"),
    ({"video_path": "{video_key:99999s}.mp4"}, "video_path is .*found video_key with the format '99999s'"),
    ({"data_path": ["x"]}, r"data_path is \['x'\]: not a text"),
])
def test_invalid_metadata_are_reported(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = version_2(tmp_path / "set")
    write_info(path, {**info("v2.1", "video"), **changes})
    with pytest.raises(ValueError, match=r"meta/info\.json: .*" + message):
        open_source("lerobot", path, BOTH)


def test_info_that_is_not_json_is_bad_data(tmp_path: Path) -> None:
    path = version_2(tmp_path / "set", "image")
    (path / "meta" / "info.json").write_text("{")
    with pytest.raises(BadDataError, match=r"meta/info\.json: is not JSON"):
        open_source("lerobot", path, PrepareConfig())


@pytest.mark.parametrize(("shape", "names", "size"), [
    ([3, 96, 120], ["rgb", "height", "width"], (96, 120)),
    ([3, 96, 120], ["channels", "height", "width"], (96, 120)),
    ([3, 96, 120], ["c", "h", "w"], (96, 120)),
    ([96, 120, 3], ["height", "width", "rgb"], (96, 120)),
    ([96, 120, 3], None, (96, 120)),
    ([3, 96, 120], None, (96, 120)),
    ([3, 96, 120], {"channel": 3, "height": 96, "width": 120}, (96, 120)),
    ([120, 96, 3], ["width", "height", "channel"], (96, 120)),
    ([3, 96, 120], ["height", "width", "channel"], (96, 120)),  # contradicts the shape
    ([96, 120, 3], ["channel", "height", "width"], (96, 120)),  # likewise
    ([3, 120, 3], ["rgb", "height", "width"], (120, 3)),
    ([3, 120, 3], ["height", "width", "rgb"], (3, 120)),
])
def test_image_axes_are_found_by_name(tmp_path: Path, shape: list[int], names: Any,
                                      size: tuple[int, int]) -> None:
    content = info("v2.1", "image")
    content["features"][TOP] |= {"shape": shape, "names": names}
    write_info(tmp_path, content)
    assert LeRobotInfo.read(tmp_path / "meta/info.json").features().cameras[TOP] == CameraFeature("image", *size)


@pytest.mark.parametrize(("feature", "message"), [
    ({"dtype": "image", "shape": [HEIGHT, WIDTH, 1], "names": ["height", "width", "channel"]},
     r"has shape \[32, 48, 1\]"),
    ({"dtype": "video", "shape": [HEIGHT, WIDTH]}, r"has shape \[32, 48\], expected height, width and 3 channels"),
    ({"dtype": "image", "shape": 1}, "has shape 1, expected a list of sizes"),
    ({"dtype": "float32", "shape": ["a"]}, r"has shape \['a'\], expected a list"),
    ("x", "is 'x', expected an object"),
])
def test_unusable_features_are_refused_only_when_chosen(tmp_path: Path, feature: Any,
                                                        message: str) -> None:
    path, content = version_2(tmp_path / "set", "image"), info("v2.1", "image")
    content["features"]["odd"] = feature
    write_info(path, content)
    assert len(read_all(path, PrepareConfig())) == 3
    with pytest.raises(ValueError, match=rf"config\.cameras\.rgb='odd': .*features\.odd {message}"):
        open_source("lerobot", path, PrepareConfig(cameras={"rgb": "odd"}))
    with pytest.raises(ValueError, match=rf"config\.fields\.action='action,odd': .*features\.odd {message}"):
        open_source("lerobot", path, PrepareConfig(fields={"action": "action,odd"}))


def test_unchosen_camera_may_lack_its_columns(tmp_path: Path) -> None:
    path = version_3(tmp_path / "set")
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    content = pq.read_table(file)
    write_table(file, content.drop_columns([name for name in content.column_names if WRIST in name]))
    assert len(read_all(path, PrepareConfig(cameras={"rgb": TOP}))) == 3
    with pytest.raises(BadDataError, match=rf"no column 'videos/{WRIST}/chunk_index'"):
        open_source("lerobot", path, BOTH)


def test_removed_episodes_are_reported_with_the_count_to_set(tmp_path: Path) -> None:
    path = version_2(tmp_path / "set", "image")
    file = path / "meta" / "episodes.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[2]]))
    with pytest.raises(BadDataError, match=r"info\.json: found total_episodes=3, but 2 episodes .* is episode 1\. "
                                           ".*set total_episodes to 2"):
        open_source("lerobot", path, PrepareConfig())
    write_info(path, {**info("v2.1", "image"), "total_episodes": 2})
    assert list(read_all(path, PrepareConfig())) == ["episode_000000", "episode_000002"]


def test_version_1_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "meta_data").mkdir()
    with pytest.raises(ValueError, match=r"version 1, .*convert_dataset_v1_to_v2\.py"):
        open_source("lerobot", tmp_path, PrepareConfig())


NAN = pa.array([[0.0, 0.0, 0.0]] * 3 + [[0.0, float("nan"), 0.0]] + [[0.0, 0.0, 0.0]] * 2, pa.list_(pa.float32(), 3))
SHORT = pa.array([[0.0, 0.0, 0.0]] * 5 + [[0.0, 0.0]], pa.list_(pa.float32()))


@pytest.mark.parametrize(("columns", "message"), [
    ({"action": NAN}, r"episode 0, row 3: 'action' is \[0.0, nan, 0.0\], expected finite numbers"),
    ({"action": SHORT}, "row 5: 'action' has 2 numbers, expected 3"),
    ({"timestamp": pa.array([t / 20 for t in range(6)], pa.float32())},
     "row 1: is frame 1 at 0.0500 s, expected frame 1 at 0.1000 s, as .*says fps=10"),
    ({"frame_index": [0, 1, 3, 4, 5, 6]}, "row 2: is frame 3"),
    ({"task_index": [7] * 6}, "task_index 7, which is none of the 2 tasks"),
    ({"task_index": pa.array([0, None, 0, 0, 0, 0])}, "row 1: 'task_index' is missing"),
    ({"episode_index": [0] * 5 + [1]}, "found 5 rows of episode 0, but the metadata say 6"),
    ({"action": ["x"] * 6}, "'action' holds string at each step, expected 3 numbers"),
    ({"action": [{"a": 1}] * 6}, "'action' holds struct.* at each step, expected 3 numbers"),
    ({"frame_index": ["x"] * 6}, "'frame_index' holds string, expected numbers"),
    ({TOP.replace(".", "__"): ["x"] * 6}, f"row 0, '{TOP}': found str, expected an image"),
    ({TOP.replace(".", "__"): [{"bytes": "x", "path": "y"}] * 6}, f"row 0, '{TOP}': found dict, expected an image"),
])
def test_wrong_rows_are_reported_with_their_file(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = version_2(tmp_path / "set", "image")
    write_table(path / "data/chunk-000/episode_000000.parquet", table([0], "image", **columns))
    with pytest.raises(BadDataError, match=r"data/chunk-000/episode_000000\.parquet.*" + message):
        read_all(path, PrepareConfig())


def test_damaged_missing_and_incomplete_tables_are_reported(tmp_path: Path) -> None:
    path = version_2(tmp_path / "set", "image")
    file = path / "data/chunk-000/episode_000001.parquet"
    write_table(file, table([1], "image").drop_columns(["action"]))
    with pytest.raises(BadDataError, match=r"episode_000001\.parquet: has no column 'action'; it has"):
        read_all(path, PrepareConfig())
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(BadDataError, match=r"episode_000001\.parquet: cannot be read as parquet"):
        read_all(path, PrepareConfig())
    file.unlink()
    with pytest.raises(BadDataError, match=r"episode_000001\.parquet: not found"):
        read_all(path, PrepareConfig())
    (path / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "a"}\n{"task_index"')
    with pytest.raises(BadDataError, match=r"tasks\.jsonl:2: is not JSON"):
        read_all(path, PrepareConfig())


@pytest.mark.parametrize(("video", "message"), [
    ({"levels": range(5)}, r"no frame at 0\.5000 s, where the table has a row; the video ends before it"),
    ({"levels": range(12), "rate_hz": 2 * RATE_HZ}, "found 20 frames a second, expected fps=10"),
    ({"levels": range(6), "height": 48}, "found 48x48 pixels, expected 32x48"),
    (None, f"the video of '{TOP}' is missing"),
    (b"no video", "cannot be opened as a video"),
])
def test_video_that_does_not_fit_its_table_is_reported(tmp_path: Path, video: Any, message: str) -> None:
    path = version_2(tmp_path / "set")
    file = path / f"videos/chunk-000/{TOP}/episode_000000.mp4"
    file.unlink()
    if isinstance(video, bytes):
        file.write_bytes(video)
    elif video:
        write_video(file, **video)
    with pytest.raises(BadDataError, match=rf"{TOP}/episode_000000\.mp4.*{message}"):
        read_all(path)


def test_frames_between_the_rows_are_refused(tmp_path: Path) -> None:
    path = version_3(tmp_path / "set")
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    content, name = pq.read_table(file), f"videos/{WRIST}/from_timestamp"
    place = content.column_names.index(name)
    write_table(file, content.set_column(place, name, pa.array([1.45, 0.5, 0.0])))
    with pytest.raises(BadDataError, match=rf"{WRIST}/.*, episode 0: no frame at 1\.45.*the next is at 1\.5000 s"):
        read_all(path)


@pytest.mark.slow
def test_training_with_a_spec_declared_by_the_domain(tmp_path: Path) -> None:
    path, out, summary = version_3(tmp_path / "set"), tmp_path / "store", tmp_path / "summary.json"
    assert main(["prepare", "--source", "lerobot", "--path", str(path), "--out", str(out), "--processes", "1",
                 f"--config.cameras.rgb={TOP}", "--config.image_size=16", "--json", str(summary)]) == 0
    assert json.loads(summary.read_text())["steps"] == sum(LENGTHS)
    store = open_store(out)
    assert sum(store.splits.values()) == 4  # three episodes, one of them in two stretches
    spec = presets.arm_spec("arm", names="xyz", bounds="min_max", rate_hz=RATE_HZ)
    metrics = train_two_steps(out, DomainConfig(action_spec=spec, window=2, stride=2, max_text=32), blocks=("arm",))
    assert metrics.weights.action[0] >= 2 * 5  # of each step: three tokens and two delimiters


@pytest.mark.parametrize("make", [version_2, version_3])
def test_files_of_an_episode_are_table_chosen_videos_and_metadata(tmp_path: Path, make: Maker) -> None:
    path = make(tmp_path / "set", "video")
    source = open_source("lerobot", path, PrepareConfig(cameras={"rgb": TOP}))
    files = set(source.files(source.recordings()[0]))
    meta = {file for file in (path / "meta").rglob("*") if file.is_file()}
    assert meta <= files
    assert [file.suffix for file in sorted(files - meta)] == [".parquet", ".mp4"]
    assert all(file.is_file() and WRIST not in str(file) for file in files)


def test_shard_size_counts_the_largest_video_of_an_episode(tmp_path: Path) -> None:
    path = version_2(tmp_path / "set", "video")
    source = open_source("lerobot", path, BOTH)
    recording = source.recordings()[0]
    videos = sorted((file for file in source.files(recording) if file.suffix == ".mp4"), key=lambda f: f.stat().st_size)
    videos[0].write_bytes(bytes(videos[-1].stat().st_size + 1))
    assert source.recordings()[0].where == str(videos[0])
    videos[0].unlink()
    assert source.recordings()[0].where == str(videos[-1])


@pytest.mark.parametrize("sign", ["_", "-"])
def test_files_of_an_episode_include_its_image_files(tmp_path: Path, sign: str) -> None:
    path = version_2(tmp_path / "set", "image")
    folders = [path / "images" / TOP / f"episode{sign}{number:06d}" for number in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / f"frame{sign}000000.png").touch()
    source = open_source("lerobot", path, PrepareConfig(cameras={"rgb": TOP}))
    images = [file for file in source.files(source.recordings()[1]) if file.suffix == ".png"]
    assert images == [folders[1] / f"frame{sign}000000.png"]
