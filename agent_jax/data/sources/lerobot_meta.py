"""What the `meta` folder of a LeRobot data set says: features, episodes and where each of them lies, tasks.

    v2.0, v2.1   meta/info.json, episodes.jsonl, tasks.jsonl
                 data/chunk-000/episode_000000.parquet            an episode a file
                 videos/chunk-000/KEY/episode_000000.mp4
    v3.x         meta/info.json, episodes/chunk-000/file-000.parquet, tasks.parquet
                 data/chunk-000/file-000.parquet                  many episodes a file
                 videos/KEY/chunk-000/file-000.mp4                likewise, from `from_timestamp` on

The paths are those of the templates in info.json.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from agent_jax.data.sources.source import BadDataError
from agent_jax.data.sources.table import read_jsonl
from agent_jax.json_files import read_json_object

_INDEX = "__index_level_0__"  # how pandas stores an index without a name


@dataclasses.dataclass(frozen=True)
class CameraFeature:
    """A camera, as info.json declares it."""

    kind: Literal["video", "image"]
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Video:
    """Where an episode's images of a camera lie."""

    file: Path
    start_s: float  # of its first frame


@dataclasses.dataclass(frozen=True)
class EpisodeEntry:
    """An episode, as the meta data list it."""

    index: int
    length: int  # in steps
    table: Path
    videos: Mapping[str, Video]  # by camera


@dataclasses.dataclass(frozen=True)
class LeRobotMeta:
    """The meta data of a data set."""

    file: Path  # info.json
    rate_hz: float
    cameras: Mapping[str, CameraFeature]
    numbers: Mapping[str, tuple[int, ...]]  # shape by feature, of those that hold numbers
    texts: frozenset[str]  # features that hold a text
    episodes: list[EpisodeEntry]
    tasks: Mapping[int, str]
    splits: Mapping[str, tuple[int, int]]  # first episode, and the one after the last


def read_meta(path: Path) -> LeRobotMeta:
    """The meta data of the data set in a folder.

    Raises:
        ValueError: no LeRobot data set, or one of a version that is not read; says what to do.
        BadDataError: a file of `meta` is damaged or contradicts itself; names it.
    """
    file = path / "meta" / "info.json"
    if not file.is_file():
        if (path / "meta_data").is_dir():
            raise ValueError(f"{path}: a LeRobot data set of version 1, expected 2.0 or later; convert it with "
                             "lerobot/common/datasets/v2/convert_dataset_v1_to_v2.py of the lerobot repository at "
                             "v0.3.3, or download a later revision of it")
        found = sorted(item.name for item in path.iterdir())[:5] if path.is_dir() else "no folder"
        raise ValueError(f"{path}: found {found}, expected a LeRobot data set with meta/info.json in it")
    info = _Info(file, read_json_object(file))
    major = info.major_version()
    features = info.mapping("features")
    cameras = {key: camera for key, feature in features.items() if (camera := info.camera(key, feature))}
    tasks = _tasks_3(path) if major == 3 else _tasks_2(path)
    entries = _episodes_3 if major == 3 else _episodes_2
    videos = [key for key, camera in cameras.items() if camera.kind == "video"]
    episodes = sorted(entries(path, info, videos), key=lambda entry: entry.index)
    total = info.content.get("total_episodes", len(episodes))
    if total != len(episodes):
        raise BadDataError(f"{file}: says total_episodes={total}, but {len(episodes)} episodes are listed beside it; "
                           "copy the data anew")
    numbers = {key: tuple(feature.get("shape") or (1,)) for key, feature in features.items()
               if re.fullmatch(r"u?int\d+|float\d+|bool", str(feature.get("dtype")))}
    texts = frozenset(key for key, feature in features.items() if feature.get("dtype") == "string")
    return LeRobotMeta(file, info.number("fps"), cameras, numbers, texts, episodes, tasks, info.splits())


@dataclasses.dataclass(frozen=True)
class _Info:
    """info.json, with errors that name it."""

    file: Path
    content: Mapping[str, Any]

    def major_version(self) -> int:
        version = str(self.content.get("codebase_version"))
        match = re.fullmatch(r"v(\d+)\.\d+", version)
        major = int(match[1]) if match else 0
        if major not in (2, 3):
            older = "; convert it by the scripts of the lerobot repository" if major == 1 else ""
            raise ValueError(f"{self.file}: found codebase_version {version!r}, expected v2.0, v2.1 or v3.x{older}")
        return major

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.content.get(name)
        if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
            raise BadDataError(f"{self.file}: {name} is {value!r}, expected an object of objects")
        return value

    def number(self, name: str) -> float:
        value = self.content.get(name)
        if not isinstance(value, (int, float)) or not 0 < value < 1e6:
            raise BadDataError(f"{self.file}: {name} is {value!r}, expected a number above 0")
        return float(value)

    def splits(self) -> dict[str, tuple[int, int]]:
        splits = self.content.get("splits") or {}
        found = {}
        for name, text in splits.items():
            match = re.fullmatch(r"(\d+):(\d+)", str(text))
            if not match:
                raise BadDataError(f"{self.file}: splits.{name} is {text!r}, expected a range of episodes as '0:50'")
            found[name] = (int(match[1]), int(match[2]))
        return found

    def camera(self, key: str, feature: Mapping[str, Any]) -> CameraFeature | None:
        """The camera of a feature; None for one that is none, or one of depth."""
        kind, shape = feature.get("dtype"), list(feature.get("shape") or ())
        details = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
        if kind not in ("video", "image") or details.get("video.is_depth_map") or details.get("is_depth_map"):
            return None
        names = [str(name) for name in feature.get("names") or ()]
        if len(shape) != 3 or 3 not in (shape[0], shape[-1]):
            raise BadDataError(f"{self.file}: features.{key} has shape {shape}, expected height, width and 3 channels")
        channels_first = names[0].startswith("channel") if names else shape[-1] != 3
        height, width = shape[1:] if channels_first else shape[:2]
        return CameraFeature(kind, int(height), int(width))

    def path(self, root: Path, name: str, **values: Any) -> Path:
        """The file that a template of info.json names."""
        template = self.content.get(name)
        try:
            relative = PurePosixPath(str(template).format(**values))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise BadDataError(f"{self.file}: {name} is {template!r}, expected a path with {', '.join(values)} in "
                               f"braces ({error!r})") from error
        if template is None or relative.is_absolute() or ".." in relative.parts:
            raise BadDataError(f"{self.file}: {name} is {template!r}, expected a path within the data set")
        return root / relative


def _episodes_2(path: Path, info: _Info, videos: list[str]) -> Iterator[EpisodeEntry]:
    chunk_size = int(info.number("chunks_size"))
    for row in _rows_of(path / "meta" / "episodes.jsonl"):
        index, length = (int(row.number(name)) for name in ("episode_index", "length"))
        at = {"episode_chunk": index // chunk_size, "episode_index": index}
        yield EpisodeEntry(index, length, info.path(path, "data_path", **at), {
            key: Video(info.path(path, "video_path", **at, video_key=key), 0.0) for key in videos})


def _episodes_3(path: Path, info: _Info, videos: list[str]) -> Iterator[EpisodeEntry]:
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise BadDataError(f"{path / 'meta' / 'episodes'}: no parquet files; copy the data anew")
    place = ("chunk_index", "file_index")
    columns = ["episode_index", "length", *(f"data/{name}" for name in place),
               *(f"videos/{key}/{name}" for key in videos for name in (*place, "from_timestamp"))]
    for file in files:
        for row in parquet_table(file, columns).to_pylist():
            absent = [name for name, value in row.items() if value is None]
            if absent:
                raise BadDataError(f"{file}: episode {row['episode_index']} has no {absent[0]}")

            def at(prefix: str, row: Mapping[str, Any] = row) -> dict[str, int]:
                return {name: row[f"{prefix}/{name}"] for name in place}

            yield EpisodeEntry(row["episode_index"], row["length"], info.path(path, "data_path", **at("data")), {
                key: Video(info.path(path, "video_path", video_key=key, **at(f"videos/{key}")),
                           float(row[f"videos/{key}/from_timestamp"])) for key in videos})


def _tasks_2(path: Path) -> dict[int, str]:
    return {int(row.number("task_index")): row.text("task") for row in _rows_of(path / "meta" / "tasks.jsonl")}


def _tasks_3(path: Path) -> dict[int, str]:
    table = parquet_table(path / "meta" / "tasks.parquet")
    text = next((name for name in ("task", _INDEX) if name in table.column_names), None)
    if text is None or "task_index" not in table.column_names:
        raise BadDataError(f"{path / 'meta' / 'tasks.parquet'}: found the columns {', '.join(table.column_names)}, "
                           "expected task_index and task")
    return dict(zip(table["task_index"].to_pylist(), map(str, table[text].to_pylist()), strict=True))


def _rows_of(file: Path) -> Iterator[Any]:
    if not file.is_file():
        raise BadDataError(f"{file}: not found; copy the data anew")
    return read_jsonl(file)


def parquet_table(file: Path, columns: list[str] | None = None) -> pa.Table:
    """A whole parquet file, or some columns of it.

    Raises:
        BadDataError: it is missing or damaged, or lacks a column; names it.
    """
    return read_parquet(file, columns, lambda content: content.read(columns))


def read_parquet(file: Path, columns: list[str] | None, read: Callable[[pq.ParquetFile], pa.Table]) -> pa.Table:
    """What `read` takes from a parquet file that has all `columns`; errors as of `parquet_table`."""
    if not file.is_file():
        raise BadDataError(f"{file}: not found; copy the data anew")
    try:
        with pq.ParquetFile(file) as content:
            there = content.schema_arrow.names
            for column in columns or ():
                if column not in there:
                    raise BadDataError(f"{file}: has no column {column!r}; it has {', '.join(there)}")
            return read(content)
    except (pa.ArrowException, OSError) as error:
        raise BadDataError(f"{file}: cannot be read as parquet ({error}); the file is damaged or cut off") from error
