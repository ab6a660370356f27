"""Small LeRobot data sets of versions 2.1 and 3.0, written by pyarrow and PyAV in the layout that `lerobot` writes.

Of three episodes at 10 Hz; image n of the whole set is grey of level LEVEL * n, its action is [n, -n, 0.5] / 100.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

RATE_HZ, LEVEL, HEIGHT, WIDTH = 10, 12, 32, 48
LENGTHS = (6, 9, 5)
STARTS = (0, 6, 15)  # of the episodes, in the rows of all
TASKS = ("push the red block", "lift it")
CHANGE = 10  # the row, within the second episode, from which on the task is the second one
TOP, WRIST = "observation.images.top", "observation.images.wrist"


def grey(level: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey(level)).save(buffer, "png")
    return buffer.getvalue()


def write_video(path: Path, levels: Sequence[int], *, rate_hz: int = RATE_HZ, height: int = HEIGHT,
                width: int = WIDTH, times_s: Sequence[float] = ()) -> None:
    """Write a video with one frame per level, at `rate_hz` or at the given times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate_hz, options={"g": "2", "qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        if times_s:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 90_000)
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(grey(level, height, width), format="rgb24")
            if times_s:
                frame.pts, frame.time_base = round(times_s[number] * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def rows(episode: int) -> range:
    return range(STARTS[episode], STARTS[episode] + LENGTHS[episode])


def action(row: int) -> list[float]:
    return [row / 100, -row / 100, 0.5]


def table(episodes: Sequence[int], kind: str, **changes: Any) -> pa.Table:
    """The rows of some episodes; `changes` are columns to replace, by name with dots written as __."""
    numbers = [row for episode in episodes for row in rows(episode)]
    frames = [row - STARTS[episode] for episode in episodes for row in rows(episode)]
    columns: dict[str, Any] = {
        "observation.state": pa.array([[float(row)] * 4 for row in numbers], pa.list_(pa.float32(), 4)),
        "action": pa.array([action(row) for row in numbers], pa.list_(pa.float32(), 3)),
        "gripper": pa.array([row % 2 for row in numbers], pa.float32()),
        "next.reward": pa.array([float(frame == 4) for frame in frames], pa.float32()),
        "next.done": [row == rows(episode)[-1] for episode in episodes for row in rows(episode)],
        "words": [f"words {episode}" for episode in episodes for _ in rows(episode)],
        "timestamp": pa.array([frame / RATE_HZ for frame in frames], pa.float32()),
        "frame_index": frames,
        "episode_index": [episode for episode in episodes for _ in rows(episode)],
        "index": numbers,
        "task_index": [int(row in rows(1) and row >= CHANGE) for row in numbers],
    }
    if kind == "image":
        columns[TOP] = [{"bytes": png(LEVEL * row), "path": f"frame-{row:06d}.png"} for row in numbers]
    return pa.table({**columns, **{name.replace("__", "."): value for name, value in changes.items()}})


def write_table(path: Path, content: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path)


def info(version: str, kind: str) -> dict[str, Any]:
    def vector(size: int, dtype: str = "float32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": [size], "names": None}

    camera = {"dtype": kind, "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channels"]}
    first = kind == "image"
    features = {
        TOP: {**camera, "shape": [3, HEIGHT, WIDTH], "names": ["channels", "height", "width"]} if first else camera,
        **({WRIST: {**camera, "shape": [16, 16, 3]}} if kind == "video" else {}),
        "observation.images.depth": {**camera, "dtype": "video", "info": {"video.is_depth_map": True}},
        "observation.state": vector(4), "action": vector(3), "gripper": vector(1), "next.reward": vector(1),
        "next.done": vector(1, "bool"), "words": vector(1, "string"), "timestamp": vector(1),
        **{name: vector(1, "int64") for name in ("frame_index", "episode_index", "index", "task_index")},
    }
    if version == "v3.0":
        paths = {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                 "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"}
    else:
        paths = {"data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
                 "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"}
    return {"codebase_version": version, "fps": RATE_HZ, "total_episodes": 3, "total_frames": 20, "chunks_size": 1000,
            "splits": {"train": "0:3"}, "features": features, **paths}


def write_info(path: Path, content: dict[str, Any]) -> None:
    (path / "meta").mkdir(parents=True, exist_ok=True)
    (path / "meta" / "info.json").write_text(json.dumps(content, indent=1))


def version_2(path: Path, kind: str = "video") -> Path:
    """Write one episode per file."""
    write_info(path, info("v2.1", kind))
    episodes = [{"episode_index": e, "tasks": [TASKS[0]], "length": length} for e, length in enumerate(LENGTHS)]
    tasks = [{"task_index": number, "task": task} for number, task in enumerate(TASKS)]
    for name, lines in (("episodes", episodes), ("tasks", tasks)):
        (path / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for episode in range(3):
        write_table(path / f"data/chunk-000/episode_{episode:06d}.parquet", table([episode], kind))
        if kind == "video":
            levels = [LEVEL * row for row in rows(episode)]
            write_video(path / f"videos/chunk-000/{TOP}/episode_{episode:06d}.mp4", levels)
            write_video(path / f"videos/chunk-000/{WRIST}/episode_{episode:06d}.mp4",
                        [255 - level for level in levels], height=16, width=16)
    return path


def version_3(path: Path, kind: str = "video") -> Path:
    """Two episodes in the first table, one in the second; one video of all for each camera, the wrist's in reverse."""
    write_info(path, info("v3.0", kind))
    # pandas stores the tasks as an index without a name.
    write_table(path / "meta" / "tasks.parquet", pa.table({"task_index": [0, 1], "__index_level_0__": TASKS}))
    place = {"chunk_index": [0, 0, 0], "file_index": [0, 0, 0]}
    columns: dict[str, Any] = {"episode_index": [0, 1, 2], "tasks": [[TASKS[0]]] * 3, "length": LENGTHS,
                               "data/chunk_index": [0, 0, 0], "data/file_index": [0, 0, 1]}
    for camera, starts in ((TOP, (0, 6, 15)), (WRIST, (14, 5, 0))):
        columns |= {f"videos/{camera}/{name}": value for name, value in place.items()}
        columns[f"videos/{camera}/from_timestamp"] = [start / RATE_HZ for start in starts]
    write_table(path / "meta/episodes/chunk-000/file-000.parquet", pa.table(columns))
    write_table(path / "data/chunk-000/file-000.parquet", table([0, 1], kind))
    write_table(path / "data/chunk-000/file-001.parquet", table([2], kind))
    if kind == "video":
        write_video(path / f"videos/{TOP}/chunk-000/file-000.mp4", [LEVEL * row for row in range(20)])
        backwards = [255 - LEVEL * row for episode in (2, 1, 0) for row in rows(episode)]
        write_video(path / f"videos/{WRIST}/chunk-000/file-000.mp4", backwards, height=16, width=16)
    return path
