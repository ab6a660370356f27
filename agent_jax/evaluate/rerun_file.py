"""Recordings for the Rerun viewer (`rerun FILE.rrd`): images, texts and numbers on the timeline `step`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from agent_jax.evaluate.outcomes import RolloutRecording
from agent_jax.json_files import check_json_path
from agent_jax.runtime.extras import install


def rerun_path(text: str) -> Path:
    """The path of --rerun, as an argparse type."""
    if Path(text).suffix != ".rrd":
        raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in .rrd")
    try:
        return check_json_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class RerunFile:
    """A recording on disk; a context manager, which completes the file."""

    def __init__(self, path: Path):
        """Begin the file.

        Raises:
            ModuleNotFoundError: rerun-sdk is not installed.
        """
        try:
            self._rerun: Any = importlib.import_module("rerun")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"--rerun={path} needs rerun-sdk, which is not installed: {install('rerun')}",
                                      name="rerun") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._rerun.RecordingStream("agent_jax")
        self._stream.save(path)

    def log(self, place: Sequence[str], step: int, values: Mapping[str, Any]) -> None:
        """Log values by name below a place: uint8 images (height, width, 3), texts, or numbers of any shape."""
        self._stream.set_time("step", sequence=step)
        for name, value in values.items():
            if isinstance(value, str):
                content = self._rerun.TextDocument(value)
            elif (array := np.asarray(value)).dtype == np.uint8 and array.ndim == 3:
                content = self._rerun.Image(array)
            else:
                content = self._rerun.Scalars(array.astype(np.float64).ravel())
            self._stream.log([*place, *name.split("/")], content)

    def log_rollout(self, recording: RolloutRecording) -> None:
        """Log an episode: image, instruction, action and its probability by step, and the outcome after the last."""
        place = (recording.task, recording.policy, f"seed {recording.seed}")
        for step, (frame, instruction) in enumerate(zip(recording.frames, recording.instructions, strict=True)):
            self.log(place, step, {"image": frame, "instruction": instruction})
        for step, action in enumerate(recording.actions):
            self.log(place, step, {"action": action})
        for step, probability in enumerate(recording.probabilities):
            self.log(place, step, {"probability": probability})
        self.log(place, len(recording.actions), {"outcome": "success" if recording.success else "failure"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.disconnect()
