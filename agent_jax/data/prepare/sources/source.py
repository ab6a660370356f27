"""The interface of a source of foreign data: it lists recordings and reads each as episodes of steps.

    files --recordings()--> Recording ... --read()--> SourceEpisode ... --prepare--> shards of the canonical store

A source lists its recordings in a fixed order, reads one at a time, and raises `BadDataError` with file and line for
data it cannot read. Shards, random splits, segments and skipped recordings are handled by `prepare.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from agent_jax.data.bad_data import BadDataError

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # shape and dtype by key, as ActionSpec.fields gives them

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def first_readable(items: Iterable[_Item], read: Callable[[_Item], _Result], nothing: str) -> _Result:
    """The result of `read` for the first item that can be read.

    Raises:
        BadDataError: no item can be read (the error of the first), or there are no items (with the message `nothing`).
    """
    first_error: BadDataError | None = None
    for item in items:
        try:
            return read(item)
        except BadDataError as error:
            first_error = first_error or error
    raise first_error or BadDataError(nothing)


@dataclasses.dataclass(frozen=True)
class Schema:
    """The fields of every step and record of a source."""

    cameras: Mapping[str, tuple[int, int]]  # height and width of the images of steps/observation/NAME, by NAME
    actions: Shapes  # fields of steps/
    observations: Shapes = dataclasses.field(default_factory=dict)  # fields of steps/observation/ except the images
    answers: bool = False  # records hold an `answer`: a caption, or the answer to the instruction
    labels: bool = False  # records hold a class `label`
    defaults: tuple[str, ...] = ()  # ("action_spec",) if the source derived the spec from the data's statistics
    notes: tuple[str, ...] = ()  # decisions of the source that the config left open, as sentences


@dataclasses.dataclass(frozen=True)
class Recording:
    """A unit that is read at once and never divided among splits. Cheap to make and to send to a process."""

    name: str  # unique within the source; becomes recording_id
    where: str  # file or folder, or a place in one, for messages
    split: str = ""  # declared by the data; "": drawn by config.validation
    size: int = 0  # approximate bytes of its files, by which shards are cut; 0: the size of the file `where`
    detail: Any = None  # what `read` needs to find it: plain values only


@dataclasses.dataclass(frozen=True)
class SourceStep:
    """One time step."""

    images: Mapping[str, bytes | np.ndarray]  # encoded JPEG or PNG, or uint8 (height, width, 3), by camera
    actions: Mapping[str, Any]  # in the units of the ActionSpec
    observations: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    action_weight: float = 1.0  # 0: excluded from the loss
    reward: float = 0.0


@dataclasses.dataclass(frozen=True)
class SourceEpisode:
    """An episode, or a stretch of one if the source leaves steps out."""

    name: str  # unique within the source; becomes episode_id; the same for all stretches of an episode
    instruction: str
    steps: Iterator[SourceStep] | Sequence[SourceStep]  # read once, in order: a long video is never held whole
    start: int = 0  # the episode's step at which this stretch begins
    ends: bool = True  # whether its last step is the last of the episode
    terminal: bool = False  # whether the episode terminated, as opposed to truncated by a time limit
    answer: str = ""
    label: int = -1
    notes: tuple[str, ...] = ()  # how irregular data were handled; worded alike for all such episodes


class Source(Protocol):
    """An opened foreign data set; its class takes (path, config)."""

    schema: Schema
    action_spec: Mapping[str, Any]  # ActionSpec.to_dict(): the config's, else the format's own
    state_spec: Mapping[str, Any]  # StateSpec.to_dict(); {} without a state
    rate_hz: float  # steps per second; 0: unknown

    def recordings(self) -> list[Recording]:
        """All recordings, in an order that depends on the data alone. Decodes no video and no image."""
        ...

    def files(self, recording: Recording) -> Iterable[Path]:
        """Every file that reading the recording depends on, shared tables and metadata included; some may be missing.

        A shard is written again if one of them has changed.
        """
        ...

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """The episodes of one recording.

        Raises:
            BadDataError: names the file and the line or frame that is wrong.
        """
        ...
