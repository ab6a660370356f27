"""Windows: which steps of which records make up a sample, and how one is read.

    record of 6 steps, window 4, stride 4:   [0 1 2 3] [4 5]        -> BabyAI: 2 steps, the rest of the row stays free
                                             [0 1 2 3] [4 5 5' 5']  -> Language-Table: the last frame is repeated twice,
                                                                       each time with the TERMINAL action

With k actions per image, steps 0, k, 2k, ... of a window have images and state; the others have only their action.

`steps/action_weight` is the weight of a step's action, 1 where the field is missing. That includes the last step,
although RLDS leaves its action undefined: in Language-Table it holds the rewarded action. A data set whose last step is
only an observation gives it weight 0.

With random sampling a record has as many windows, but their starts are drawn again in each epoch of the domain.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import zlib

import numpy as np

from agent_jax.data.images import prepare_image
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Step, Window
from agent_jax.data.pipeline.row_usage import RowUsage
from agent_jax.data.store.episode import REPAIR, Episode, RecordError
from agent_jax.data.store.schema import STEPS
from agent_jax.data.store.split import Split
from agent_jax.data.store.split_index import split_index
from agent_jax.data.store.store import Store

_CACHED_EPOCHS = 3  # prefetched batches reach into two epochs at most, and so into two of a domain of small weight


@dataclasses.dataclass(frozen=True)
class Cut:
    """The W windows of an epoch within their records."""

    start_W: np.ndarray  # int32: first step
    steps_W: np.ndarray  # int32: steps of the record
    padded_W: np.ndarray  # bool: filled up to the window's length with the last frame and TERMINAL actions


class Windows:
    """The samples of one domain and split: their sizes for packing, and `read` to get one. Cheap to pickle."""

    def __init__(self, domain: Domain, store: Store, split: str, seed: int = 0):
        """Index the split; `seed` is that of the starts of random windows.

        Raises:
            ValueError: an unknown split, or a text longer than the domain allows.
        """
        varying = domain.spec if domain.spec and not all(part.fixed for part in domain.spec.spec.parts) else None
        self.index = index = split_index(store, split, domain.instruction, answer=domain.answer, label=domain.label,
                                         varying=varying)
        self.domain, self.split_name, self._seed = domain, split, seed
        self._split: Split = store.split(split)
        domain.text_ids(max(index.texts, key=len))  # so that an error names the length that fits every text
        self._texts = [domain.text_ids(text) for text in index.texts]
        if index.answers:
            domain.answer_ids(max(index.answers, key=len))
        self._answers = [domain.answer_ids(answer) for answer in index.answers]
        count_N = -(-index.length_N // domain.stride)  # starts of a record
        first_N = np.cumsum(count_N) - count_N
        self.record = np.repeat(np.arange(len(count_N), dtype=np.int32), count_N)
        self._consecutive = (np.arange(count_N.sum()) - np.repeat(first_N, count_N)) * domain.stride
        self._offset_N = np.cumsum(index.length_N) - index.length_N
        # Ids of all actions before each step, where their number varies.
        self._ids_before = np.concatenate([[0], np.cumsum(index.ids_of_step, dtype=np.int64)]) if varying else None
        self._terminal_length = len(domain.spec.terminal_ids()) if domain.spec and domain.has_terminal else 0
        self._cuts: dict[int, Cut] = {}  # by epoch
        first = self.cut(0)
        self.start, self.steps, self.padded = first.start_W, first.steps_W, first.padded_W
        self._action_paths = {key: store.step_field(key).path for key in domain.spec.spec.fields} if domain.spec else {}
        states = domain.state.spec.fields if domain.state else ()
        self._state_paths = {key: store.step_field(key).path for key in states}
        self._has_weight = f"{STEPS}/action_weight" in store.fields
        self._id_path = next((path for path in ("episode_id", "recording_id") if path in store.fields), None)
        self._has_start = "start" in store.fields

    def __len__(self) -> int:
        return len(self.record)

    def cut(self, epoch: int) -> Cut:
        """The windows of an epoch: always the same ones, unless sampling is random."""
        domain, index = self.domain, self.index
        epoch = epoch if domain.sampling == "random" else 0
        if (cached := self._cuts.get(epoch)) is not None:
            return cached
        length_W = index.length_N[self.record]
        # Only at the end of an episode can TERMINAL actions fill up a short window.
        ends_W = index.ends_N[self.record] & domain.has_terminal
        if domain.sampling == "random":
            # Windows may run over such an end, or TERMINAL would be rare; all others lie within their record.
            starts_W = np.where(ends_W, length_W, np.maximum(1, length_W - domain.window + 1))
            draw_W = np.random.default_rng((self._seed, epoch, zlib.crc32(domain.name.encode()))).random(len(length_W))
            start_W = (draw_W * starts_W).astype(np.int32)
        else:
            start_W = self._consecutive.astype(np.int32)
        left_W = length_W - start_W
        cut = Cut(start_W, np.minimum(left_W, domain.window), ends_W & (left_W < domain.window))
        self._cuts = {**dict(list(self._cuts.items())[1 - _CACHED_EPOCHS :]), epoch: cut}
        return cut

    @property
    def labels(self) -> np.ndarray:
        """int32 (windows,): the class of each, in a domain that has classes."""
        return self.index.label_of_step[self._offset_N[self.record] + self.start]

    @property
    def recordings(self) -> np.ndarray:
        """uint64 (windows,): the recording of each, by a hash that is the same in every split."""
        return self.index.recording_N[self.record]

    def texts(self, number: int) -> tuple[str, str]:
        """The instruction and the answer of a window; sampling must be consecutive."""
        first = self._offset_N[self.record[number]] + self.start[number]
        answer = self.index.answers[self.index.answer_of_step[first]] if self._answers else ""
        return self.index.texts[self.index.text_of_step[first]], answer

    def text_counts(self) -> dict[tuple[str, str], int]:
        """How many windows have each instruction and answer; of a domain with answers, sampled consecutively."""
        index, first_W = self.index, self._offset_N[self.record] + self.start
        pairs_W2 = np.stack([index.text_of_step[first_W], index.answer_of_step[first_W]], axis=1)
        pairs, counts = np.unique(pairs_W2, axis=0, return_counts=True)
        return {(index.texts[text], index.answers[answer]): int(count)
                for (text, answer), count in zip(pairs, counts, strict=True)}

    def subset(self, keep_W: np.ndarray) -> Windows:
        """The windows where `keep_W` is true, in their order; sampling must be consecutive."""
        assert self.domain.sampling == "consecutive"
        other = copy.copy(self)
        other.record, other._consecutive, other._cuts = self.record[keep_W], self._consecutive[keep_W], {}
        first = other.cut(0)
        other.start, other.steps, other.padded = first.start_W, first.steps_W, first.padded_W
        return other

    def usage(self, visual_tokens: int, epoch: int = 0) -> np.ndarray:
        """int64 (windows, 3): images, slots and targets that each window of an epoch takes of a row."""
        domain, index, cut = self.domain, self.index, self.cut(epoch)
        first_W = self._offset_N[self.record] + cut.start_W
        answers = np.asarray([len(ids) for ids in self._answers])[index.answer_of_step[first_W]] if self._answers else 0
        steps = np.where(cut.padded_W, domain.window, cut.steps_W).astype(np.int64)
        if self._ids_before is None:
            actions = steps * domain.action_length
        else:
            actions = self._ids_before[first_W + cut.steps_W] - self._ids_before[first_W]
            actions = actions + (steps - cut.steps_W) * self._terminal_length
        images, cameras = domain.image_steps(steps), len(domain.cameras)
        return RowUsage.of(
            visual_tokens, text=np.asarray([len(ids) for ids in self._texts])[index.text_of_step[first_W]],
            frames=images * cameras, states=images * domain.state_length, actions=actions, answers=answers,
            shared_cls=(images - 1) * cameras if domain.video else 0, prompt=domain.layout != "actions").as_array()

    def largest_usage(self, visual_tokens: int) -> np.ndarray:
        """int64 (3,): images, slots and targets that no window of any epoch exceeds."""
        domain, index = self.domain, self.index
        if domain.sampling != "random":
            return self.usage(visual_tokens).max(axis=0)
        text, answer = (max((len(ids) for ids in texts), default=0) for texts in (self._texts, self._answers))
        steps = domain.window if domain.has_terminal else min(domain.window, int(index.length_N.max()))
        images, action = domain.image_steps(steps), domain.action_length
        if self._ids_before is not None:
            action = max(self._terminal_length, int(index.ids_of_step.max()))
        return RowUsage.of(
            visual_tokens, text=text, frames=images * len(domain.cameras), states=images * domain.state_length,
            actions=steps * action, answers=answer, prompt=domain.layout != "actions").as_array()

    def read(self, number: int, epoch: int) -> Window:
        """The sample, decoded. Its masks, and its start if sampling is random, depend on the domain's epoch.

        Raises:
            RecordError: the record cannot be read, or differs from when the index was made; names file and record.
        """
        domain, index, cut, record = self.domain, self.index, self.cut(epoch), int(self.record[number])
        start, count = int(cut.start_W[number]), int(cut.steps_W[number])
        episode = self._split[record]
        if episode.steps != index.length_N[record]:
            raise RecordError(f"{episode.where}: holds {episode.steps} steps, expected {index.length_N[record]} as "
                              f"when the data set was first read; its files look unchanged. {REPAIR}")
        try:
            steps = self._read_steps(episode, start, count)
            if cut.padded_W[number]:
                steps += self._padding(episode, steps, start + count - 1)
        except RecordError:
            raise
        except ValueError as error:  # an image that cannot be decoded, a number that cannot be encoded
            raise RecordError(f"{episode.where}, steps {start} to {start + count - 1}: {error}. {REPAIR}") from error
        name = bytes(episode.value(self._id_path)) if self._id_path else f"{self.split_name}/{record}".encode()
        offset = int(np.ravel(episode.value("start"))[0]) if self._has_start else 0
        seed = window_seed(domain.name, name, start + offset, epoch)
        first = self._offset_N[record] + start
        answer = self._answers[index.answer_of_step[first]] if self._answers else np.zeros(0, np.int32)
        return Window(domain.index, self._texts[index.text_of_step[first]], tuple(steps), seed, video=domain.video,
                      first_position=domain.first_position, prompt=domain.layout != "actions", answer_ids=answer,
                      label=int(index.label_of_step[first]) if domain.layout == "label" else -1)

    def _padding(self, episode: Episode, steps: list[Step], last: int) -> list[Step]:
        """TERMINAL actions up to the window's length, with the images and state of the record's last step."""
        domain = self.domain
        assert domain.spec is not None
        terminal = domain.spec.terminal_ids()
        shown = steps[-1] if steps[-1].frames else self._read_steps(episode, last, 1)[0]
        repeated = dataclasses.replace(shown, action_ids=terminal, frame_weight=0.0, action_weight=1.0,
                                       action_choices=domain.spec.choices(terminal))
        blind = dataclasses.replace(repeated, frames=(), state_ids=np.zeros(0, np.int32))
        return [blind if t % domain.actions_per_image else repeated for t in range(len(steps), domain.window)]

    def _read_steps(self, episode: Episode, start: int, count: int) -> list[Step]:
        """The record's steps from `start` on, decoded; the first one has images."""
        domain, stop, no_ids, k = self.domain, start + count, np.zeros(0, np.int32), self.domain.actions_per_image
        images = [[prepare_image(image, domain.image_size) for image in episode.values(camera, start, stop)[::k]]
                  for camera in domain.cameras]
        actions = {key: episode.values(path, start, stop) for key, path in self._action_paths.items()}
        states = {key: episode.values(path, start, stop) for key, path in self._state_paths.items()}
        weights = episode.values(f"{STEPS}/action_weight", start, stop) if self._has_weight else np.ones(count)
        action_ids = [domain.spec.encode({key: actions[key][t] for key in actions}) if domain.spec else no_ids
                      for t in range(count)]
        return [
            Step(frames=() if t % k else tuple(camera[t // k] for camera in images),
                 state_ids=domain.state.encode({key: states[key][t] for key in states})
                 if domain.state and t % k == 0 else no_ids,
                 action_ids=action_ids[t], action_weight=float(weights[t]),
                 action_choices=domain.spec.choices(action_ids[t]) if domain.spec else no_ids)
            for t in range(count)
        ]


def window_seed(domain: str, recording: bytes, start: int, epoch: int) -> int:
    """uint32 that depends on the sample and the domain's epoch, not on the host or batch that reads it."""
    parts = [domain.encode(), recording, str(start).encode(), str(epoch).encode()]
    return int.from_bytes(hashlib.blake2b(b"\0".join(parts), digest_size=4).digest(), "little")
