"""The record of an episode that the detectors of `doctor data` read, and the data of a whole set.

    steps of a reader --summarised--> EpisodeRecord: thumbnails, changes, actions, states, times   (1 KB a step)

A record holds no full image, so a few hundred episodes fit in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from agent_jax.actions import ActionSpec, Buttons, Choice, StateSpec
from agent_jax.data.images import prepare_image, resize

THUMBNAIL = 16  # pixels: a hand or a block of a scene still covers one or more of them
MOST_STEPS = 500  # of a record: 16 s at 30 Hz; the rest of a longer one is not read


@dataclasses.dataclass(frozen=True)
class Column:
    """One number of an action or state."""

    name: str
    kind: Literal["number", "choice", "button"] = "number"

    @property
    def is_gripper(self) -> bool:
        """Whether the name is that of a gripper."""
        return bool(re.search(r"grip|finger|claw|jaw", self.name, re.IGNORECASE))


@dataclasses.dataclass(frozen=True)
class Step:
    """One time step as a reader yields it."""

    images: Mapping[str, bytes | np.ndarray]  # encoded or uint8 (height, width, 3), by camera
    action: np.ndarray  # float (A,)
    state: np.ndarray  # float (S,)


@dataclasses.dataclass(frozen=True)
class RawEpisode:
    """An episode as a reader yields it; its steps can be read once."""

    split: str
    number: int  # of the record in its split
    instruction: str
    steps: Iterator[Step]
    times_s: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))  # float64 (T,); empty: unknown


@dataclasses.dataclass(frozen=True)
class EpisodeRecord:
    """An episode as detectors read it. T steps, at most MOST_STEPS."""

    split: str
    number: int
    instruction: str
    thumbnails: Mapping[str, np.ndarray]  # uint8 (T, 16, 16, 3), by camera
    changes: Mapping[str, np.ndarray]  # uint8 (T,): greatest difference of any pixel from the frame before; first 255
    actions: np.ndarray  # float64 (T, A)
    states: np.ndarray  # float64 (T, S)
    times_s: np.ndarray  # float64 (T,); empty: unknown

    @property
    def name(self) -> str:
        """For messages: "train/17"."""
        return f"{self.split}/{self.number}"

    def __len__(self) -> int:
        return len(self.actions)


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The content of a record, to compare it with others."""

    split: str
    number: int
    actions: bytes  # digest
    pixels: np.ndarray  # uint8 (pixels,): thumbnails of a few frames (`compared_steps`) of every camera

    @property
    def name(self) -> str:
        """For messages: "train/17"."""
        return f"{self.split}/{self.number}"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What the detectors receive."""

    episodes: Sequence[EpisodeRecord]
    actions: Sequence[Column] = ()
    states: Sequence[Column] = ()
    rate_hz: float = 0.0  # declared; 0: unknown
    absolute: bool | None = None  # actions are targets; None: not declared
    fingerprints: Sequence[Fingerprint] = ()

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras."""
        return list(self.episodes[0].thumbnails) if self.episodes else []

    def numbers(self) -> list[int]:
        """Indices of the actions that are numbers, not choices or buttons."""
        return [d for d, column in enumerate(self.actions) if column.kind == "number"]

    def stacked(self, what: Literal["actions", "states"]) -> np.ndarray:
        """All actions or states, float64 (steps, columns)."""
        return np.concatenate([getattr(episode, what) for episode in self.episodes])


def summarise(raw: RawEpisode) -> EpisodeRecord:
    """Read the steps of an episode and keep what detectors need."""
    thumbnails: dict[str, list[np.ndarray]] = {}
    changes: dict[str, list[int]] = {}
    previous: dict[str, np.ndarray] = {}
    actions, states = [], []
    for number, step in enumerate(raw.steps):
        if number == MOST_STEPS:
            break
        for camera, image in step.images.items():
            pixels = prepare_image(image, 0)
            thumbnails.setdefault(camera, []).append(resize(pixels, (THUMBNAIL, THUMBNAIL)))
            changes.setdefault(camera, []).append(_change(previous.get(camera), pixels))
            previous[camera] = pixels
        actions.append(step.action)
        states.append(step.state)
    return EpisodeRecord(raw.split, raw.number, raw.instruction,
                         {camera: np.stack(images) for camera, images in thumbnails.items()},
                         {camera: np.asarray(numbers, np.uint8) for camera, numbers in changes.items()},
                         np.asarray(actions, np.float64).reshape(len(actions), -1),
                         np.asarray(states, np.float64).reshape(len(states), -1), raw.times_s[: len(actions)])


def compared_steps(steps: int) -> list[int]:
    """The steps whose images a fingerprint holds: four, evenly spaced from the first to the last."""
    return np.linspace(0, steps - 1, 4).round().astype(int).tolist()


def fingerprint(split: str, number: int, actions: np.ndarray, thumbnails: Sequence[np.ndarray]) -> Fingerprint:
    """The fingerprint of actions (T, A) and of thumbnails, which stand in for actions that are not there."""
    pixels = np.concatenate([np.zeros(0, np.uint8), *map(np.ravel, thumbnails)])
    content = np.round(actions, 4).astype(np.float32) if actions.size else pixels
    return Fingerprint(split, number, hashlib.sha256(content.tobytes()).digest(), pixels)


def fingerprint_of(episode: EpisodeRecord) -> Fingerprint:
    """The fingerprint of a record that was summarised."""
    return fingerprint(episode.split, episode.number, episode.actions,
                       [images[t] for images in episode.thumbnails.values() for t in compared_steps(len(images))])


def spec_columns(spec: ActionSpec | StateSpec) -> list[Column]:
    """The columns of a spec, in the order of its keys."""
    columns = []
    for key in spec.fields:
        parts = sorted((part for part in spec.parts if part.key == key), key=lambda part: part.index or 0)
        names = [name for part in parts for name in _part_names(part)]
        kinds: list[Any] = ["button" if isinstance(part, Buttons) else "choice" if isinstance(part, Choice) else
                            "number" for part in parts for _ in part.limits]
        columns += [Column(*of_column) for of_column in zip(names, kinds, strict=True)]
    return columns


def array_columns(name: str, size: int) -> list[Column]:
    """The columns of a field without a spec."""
    return [Column(f"{name}[{d}]" if size > 1 else name) for d in range(size)]


def _part_names(part: Any) -> list[str]:
    if isinstance(part, Buttons):
        return list(part.names)
    count = len(part.limits)
    names = [name.strip() for name in part.name.split(",")] if part.name else []
    return names if len(names) == count else [f"{part.place}{f'[{d}]' if count > 1 else ''}" for d in range(count)]


def _change(before: np.ndarray | None, pixels: np.ndarray) -> int:
    """Greatest difference of a pixel; 255 for the first frame, or one of another size."""
    if before is None or before.shape != pixels.shape:
        return 255
    return int(np.max(np.maximum(before, pixels) - np.minimum(before, pixels), initial=0))
