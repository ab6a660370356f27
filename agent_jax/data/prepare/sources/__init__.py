"""Foreign data: one module a format, imported when it is asked for, so that each needs only its own libraries."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.source import Source

MODULES = {
    "rlds": "agent_jax.data.prepare.sources.rlds.rlds",
    "calvin": "agent_jax.data.prepare.sources.calvin.calvin",
    "lerobot": "agent_jax.data.prepare.sources.lerobot.lerobot",
    "robomimic": "agent_jax.data.prepare.sources.robomimic.robomimic",
    "vpt": "agent_jax.data.prepare.sources.video.vpt",
    "gamepad": "agent_jax.data.prepare.sources.video.gamepad",
    "video_text": "agent_jax.data.prepare.sources.video.video_text",
}

DESCRIPTIONS = {  # for `prepare --help`
    "rlds": "RLDS data sets of TFDS (Open X-Embodiment), as TFRecord or array_record",
    "calvin": "CALVIN's folders of npz files with language annotations",
    "lerobot": "LeRobot 2.0, 2.1 and 3.x, with videos or stored images",
    "robomimic": "HDF5 demonstrations of robomimic, MimicGen, RoboCasa and LIBERO",
    "vpt": "Minecraft of OpenAI's contractors: mp4 and jsonl",
    "gamepad": "games played with a gamepad: videos with tables of buttons and sticks",
    "video_text": "videos, DICOM cines and pictures with captions, questions or classes in a table",
}


def open_source(kind: str, path: Path, config: PrepareConfig) -> Source:
    """The data at `path`, read as format `kind`.

    Raises:
        ValueError: no such kind, or what the source says of its files or of the config.
        FileNotFoundError: there is nothing at `path`.
        ModuleNotFoundError: a library that this format needs is not installed.
    """
    if kind not in MODULES:
        near = difflib.get_close_matches(kind, MODULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(MODULES)}"
        raise ValueError(f"--source={kind}: no such kind of data; {hint}")
    if not path.exists():
        raise FileNotFoundError(f"--path={path}: not found; expected the folder or file of the {kind} data")
    return importlib.import_module(MODULES[kind]).open_source(path, config)
