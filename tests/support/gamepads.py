"""Writes gamepad recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from videos import write_video

from agent_jax.actions.vocabulary import BLEEDING_EDGE_BUTTONS

STICKS = ("left_stick_x", "left_stick_y", "right_stick_x", "right_stick_y")


def pad_row(down: Sequence[str] = (), sticks: Sequence[float] = (0, 0, 0, 0), **place: float) -> dict[str, Any]:
    """A row of a table: `frame` or `time`, all buttons, all sticks."""
    return {**place, **{name: int(name in down) for name in BLEEDING_EDGE_BUTTONS},
            **dict(zip(STICKS, sticks, strict=True))}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write CSV or parquet, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)
    else:
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


def write_play(folder: Path, name: str, frames: int = 12, rate_hz: int = 20) -> None:
    """A video and its table by frame: Jump in every third, the left stick to the right."""
    rows = [pad_row(["Jump"] if t % 3 == 0 else [], (0.5, 0, 0, -t / frames), frame=t) for t in range(frames)]
    write_table(folder / f"{name}.csv", rows)
    write_video(folder / f"{name}.mp4", frames, rate_hz)
