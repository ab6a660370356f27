"""Writes pairs in the format of VPT's recorder, with the keys and values of its published jsonl files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videos import write_video


def tick(number: int, *, keys: Sequence[str] = (), buttons: Sequence[int] = (), new: Sequence[int] = (),
         dx: float = 0.0, dy: float = 0.0, hotbar: int = 0, gui: bool = False,
         at: tuple[float, float] = (640.0, 360.0)) -> dict[str, Any]:
    return {
        "mouse": {"x": at[0], "y": at[1], "dx": dx, "dy": dy, "scaledX": at[0] - 640, "scaledY": at[1] - 360,
                  "dwheel": 0.0, "buttons": list(buttons), "newButtons": list(new)},
        "keyboard": {"keys": [f"key.keyboard.{key}" for key in keys], "newKeys": [], "chars": ""},
        "isGuiOpen": gui, "isGuiInventory": gui, "hotbar": hotbar, "yaw": -22.6, "pitch": 8.3, "xpos": 451.5,
        "ypos": 71.0, "zpos": 197.5, "tick": number, "milli": 1638217060000 + 50 * number,
        "inventory": [{"type": "oak_log", "quantity": 3}], "serverTick": 3000 + number, "serverTickDurationMs": 24.2,
        "stats": {"minecraft.custom:minecraft.jump": 1},
    }


def write_pair(folder: Path, name: str, ticks: Sequence[Mapping[str, Any]], frames: int | None = None,
               rate_hz: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ticks))
    return write_video(folder / f"{name}.mp4", len(ticks) if frames is None else frames, rate_hz,
                       options={"movflags": "faststart"})
