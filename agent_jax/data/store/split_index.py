"""The index of a split: lengths and texts of its records, cached (cache.py), so that packing need not read them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from agent_jax.actions import BoundSpec
from agent_jax.data.store.cache import cached_file, read_cached, write_cached
from agent_jax.data.store.episode import Episode, RecordError
from agent_jax.data.store.schema import STEPS
from agent_jax.data.store.split import Split
from agent_jax.data.store.store import Store

_INDEX_FORMAT = 4  # part of the cache key
_TEXT_FIELDS = ("texts", "answers")


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """Lengths and texts of N records; arrays `*_of_step` concatenate the steps of all records."""

    length_N: np.ndarray  # int32: steps of a record
    ends_N: np.ndarray  # bool: whether the record's last step is the last of its episode
    episode_N: np.ndarray  # int32: number of the episode that the record is part of
    recording_N: np.ndarray  # uint64: hash of `recording_id`, or without that field of the episode's first record
    text_of_step: np.ndarray  # int32: index in `texts` of each step's instruction
    texts: tuple[str, ...]  # distinct instructions
    answer_of_step: np.ndarray  # int32: index in `answers`; empty unless requested, as are the following fields
    answers: tuple[str, ...]  # distinct answers
    label_of_step: np.ndarray  # int32: class
    ids_of_step: np.ndarray  # int32: number of ids of each step's action


def split_index(store: Store, split: str, instruction: str, *, answer: str = "", label: str = "",
                varying: BoundSpec | None = None) -> SplitIndex:
    """The index of a split, from the cache if its files have not changed.

    Args:
        store: the data set.
        split: its split.
        instruction: path of the instruction's field.
        answer: path of the answer's field; "": no answers.
        label: path of the label's field; "": no labels.
        varying: the spec of the actions, if their number of ids varies from step to step.

    Raises:
        ValueError: a record has no steps, or an action cannot be encoded; names the record.
    """
    requested = [instruction, answer, label, varying.spec.fingerprint() if varying else ""]
    file = cached_file("index", store, split, _INDEX_FORMAT, *requested)
    if (cached := read_cached(file)) is not None:
        fields: dict[str, Any] = {name: tuple(json.loads(array.tobytes())) if name in _TEXT_FIELDS else array
                                  for name, array in cached.items()}
        return SplitIndex(**fields)
    paths = {key: store.step_field(key).path for key in varying.spec.fields} if varying else {}
    index = _scan(store.split(split), instruction, answer, label, varying, paths)
    write_cached(file, {name: np.frombuffer(json.dumps(value).encode(), np.uint8) if name in _TEXT_FIELDS else value
                        for name, value in vars(index).items()})
    return index


def _scan(split: Split, instruction: str, answer: str, label: str, varying: BoundSpec | None,
          paths: dict[str, str]) -> SplitIndex:
    """Read every record once."""
    is_last = f"{STEPS}/is_last"
    texts: dict[str, int] = {}
    answers: dict[str, int] = {}
    episodes: dict[bytes, int] = {}
    finished = 0
    first_records: dict[bytes, bytes] = {}  # digests by episode
    recording_of: list[int] = []
    lengths, ends, episode_of, text_of, answer_of, label_of, ids_of = [], [], [], [], [], [], []
    for record in range(len(split)):
        serialized = split.serialized(record)
        episode = split.parse(serialized, record)
        if not episode.steps:
            raise ValueError(f"{episode.where}: the record has no steps; expected at least one")
        lengths.append(episode.steps)
        # Without the field, every record counts as a whole episode.
        last = episode.values(is_last, episode.steps - 1, episode.steps) if is_last in split.fields else [True]
        # Without ids, the records up to and including the next end are one episode.
        name = bytes(episode.value("episode_id")) if "episode_id" in split.fields else b"after %d" % finished
        if name not in first_records:
            first_records[name] = _digest(serialized)
        has_recording = "recording_id" in split.fields
        recording = bytes(episode.value("recording_id")) if has_recording else first_records[name]
        recording_of.append(int.from_bytes(_digest(recording), "little"))
        episode_of.append(episodes.setdefault(name, len(episodes)))
        ends.append(bool(last[0]))
        finished += ends[-1]
        text_of += [texts.setdefault(text, len(texts)) for text in episode.texts(instruction)]
        if answer:
            answer_of += [answers.setdefault(text, len(answers)) for text in episode.texts(answer)]
        if label:
            label_of += _labels(episode, label, per_step=split.fields[label].per_step)
        if varying:
            ids_of += _ids(episode, varying, paths)
    length_N, episode_N, text_of_step, answer_of_step, label_of_step, ids_of_step = (
        np.asarray(numbers, np.int32) for numbers in (lengths, episode_of, text_of, answer_of, label_of, ids_of))
    return SplitIndex(length_N, np.asarray(ends, bool), episode_N, np.asarray(recording_of, np.uint64), text_of_step,
                      tuple(texts), answer_of_step, tuple(answers), label_of_step, ids_of_step)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def _labels(episode: Episode, path: str, *, per_step: bool) -> list[int]:
    if per_step:
        labels = np.ravel(episode.values(path, 0, episode.steps)).tolist()
        if len(labels) != episode.steps:
            raise ValueError(f"{episode.where}: {path!r} holds {len(labels)} labels, expected {episode.steps}, one for "
                             "each step")
    else:
        labels = np.ravel(episode.value(path)).tolist() * episode.steps
    for label in set(labels):
        if not -(2**31) <= label < 2**31:  # true for NaN as well
            raise RecordError(f"{episode.where}: {path!r} is {label}, expected the number of a class")
    return labels


def _ids(episode: Episode, spec: BoundSpec, paths: dict[str, str]) -> list[int]:
    """How many ids the action of each step has."""
    values = {key: episode.values(path, 0, episode.steps) for key, path in paths.items()}
    lengths = []
    for step in range(episode.steps):
        try:
            lengths.append(len(spec.encode({key: values[key][step] for key in values})))
        except ValueError as error:
            raise ValueError(f"{episode.where}, step {step}: {error}") from error
    return lengths
