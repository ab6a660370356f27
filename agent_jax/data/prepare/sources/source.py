"""What every source of foreign data gives: recordings, each read as episodes of steps; `prepare.py` does the rest.

    files --recordings()--> Recording ... --read()--> SourceEpisode ... --prepare--> shards of the canonical store

A source decides nothing about shards, splits by share, segments or errors: it lists recordings in an order that never
changes, reads one of them at a time, and raises `BadDataError` with file and line for what it cannot read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # shape and dtype by key, as ActionSpec.fields gives them


class BadDataError(ValueError):
    """What a recording holds cannot be read; names the file, the place in it, what was found and what was expected."""


@dataclasses.dataclass(frozen=True)
class Schema:
    """The fields of every step and record that a source yields."""

    cameras: Mapping[str, tuple[int, int]]  # height and width of the images, by the name of steps/observation/NAME
    actions: Shapes  # fields of steps/
    observations: Shapes = dataclasses.field(default_factory=dict)  # fields of steps/observation/ beside the images
    answers: bool = False  # whether records hold an `answer`: a caption, or the answer to the instruction
    labels: bool = False  # whether records hold a class `label`
    defaults: tuple[str, ...] = ()  # "action_spec": nobody declared it, the source made it of the data's statistics
    notes: tuple[str, ...] = ()  # what the source decided where the config left it open, in words


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is read in one go, and never divided among splits. Cheap to make and to send to a process."""

    name: str  # unique within the source; becomes recording_id
    where: str  # file or folder, or a place in one, for messages
    split: str = ""  # as the data says; "": by the share of config.validation
    size: int = 0  # bytes of its files, about: shards are cut by it; 0: the size of `where`, if that is a file
    detail: Any = None  # whatever `read` needs to find it: plain values only


@dataclasses.dataclass(frozen=True)
class SourceStep:
    """One time step."""

    images: Mapping[str, bytes | np.ndarray]  # encoded JPEG or PNG, or uint8 (height, width, 3), by camera
    actions: Mapping[str, Any]  # in the units of the ActionSpec
    observations: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    action_weight: float = 1.0  # 0: not to be imitated
    reward: float = 0.0


@dataclasses.dataclass(frozen=True)
class SourceEpisode:
    """An episode, or a stretch of one where the source leaves something out."""

    name: str  # unique within the source; becomes episode_id; the same for all stretches of an episode
    instruction: str
    steps: Iterator[SourceStep] | Sequence[SourceStep]  # drawn once, in order: a long video is never held whole
    start: int = 0  # step of the episode at which this stretch begins
    ends: bool = True  # whether its last step is the last of the episode
    terminal: bool = False  # whether the episode ended by itself, rather than by a limit of time
    answer: str = ""
    label: int = -1
    notes: tuple[str, ...] = ()  # what was done about an oddity of it, in words that are the same for all such episodes


class Source(Protocol):
    """An opened data set in somebody's format. A module of this package makes one by `open_source(path, config)`."""

    @property
    def schema(self) -> Schema:
        """Fields of all steps."""
        ...

    @property
    def action_spec(self) -> Mapping[str, Any]:
        """`ActionSpec.to_dict()` of the actions, from the config or, if it names none, the format's own."""
        ...

    @property
    def state_spec(self) -> Mapping[str, Any]:
        """`StateSpec.to_dict()`; {} without one."""
        ...

    @property
    def rate_hz(self) -> float:
        """Steps a second; 0: not known."""
        ...

    def recordings(self) -> list[Recording]:
        """All of them, in an order that depends on the data alone. Opens no video and decodes no image."""
        ...

    def files(self, recording: Recording) -> Iterable[Path]:
        """Every file that `read` of it depends on, tables and meta data of all recordings included; one may be missing.

        A shard is made anew where one of them has changed.
        """
        ...

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """The episodes of one recording.

        Raises:
            BadDataError: names the file and the line or frame that is wrong.
        """
        ...
