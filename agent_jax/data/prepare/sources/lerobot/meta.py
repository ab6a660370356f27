"""The `meta` folder of a LeRobot data set: features, episodes with their files, tasks.

    v2.0, v2.1   meta/info.json, episodes.jsonl, tasks.jsonl
                 data/chunk-000/episode_000000.parquet            one episode per file
                 videos/chunk-000/KEY/episode_000000.mp4
    v3.x         meta/info.json, episodes/chunk-000/file-000.parquet, tasks.parquet
                 data/chunk-000/file-000.parquet                  many episodes per file
                 videos/KEY/chunk-000/file-000.mp4                likewise, from `from_timestamp` on

The templates in info.json define the paths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.sources.lerobot.info import LARGEST_INDEX, Features, LeRobotInfo
from agent_jax.data.prepare.sources.parquet import column_numbers, column_texts, column_whole, parquet_table
from agent_jax.data.prepare.sources.table import Row, read_jsonl

_INDEX = "__index_level_0__"  # pandas' name for an unnamed index


@dataclasses.dataclass(frozen=True)
class Video:
    """The part of a video file that holds an episode's images of a camera."""

    file: Path
    start_s: float  # of its first frame
    stop_s: float  # of the end of its last frame; infinite: the file holds this episode only; 0: unknown

    @property
    def own(self) -> bool:
        """Whether the file holds this episode only."""
        return self.stop_s == math.inf


@dataclasses.dataclass(frozen=True)
class EpisodeEntry:
    """An episode listed in the metadata."""

    index: int
    length: int  # in steps
    table: Path
    videos: Mapping[str, Video]  # by camera


@dataclasses.dataclass(frozen=True)
class LeRobotMeta:
    """The metadata of a data set."""

    file: Path  # info.json
    rate_hz: float
    features: Features
    episodes: list[EpisodeEntry]
    tasks: Mapping[int, str]
    splits: Mapping[str, tuple[int, int]]  # first episode, and the episode after the last


def read_info(path: Path) -> LeRobotInfo:
    """Read the info.json of a data set.

    Raises:
        ValueError: not a LeRobot data set, or one of a version that is not supported; says what to do.
        BadDataError: info.json is damaged.
    """
    file = path / "meta" / "info.json"
    if not file.is_file():
        if (path / "meta_data").is_dir():
            raise ValueError(f"{path}: a LeRobot data set of version 1, expected 2.0 or later; convert it with "
                             "lerobot/common/datasets/v2/convert_dataset_v1_to_v2.py of the lerobot repository at "
                             "v0.3.3, or download a later revision of it")
        found = sorted(item.name for item in path.iterdir())[:5] if path.is_dir() else "no folder"
        raise ValueError(f"{path}: found {found}, expected a LeRobot data set with meta/info.json in it")
    info = LeRobotInfo.read(file)
    info.major_version()
    return info


def read_meta(path: Path, info: LeRobotInfo, features: Features, cameras: Collection[str]) -> LeRobotMeta:
    """Read the metadata of a data set; only the video files of `cameras` are looked up.

    Raises:
        BadDataError: a file of `meta` is damaged or contradicts another; names it.
    """
    major = info.major_version()
    tasks = _tasks_3(path) if major == 3 else _tasks_2(path)
    entries = _episodes_3 if major == 3 else _episodes_2
    videos = [key for key in cameras if features.cameras[key].kind == "video"]
    episodes = sorted(entries(path, info, videos), key=lambda entry: entry.index)
    _check_total(info, episodes)
    return LeRobotMeta(info.file, info.number("fps"), features, episodes, tasks, info.splits())


def _check_total(info: LeRobotInfo, episodes: list[EpisodeEntry]) -> None:
    """Refuse a list of episodes whose length is not that of info.json."""
    total = info.whole("total_episodes", len(episodes))
    if total == len(episodes):
        return
    numbers = {entry.index for entry in episodes}
    gone = next((number for number in range(total) if number not in numbers), None)
    first = f"; the first without an entry is episode {gone}" if gone is not None else ""
    raise BadDataError(f"{info.file}: found total_episodes={total}, but {len(episodes)} episodes are listed in "
                       f"meta/episodes{first}. If episodes were removed on purpose, set total_episodes to "
                       f"{len(episodes)} (their numbers may have gaps); if not, copy the data again")


def _episodes_2(path: Path, info: LeRobotInfo, videos: Collection[str]) -> Iterator[EpisodeEntry]:
    chunk_size = info.whole("chunks_size")
    for row in _rows_of(path / "meta" / "episodes.jsonl"):
        index, length = row.whole("episode_index", LARGEST_INDEX), row.whole("length", LARGEST_INDEX)
        at = {"episode_chunk": index // max(chunk_size, 1), "episode_index": index}
        yield EpisodeEntry(index, length, info.path(path, "data_path", **at), {
            key: Video(info.path(path, "video_path", **at, video_key=key), 0.0, math.inf) for key in videos})


def _episodes_3(path: Path, info: LeRobotInfo, videos: Collection[str]) -> Iterator[EpisodeEntry]:
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise BadDataError(f"{path / 'meta' / 'episodes'}: no parquet files; copy the data again")
    places = ["data", *(f"videos/{key}" for key in videos)]
    whole = ["episode_index", "length",
             *(f"{place}/{name}" for place in places for name in ("chunk_index", "file_index"))]
    starts, stops = ([f"videos/{key}/{name}" for key in videos] for name in ("from_timestamp", "to_timestamp"))
    for file in files:
        table = parquet_table(file, [*whole, *starts], optional=stops)
        numbers = {name: column_whole(table, name, str(file), LARGEST_INDEX) for name in whole}
        times_s = {name: column_numbers(table, name, 1, str(file))[:, 0].tolist()
                   for name in (*starts, *stops) if name in table.column_names}
        unknown = [0.0] * len(table)
        for row in range(len(table)):

            def at(prefix: str, row: int = row, numbers: Mapping[str, list[int]] = numbers) -> dict[str, int]:
                return {name: numbers[f"{prefix}/{name}"][row] for name in ("chunk_index", "file_index")}

            yield EpisodeEntry(numbers["episode_index"][row], numbers["length"][row],
                               info.path(path, "data_path", **at("data")), {
                key: Video(info.path(path, "video_path", video_key=key, **at(f"videos/{key}")),
                           times_s[f"videos/{key}/from_timestamp"][row],
                           times_s.get(f"videos/{key}/to_timestamp", unknown)[row]) for key in videos})


def _tasks_2(path: Path) -> dict[int, str]:
    return {row.whole("task_index", LARGEST_INDEX): row.text("task")
            for row in _rows_of(path / "meta" / "tasks.jsonl")}


def _tasks_3(path: Path) -> dict[int, str]:
    file = path / "meta" / "tasks.parquet"
    table = parquet_table(file)
    text = next((name for name in ("task", _INDEX) if name in table.column_names), None)
    if text is None or "task_index" not in table.column_names:
        raise BadDataError(f"{file}: found the columns {', '.join(table.column_names)}, expected task_index and task")
    return dict(zip(column_whole(table, "task_index", str(file), LARGEST_INDEX), column_texts(table, text, str(file)),
                    strict=True))


def _rows_of(file: Path) -> Iterator[Row]:
    if not file.is_file():
        raise BadDataError(f"{file}: not found; copy the data again")
    return read_jsonl(file)
