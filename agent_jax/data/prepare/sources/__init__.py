"""Readers of foreign data sets: one module per format, imported on demand so that each needs only its own libraries."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.source import Source

CLASSES = {  # module below this package, and its class
    "rlds": "rlds.rlds:RldsSource",
    "calvin": "calvin.calvin:CalvinSource",
    "lerobot": "lerobot.lerobot:LeRobotSource",
    "robomimic": "robomimic.robomimic:RobomimicSource",
    "vpt": "video.vpt:VptSource",
    "gamepad": "video.gamepad:GamepadSource",
    "bleeding_edge": "video.bleeding_edge:BleedingEdgeSource",
    "video_text": "video.video_text:VideoTextSource",
}

DESCRIPTIONS = {  # for `prepare --help`
    "rlds": "RLDS data sets of TFDS (Open X-Embodiment), as TFRecord or array_record",
    "calvin": "CALVIN's folders of npz files with language annotations",
    "lerobot": "LeRobot 2.0, 2.1 and 3.x, with videos or stored images",
    "robomimic": "HDF5 demonstrations of robomimic, MimicGen, RoboCasa and LIBERO",
    "vpt": "Minecraft of OpenAI's contractors: mp4 and jsonl",
    "gamepad": "games played with a gamepad: videos with tables of buttons and sticks",
    "bleeding_edge": "Microsoft's public sample of the game Bleeding Edge: mp4 and npz",
    "video_text": "videos, DICOM cines and pictures with captions, questions or classes in a table",
}


def open_source(kind: str, path: Path, config: PrepareConfig) -> Source:
    """Open the data at `path` as format `kind`.

    Raises:
        ValueError: the kind is unknown, or the source cannot use its files (also as BadDataError) or the config.
        FileNotFoundError: `path` does not exist, or a required file in it.
        ModuleNotFoundError: a library for this format is not installed.
    """
    if kind not in CLASSES:
        near = difflib.get_close_matches(kind, CLASSES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(CLASSES)}"
        raise ValueError(f"--source={kind}: no such kind of data; {hint}")
    if not path.exists():
        raise FileNotFoundError(f"--path={path}: not found; expected the folder or file of the {kind} data")
    module, name = CLASSES[kind].split(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)(path, config)
