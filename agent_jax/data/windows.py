"""Windows: which steps of which records make up a sample, and reading one.

    record of 6 steps, window 4, stride 4:   [0 1 2 3] [4 5]        -> BabyAI: 2 steps, the room is another sample's
                                             [0 1 2 3] [4 5 5' 5']  -> Language-Table: the last frame twice more,
                                                                       each with the TERMINAL action

A step's action counts as its `steps/action_weight` says, or else fully, the last step's too: Language-Table's last step
holds a real action, the one that was rewarded, although RLDS leaves a last step's action without meaning. A writer
whose last step is only an observation gives it weight 0.

The index holds lengths and instructions only: it is made once a data set by reading all records, kept in the user's
cache, and never decodes an image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from agent_jax.data.domains import Domain
from agent_jax.data.layout import Step, Window
from agent_jax.data.store import STEPS, Split, Store
from agent_jax.data.transforms import prepare_image

_INDEX_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """What planning needs to know of a split's records, N of them, without reading them again."""

    length_N: np.ndarray  # int32: steps of a record
    ends_N: np.ndarray  # bool: whether the record's last step is the last of its episode
    text_of_step: np.ndarray  # int32: number in `texts` of each step's instruction; records one after the other
    texts: tuple[str, ...]  # distinct instructions


def split_index(store: Store, split: str, instruction: str) -> SplitIndex:
    """The index of a split, from the cache if its files have neither changed nor moved.

    Args:
        store: the data set.
        split: its split.
        instruction: path of the instruction's field.
    """
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in store.files(split)]
    key = hashlib.sha256(json.dumps([_INDEX_FORMAT, files, split, instruction]).encode()).hexdigest()[:32]
    cached = _cache_directory() / f"index-{key}.npz"
    if cached.is_file():
        try:
            with cached.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                texts = tuple(json.loads(saved["texts"].tobytes().decode()))
                return SplitIndex(saved["length_N"], saved["ends_N"], saved["text_of_step"], texts)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            logging.getLogger(__name__).warning("%s: unreadable index (%s); it is made anew", cached, error)
    index = _scan(store.split(split), instruction)
    _save(cached, index)
    return index


class Windows:
    """The samples of one domain and split: a table for the plan, and `read` to get one. Cheap to send to a process."""

    def __init__(self, domain: Domain, store: Store, split: str):
        """Of a domain, its data set and a split.

        Raises:
            ValueError: for an unknown split or an instruction longer than the domain's `max_text`.
        """
        index = split_index(store, split, domain.instruction)
        self.domain, self.split_name = domain, split
        self._split: Split = store.split(split)
        domain.text_ids(max(index.texts, key=len))  # the first to be refused names the room that all need
        self._texts = [domain.text_ids(text) for text in index.texts]
        count_N = -(-index.length_N // domain.stride)  # starts of a record
        first_N = np.cumsum(count_N) - count_N
        self.record = np.repeat(np.arange(len(count_N), dtype=np.int32), count_N)
        self.start = ((np.arange(count_N.sum()) - np.repeat(first_N, count_N)) * domain.stride).astype(np.int32)
        left = index.length_N[self.record] - self.start
        # Missing steps are laid out only where a TERMINAL action can stand for them, at an episode's very end.
        self.padded = index.ends_N[self.record] & (left < domain.window) & domain.has_terminal
        self.steps = np.minimum(left, domain.window)
        offset_N = np.cumsum(index.length_N) - index.length_N
        self.text = index.text_of_step[offset_N[self.record] + self.start]
        self._action_paths = {key: store.step_field(key).path for key in domain.spec.spec.fields}
        states = domain.state.spec.fields if domain.state else ()
        self._state_paths = {key: store.step_field(key).path for key in states}
        self._has_weight = f"{STEPS}/action_weight" in store.fields
        self._id_path = next((path for path in ("episode_id", "recording_id") if path in store.fields), None)
        self._has_start = "start" in store.fields

    def __len__(self) -> int:
        return len(self.record)

    def needs(self, visual_tokens: int) -> np.ndarray:
        """int64 (windows, 3): images, slots and targets each takes of a row; actions count at their longest."""
        domain = self.domain
        text = np.asarray([len(ids) for ids in self._texts])[self.text]
        frames = np.where(self.padded, domain.window, self.steps).astype(np.int64)
        visual = frames * visual_tokens - (frames - 1 if domain.video else 0)
        return np.stack([frames, text + visual + frames * (domain.state_length + domain.action_length),
                         text - 1 + frames * domain.action_length], axis=1)

    def read(self, number: int, turn: int) -> Window:
        """The sample, decoded. `turn` is how often it was seen before: it changes the masks."""
        domain, start, count = self.domain, int(self.start[number]), int(self.steps[number])
        record = int(self.record[number])
        episode = self._split[record]
        encoded = episode.values(domain.image, start, start + count)
        images = [prepare_image(image, domain.image_size) for image in encoded]
        actions = {key: episode.values(path, start, start + count) for key, path in self._action_paths.items()}
        states = {key: episode.values(path, start, start + count) for key, path in self._state_paths.items()}
        weights = episode.values(f"{STEPS}/action_weight", start, start + count) if self._has_weight else np.ones(count)
        none = np.zeros(0, np.int32)
        steps = [
            Step(frames=(images[t],),
                 state_ids=domain.state.encode({key: states[key][t] for key in states}) if domain.state else none,
                 action_ids=domain.spec.encode({key: actions[key][t] for key in actions}),
                 action_weight=float(weights[t]))
            for t in range(count)
        ]
        if self.padded[number]:
            terminal = domain.spec.terminal_ids()
            repeated = dataclasses.replace(steps[-1], action_ids=terminal, frame_weight=0.0, action_weight=1.0)
            steps += [repeated] * (domain.window - count)
        name = bytes(episode.value(self._id_path)) if self._id_path else f"{self.split_name}/{record}".encode()
        first = start + (int(episode.value("start")) if self._has_start else 0)
        seed = window_seed(domain.name, name, first, turn)
        return Window(domain.index, self._texts[self.text[number]], tuple(steps), seed, video=domain.video,
                      first_position=domain.first_position)


def window_seed(domain: str, recording: bytes, start: int, turn: int) -> int:
    """uint32 that depends on what the sample is and how often it was seen, not on which host or batch it is read in."""
    parts = [domain.encode(), recording, str(start).encode(), str(turn).encode()]
    return int.from_bytes(hashlib.blake2b(b"\0".join(parts), digest_size=4).digest(), "little")


def _scan(split: Split, instruction: str) -> SplitIndex:
    """Read every record once."""
    is_last = f"{STEPS}/is_last"
    numbers: dict[str, int] = {}
    lengths, ends, texts = [], [], []
    for record in range(len(split)):
        episode = split[record]
        if not episode.steps:
            raise ValueError(f"{episode.where}: the record has no steps; expected at least one")
        lengths.append(episode.steps)
        # Without the field, every record is taken for a whole episode.
        last = episode.values(is_last, episode.steps - 1, episode.steps) if is_last in split.fields else [True]
        ends.append(bool(last[0]))
        texts += [numbers.setdefault(text, len(numbers)) for text in episode.texts(instruction)]
    arrays = np.asarray(lengths, np.int32), np.asarray(ends, bool), np.asarray(texts, np.int32)
    return SplitIndex(*arrays, tuple(numbers))


def _cache_directory() -> Path:
    """AGENT_JAX_CACHE, or agent_jax in the user's cache directory. Data directories may be read-only or shared."""
    own = os.environ.get("AGENT_JAX_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent_jax"


def _save(path: Path, index: SplitIndex) -> None:
    """Write the index under its name in one rename; without a writable cache it is made anew the next time."""
    texts = np.frombuffer(json.dumps(index.texts).encode(), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(file, length_N=index.length_N, ends_N=index.ends_N, text_of_step=index.text_of_step, texts=texts)
        os.replace(file.name, path)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: cannot keep the index of the data set (%s); set AGENT_JAX_CACHE to a "
                                            "writable directory", path, error)
