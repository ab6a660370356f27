"""Turns recordings into the records of a shard: encodes images, checks values, cuts long episodes into segments.

    SourceEpisode, 11 steps, window 4:   [0 1 2 3 4 5 6 7] [8 9 10]    segments of at most `segment_bytes`, cut at
                                          start 0           start 8     multiples of the window

A recording is stored whole or not at all: if damaged ones are skipped, its encoded records are buffered until its last
step was read.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.actions.declarations import open_bounds
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.image_files import PILLOW_ERRORS, open_picture, orientation_of, read_header, unreadable
from agent_jax.data.images import encode_jpeg, encode_png, prepare_image
from agent_jax.data.pipeline.spec_check import clipped_beyond
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import declared_spec
from agent_jax.data.prepare.sources.source import Recording, Schema, Shapes, Source, SourceEpisode, SourceStep
from agent_jax.data.store.record_serializer import record_serializer
from agent_jax.data.store.writer import episode_features

_BUFFER_BYTES = 64_000_000  # of a recording in memory; the rest is buffered in a temporary file
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # a file that ends so is taken as whole without decoding it


@dataclasses.dataclass
class Counts:
    """Counts of stored and skipped data; adds up over recordings and shards."""

    recordings: int = 0
    episodes: int = 0
    records: int = 0
    steps: int = 0
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)  # where and why
    outside: dict[str, int] = dataclasses.field(default_factory=dict)  # values beyond the bounds, by place
    oddities: dict[str, int] = dataclasses.field(default_factory=dict)  # recordings by note (SourceEpisode.notes)

    def add(self, other: Counts) -> None:
        """Add the counts of another one."""
        self.recordings += other.recordings
        self.episodes += other.episodes
        self.records += other.records
        self.steps += other.steps
        self.skipped += other.skipped
        for own, others in ((self.outside, other.outside), (self.oddities, other.oddities)):
            for name, count in others.items():
                own[name] = own.get(name, 0) + count


def stored_features(schema: Schema, config: PrepareConfig) -> tfds.features.FeaturesDict:
    """The features of the records made from a source's steps."""
    return episode_features(_stored_sizes(schema, config), schema.actions, schema.observations, config.encoding,
                            answers=schema.answers, labels=schema.labels)


def spec_bounds(source: Source) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`clipped_beyond` of every key of the source's specs; infinite for open bounds."""
    bounds: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for kind, content in ((ActionSpec, source.action_spec), (StateSpec, source.state_spec)):
        spec = declared_spec(kind, content)
        if not spec:
            continue
        bounds |= clipped_beyond(spec)
        for part in open_bounds(content, f"config.{kind.kind}_spec"):
            for edge, value in zip(bounds[part.key], (-np.inf, np.inf), strict=True):
                edge[() if part.index is None else part.index] = value
    return bounds


class RecordMaker:
    """Turns the recordings of a source into serialized records."""

    def __init__(self, source: Source, config: PrepareConfig):
        self._source, self._config, self._schema = source, config, source.schema
        self._sizes = {name: shape[:2] for name, shape in _stored_sizes(source.schema, config).items()}
        self._serialize = record_serializer(stored_features(source.schema, config))
        self._bounds = spec_bounds(source)

    def records(self, recording: Recording, counts: Counts) -> Iterator[bytes]:
        """The records of a recording, in order; adds to `counts`.

        Raises:
            BadDataError: the recording cannot be read, or the source's episodes do not follow its schema.
        """
        names, oddities, steps, records = set(), set(), 0, 0
        for episode in self._source.read(recording):
            where = f"{recording.where}, episode {episode.name!r}"
            self._check_texts(episode, where)
            names.add(episode.name)
            oddities.update(episode.notes)
            for segment in self._segments(episode, where, counts):
                steps, records = steps + len(segment["steps"]), records + 1
                record = {"episode_id": episode.name, "recording_id": recording.name,
                          "instruction": episode.instruction, "answer": episode.answer, "label": episode.label,
                          **segment}
                try:
                    yield self._serialize(record)
                except ValueError as error:
                    raise BadDataError(f"{where}: {error}") from error
        if not records:
            raise BadDataError(f"{recording.where}: recording {recording.name!r} holds no episode, expected one")
        counts.add(Counts(1, len(names), records, steps, oddities=dict.fromkeys(sorted(oddities), 1)))

    def _check_texts(self, episode: SourceEpisode, where: str) -> None:
        if not episode.instruction.strip():
            raise BadDataError(f"{where}: the instruction is empty; give one for all by config.instruction_text, or "
                               "fix or remove this one")
        if self._schema.answers and not episode.answer.strip() and episode.label < 0:
            raise BadDataError(f"{where}: neither an answer nor a label, expected one of them")

    def _segments(self, episode: SourceEpisode, where: str, counts: Counts) -> Iterator[dict[str, Any]]:
        """The `start` and `steps` of each segment of an episode."""
        start, size, steps = episode.start, 0, []
        made = (self._step(step, t, f"{where}, step {t}", counts) for t, step in enumerate(episode.steps, start))
        while window := list(itertools.islice(made, self._config.window)):
            window_size = sum(step_size for _, step_size in window)
            if steps and size + window_size > self._config.segment_bytes:
                yield {"start": start, "steps": steps}
                start, size, steps = start + len(steps), 0, []
            steps, size = steps + [step for step, _ in window], size + window_size
        if not steps:
            raise BadDataError(f"{where}: no steps, expected at least one")
        steps[-1] |= {"is_last": episode.ends, "is_terminal": episode.ends and episode.terminal}
        yield {"start": start, "steps": steps}

    def _step(self, step: SourceStep, t: int, where: str, counts: Counts) -> tuple[dict[str, Any], int]:
        """The step in the form of the schema, and its approximate size in bytes."""
        images = {}
        for name, size in self._sizes.items():
            if name not in step.images:
                raise BadDataError(f"{where}: no image of camera {name!r}; found {sorted(step.images) or 'none'}")
            images[name] = self._image(step.images[name], size, f"{where}, camera {name!r}")
        actions = self._numbers(step.actions, self._schema.actions, where, counts)
        observations = self._numbers(step.observations, self._schema.observations, where, counts)
        numbers = sum(value.nbytes for value in (*actions.values(), *observations.values()))
        made = {"observation": {**images, **observations}, **actions, "action_weight": float(step.action_weight),
                "reward": float(step.reward), "is_first": t == 0, "is_last": False, "is_terminal": False}
        return made, sum(map(len, images.values())) + numbers + 16

    def _numbers(self, values: Mapping[str, Any], shapes: Shapes, where: str, counts: Counts) -> dict[str, np.ndarray]:
        found = {}
        for key, (shape, dtype) in shapes.items():
            if key not in values:
                raise BadDataError(f"{where}: no {key!r}; found {sorted(values) or 'none'}")
            array = np.asarray(values[key])
            if array.shape != tuple(shape):
                raise BadDataError(f"{where}: {key!r} has shape {array.shape}, expected {tuple(shape)}")
            if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
                raise BadDataError(f"{where}: {key!r} is {array.tolist()}, expected finite numbers")
            if key in self._bounds:
                low, high = self._bounds[key]
                # Bounds are rounded to float32 too.
                slack = 1e-6 * (high - low)
                for place in np.argwhere(np.atleast_1d((array < low - slack) | (array > high + slack))):
                    name = f"{key}[{place[0]}]" if array.ndim else key
                    counts.outside[name] = counts.outside.get(name, 0) + 1
            found[key] = array.astype(dtype)
        return found

    def _image(self, image: bytes | np.ndarray, size: tuple[int, int], where: str) -> bytes:
        """The encoded image in the stored size; unchanged if it already has that form."""
        try:
            if isinstance(image, bytes) and _is_stored_form(image, size):
                return image
            pixels = prepare_image(image, self._config.image_size)  # 0: unchanged
        except ValueError as error:
            raise BadDataError(f"{where}: {error}") from error
        if pixels.shape[:2] != size:
            height, width = pixels.shape[:2]
            rotated = isinstance(image, bytes) and read_header(image).orientation != 1
            upright = " upright (its EXIF orientation rotates it)" if rotated else ""
            raise BadDataError(f"{where}: the image is {height} x {width} pixels{upright}, but {size[0]} x {size[1]} "
                               "in the rest of the data; set config.image_size to resize all to one size")
        return encode_png(pixels) if self._config.encoding == "png" else encode_jpeg(pixels)


def buffered(records: Iterator[bytes], directory: Path) -> Iterator[bytes]:
    """The same records, all read before the first is yielded; large buffers go to a file in `directory`."""
    with tempfile.SpooledTemporaryFile(max_size=_BUFFER_BYTES, dir=str(directory)) as buffer:
        lengths = []
        for record in records:
            buffer.write(record)
            lengths.append(len(record))
        buffer.seek(0)
        for length in lengths:
            yield buffer.read(length)


def _stored_sizes(schema: Schema, config: PrepareConfig) -> dict[str, tuple[int, int, int]]:
    square = (config.image_size, config.image_size)
    chosen = {name: square if config.image_size else size for name, size in schema.cameras.items()}
    return {name: (height, width, 3) for name, (height, width) in chosen.items()}


def _is_stored_form(image: bytes, size: tuple[int, int]) -> bool:
    """Whether the bytes are a whole, upright RGB JPEG or PNG of that size."""
    with open_picture(image) as picture:
        if picture.format not in _ENDS or picture.mode != "RGB" or picture.size != (size[1], size[0]):
            return False
        if orientation_of(image, picture) != 1:
            return False
        if not image.endswith(_ENDS[picture.format]):
            try:
                picture.load()  # raises if it is cut off; some writers append bytes to a whole file
            except PILLOW_ERRORS as error:
                raise unreadable(image, error) from error
        return True
