"""The part of an exported agent that needs NumPy alone: actions and states as ids, rows, history, decoding.

`torch_agent.Policy` and `onnx_agent.Policy` are subclasses that add the network. An exported folder has each of them as
one file, with this module in it (`one_file`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

EOS = 2  # </s>, the first token of every row
PREDICTED = {"actions": "actions", "answer": "text", "label": "class"}  # by layout of a domain

Row = tuple[list[Any], np.ndarray]  # lists of ids and visual tokens (n, D), in order; the positions (S,) of all slots


# ---------------------------------------------------------------------------------------------------------------------
# Actions and states: values in the environment's units <-> ids


class Codec:
    """One ActionSpec or StateSpec of agent.json: parts between delimiters, and the automaton of legal ids."""

    def __init__(self, spec: Mapping[str, Any]):
        self.name, self.groups, self.fields = spec["name"], spec["groups"], spec["fields"]
        self.terminal: list[int] = spec["terminal"]
        self.start, self.accept = spec["automaton"]["start"], spec["automaton"]["accept"]
        # By state: {id: the state after it}.
        self.ways = [dict(zip(*way, strict=True)) for way in spec["automaton"]["ways"]]
        self.ids = np.unique([token for way in self.ways for token in way])
        self.columns = {int(token): column for column, token in enumerate(self.ids)}

    def encode(self, values: Mapping[str, Any]) -> list[int]:
        """Ids of one step's values, delimiters included; numbers out of bounds are clipped.

        Raises:
            ValueError: a key is missing, has another shape, or holds NaN or an unknown choice.
        """
        if self.terminal and values.get("terminal", False):
            return list(self.terminal)
        ids: list[int] = []
        for group in self.groups:
            ids.append(group["start"])
            for part in group["parts"]:
                key, index = part["key"], part["index"]
                shape = tuple(self.fields[key]["shape"])
                if key not in values or np.shape(values[key]) != shape:
                    raise ValueError(f"{self.name}: {key} is missing or not of shape {shape}; found {sorted(values)}")
                tokens = [part["ids"][s] for s in symbols(part, np.asarray(values[key]).tolist() if index is None
                                                          else float(values[key][index]))]
                ids += sorted(tokens) if part["part"] == "buttons" else tokens
            ids.append(group["end"])
        return ids

    def decode(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        """Values at the bin centres, within the bounds, of a complete legal sequence; {"terminal": True} at the end."""
        if self.terminal and list(ids) == self.terminal:
            return {"terminal": np.array(True)}
        values = {key: np.zeros(field["shape"], field["dtype"]) for key, field in self.fields.items()}
        position = 0
        for group in self.groups:
            position += 1
            for part in group["parts"]:
                own = {token: symbol for symbol, token in enumerate(part["ids"])}
                longest = 1 if part["part"] in ("bins", "choice") else len(own)
                numbers: list[int] = []
                while len(numbers) < longest and ids[position] in own:
                    numbers.append(own[ids[position]])
                    position += 1
                values[part["key"]][... if part["index"] is None else part["index"]] = value(part, numbers)
            position += 1
        return values

    def first(self) -> list[int]:
        """The legal sequence that takes the first id in every state."""
        ids, state = [], self.start
        while state != self.accept:
            token = next(iter(self.ways[state]))
            ids, state = [*ids, token], self.ways[state][token]
        return ids

    def choices(self, ids: Sequence[int]) -> list[int]:
        """The ids of one or several legal actions that are a choice among several."""
        found, state = [], self.start
        for token in map(int, ids):
            state = self.start if state == self.accept else state
            found += [token] if len(self.ways[state]) > 1 else []
            state = self.ways[state][token]
        return found

    def forced(self, state: int) -> tuple[list[int], int]:
        """The ids that are the only legal ones from here, and the state after them."""
        ids: list[int] = []
        while len(self.ways[state]) == 1:
            [(token, state)] = self.ways[state].items()
            ids.append(token)
        return ids, state


def symbols(part: Mapping[str, Any], given: Any) -> list[int]:
    """Indices of the tokens that encode the value of a part."""
    kind = part["part"]
    if np.isnan(np.asarray(given, np.float64)).any():
        raise ValueError(f"{part['key']}: found nan, expected a number")
    if kind == "bins":
        low, high, last = part["low"], part["high"], part["count"] - 1
        if low < given < high and given != greatest(high):
            return [min(int((given - low) / ((high - low) / last)), last - 1)]
        return [0 if given <= low else last]
    if kind == "choice":
        numbers = np.asarray(part["values"] or range(len(part["ids"])), np.float32)
        [found] = np.nonzero(numbers == np.float32(given))
        if not len(found):
            raise ValueError(f"{part['key']}: found {given}, expected one of {numbers.tolist()}")
        return [int(found[0])]
    if kind == "buttons":
        return [i for i, down in enumerate(given) if down]
    if kind == "camera":
        degrees = [int(max(part["low"], min(part["high"], turn))) for turn in given]
        span = part["high"] - part["low"] + 1
        return [degrees[0] - part["low"], span + degrees[1] - part["low"]] if any(degrees) else []
    length, turn = math.hypot(*given), math.atan2(given[1], given[0]) / math.tau % 1.0
    if length <= part["dead_zone"]:
        return []
    share = (min(length, 1.0) - part["dead_zone"]) / (1 - part["dead_zone"])
    return [int(turn * part["rotations"]) % part["rotations"],
            part["rotations"] + min(int(share * part["magnitudes"]), part["magnitudes"] - 1)]


def greatest(high: float) -> float:
    """The greatest float32 that is not above `high`."""
    rounded = np.float32(high)
    return float(rounded if float(rounded) <= high else np.nextafter(rounded, np.float32(-np.inf)))


def value(part: Mapping[str, Any], numbers: Sequence[int]) -> Any:
    """The value that a part's tokens decode to: the centre of a bin, clipped to the part's bounds."""
    kind = part["part"]
    if kind == "bins":
        low, high = part["low"], part["high"]
        centre = low + (numbers[0] + 0.5) * ((high - low) / (part["count"] - 1))
        return min(max(centre, -greatest(-low)), greatest(high))
    if kind == "choice":
        return part["values"][numbers[0]] if part["values"] else numbers[0]
    if kind == "buttons":
        return [i in numbers for i in range(len(part["names"]))]
    if not numbers:
        return [0.0, 0.0]
    if kind == "camera":
        span = part["high"] - part["low"] + 1
        degrees = [numbers[0] + part["low"], numbers[1] - span + part["low"]]
        return [min(max(d + 0.5 * ((d > 0) - (d < 0)), part["low"]), part["high"]) for d in degrees]
    angle = (numbers[0] + 0.5) * math.tau / part["rotations"]
    share = (numbers[1] - part["rotations"] + 0.5) / part["magnitudes"]
    length = part["dead_zone"] + share * (1 - part["dead_zone"])
    return [length * math.cos(angle), length * math.sin(angle)]


# ---------------------------------------------------------------------------------------------------------------------
# A row: instruction, then images, states and actions


@dataclass
class Step:
    """One time step."""

    images: Sequence[np.ndarray]  # uint8 (size, size, 3), one a camera
    state_ids: Sequence[int] = ()
    action_ids: Sequence[int] = ()


@dataclass
class Domain:
    """How one data set maps to tokens, from agent.json."""

    name: str
    window: int  # steps of a sample
    max_text: int  # tokens of an instruction or prompt, </s> included
    first_position: int  # of the first step; 0: right after the instruction
    video: bool  # the images of a camera form one clip
    image_size: int
    cameras: Sequence[str]  # names, in the order of a step's images
    actions: Codec | None  # None in the layouts "answer" and "label"
    state: Codec | None
    tokenizer: Tokenizer
    layout: str = "actions"  # "actions", "answer" (a text after the images) or "label" (a class of the clip)
    max_answer: int = 0  # tokens of an answer, </s> included
    text_ids_end: int = 0  # the ids from here on are those of actions and states
    silent_ids: Sequence[int] = ()  # text ids that decode to no text
    actions_per_image: int = 1  # k: only every k-th step of a sample has images and state

    @classmethod
    def load(cls, folder: str | Path, name: str = "", layout: str = "") -> Domain:
        """The domain of an exported folder.

        Args:
            folder: with agent.json.
            name: may be empty if there is only one of the layout.
            layout: that the domain must have; "": any, and "actions" for an empty name.

        Raises:
            ValueError: there is no such domain, or `name` is empty and there are several; names those that fit.
        """
        folder = Path(folder)
        description = json.loads((folder / "agent.json").read_text(encoding="utf-8"))
        domains = {**description["acting"], **description.get("prompted", {})}
        layouts = {key: fields.get("layout", "actions") for key, fields in domains.items()}
        wanted = layout or ("" if name else "actions")
        fitting = [key for key, found in layouts.items() if wanted in ("", found)]
        if not name and len(fitting) == 1:
            [name] = fitting
        if name in layouts and name not in fitting:
            raise ValueError(f"domain {name!r} of {folder} has the layout {layouts[name]!r}, which predicts no "
                             f"{PREDICTED[wanted]}; expected a domain of the layout {wanted!r}: "
                             f"{', '.join(fitting) or 'there is none'}")
        if not fitting:
            found = ", ".join(f"{key} ({of_domain!r})" for key, of_domain in layouts.items()) or "no domains"
            raise ValueError(f"{folder} has no domain of the layout {wanted!r}; found {found}")
        if name not in fitting:
            raise ValueError(f"domain {name!r}: {folder} has {', '.join(fitting)}; name one")
        fields = {"actions": None, "state": None, **domains[name]}
        actions, state = (fields.pop(key) for key in ("actions", "state"))
        tokenizer = Tokenizer.from_file(str(folder / "language" / "tokenizer.json"))
        return cls(name=name, actions=Codec(actions) if actions else None, state=Codec(state) if state else None,
                   tokenizer=tokenizer, **fields)

    def text_ids(self, instruction: str) -> list[int]:
        """</s> and the instruction or prompt; ValueError if longer than `max_text`."""
        ids = [EOS, *self.tokenizer.encode(instruction, add_special_tokens=False).ids]
        if len(ids) > self.max_text:
            raise ValueError(f"domain {self.name!r}: {instruction!r} has {len(ids)} tokens with </s>, expected at most "
                             f"{self.max_text}")
        return ids

    def answer_ids(self, answer: str) -> list[int]:
        """The answer and </s>; ValueError if longer than `max_answer`."""
        ids = [*self.tokenizer.encode(answer, add_special_tokens=False).ids, EOS]
        if len(ids) > self.max_answer:
            raise ValueError(f"domain {self.name!r}: the answer {answer!r} has {len(ids)} tokens with </s>, expected "
                             f"at most {self.max_answer}")
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens."""
        return self.tokenizer.decode([token for token in ids if token not in self.silent_ids], skip_special_tokens=True)

    def step_images(self, given: Any) -> list[np.ndarray]:
        """The images of one step, in the cameras' order and resized for the encoder.

        Args:
            given: an image, or one of each camera: a sequence in their order or a mapping by their names.

        Raises:
            ValueError: another number of images, or an image of another dtype or shape.
        """
        if isinstance(given, np.ndarray) and given.ndim == 3:
            given = [given]
        if isinstance(given, Mapping):
            given = [given[name] for name in self.cameras if name in given]
        if len(given) != len(self.cameras):
            raise ValueError(f"found {len(given)} images, expected one of each camera: {', '.join(self.cameras)}")
        return [self.image(image) for image in given]

    def clip_images(self, given: Any) -> list[list[np.ndarray]]:
        """The images of a clip's steps, as `step_images`.

        Args:
            given: one step, or a sequence of 1 to `window` of them.

        Raises:
            ValueError: another number of steps; or as `step_images`.
        """
        if isinstance(given, (str, bytes)) or not isinstance(given, (Mapping, Sequence, np.ndarray)):
            raise ValueError(f"domain {self.name!r}: found a {type(given).__name__}, expected an image uint8 (height, "
                             f"width, 3) or a sequence of 1 to {self.window} of them")
        several = len(self.cameras) > 1
        if isinstance(given, Mapping) or _is_image(given) or (several and all(map(_is_image, given))):
            given = [given]
        if not 1 <= len(given) <= self.window:
            raise ValueError(f"domain {self.name!r}: found a clip of {len(given)} images"
                             f"{' of each camera' if several else ''}, expected 1 to {self.window}")
        return [self.step_images(step) for step in given]

    def image(self, image: np.ndarray) -> np.ndarray:
        """The image resized for the encoder: bilinear, antialiased, no crop; ValueError for another dtype or shape."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
            raise ValueError(f"domain {self.name!r}: found {found}, expected images uint8 (height, width, 3)")
        size = (self.image_size, self.image_size)
        if image.shape[:2] == size:
            return image
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _is_image(given: Any) -> bool:
    return isinstance(given, np.ndarray) and given.ndim == 3


# ---------------------------------------------------------------------------------------------------------------------
# Acting, answering, classifying


@dataclass
class Episode:
    """History of one environment."""

    past: list[tuple[list[Any], Step]]  # encoded images and the step with its actions
    text: Sequence[int] = ()
    cache: Any = None  # of the engine, if the history is flushed: the KV cache of the row so far
    used: int = 0  # slots of the row in the cache


@dataclass(frozen=True)
class Prepared:
    """One observation, checked and ready."""

    step: Step
    text_ids: list[int]


@dataclass(frozen=True)
class GeneratedText:
    """An answer of the model."""

    text: str
    ids: list[int]  # without the </s> that ended it
    log_probability: float  # in nats, among the text ids, at temperature 1; of all generated ids, the final </s> too
    complete: bool  # it ended by </s>, not by `max_tokens`


@dataclass(frozen=True)
class Classification:
    """The class of a clip."""

    label: int  # the most probable class
    probabilities: np.ndarray  # f32 (classes,)


class ExportedPolicy:
    """Acts in any number of environments at once, each with its own history; answers prompts and classifies clips.

    Every action begins with the row of the last images and actions, from stored encodings, and is then decoded id by id
    with a KV cache, among the ids that the ActionSpec allows. A subclass has the network: `_tokens`, `_probabilities`
    and `_read`.
    """

    def __init__(self, folder: str | Path, description: Mapping[str, Any], *, domain: str = "",
                 temperature: float = 0.0, seed: int = 0):
        """Load a domain.

        Args:
            folder: exported, with agent.json.
            description: the content of agent.json.
            domain: to act, answer or classify in; may be empty if there is at most one to act in.
            temperature: of sampling among the legal ids of actions; 0: greedy.
            seed: of sampling actions.

        Raises:
            ValueError: there is no such domain, or `domain` is empty and there are several to act in.
        """
        self.folder, self.description = Path(folder), description
        prompted = list(description.get("prompted", {}))
        if not domain and not description["acting"] and len(prompted) == 1:
            [domain] = prompted
        only_prompted = len(prompted) > 1 and not description["acting"]
        self._domain = Domain.load(folder, domain) if domain or not only_prompted else None
        self.temperature, self._random = temperature, np.random.default_rng(seed)
        self.flush_every = 0  # steps after which the history is dropped; 0: it slides
        self._episodes: dict[Any, Episode] = {}

    def _tokens(self, frames_BFHWC: np.ndarray, clip_BF: np.ndarray) -> Any:
        """Projected visual tokens (B, F, V, D); `clip_BF` is the clip of each image (-1: padding)."""
        raise NotImplementedError

    def _probabilities(self, frames_BFHWC: np.ndarray, clip_BF: np.ndarray) -> np.ndarray:
        """Probabilities of the classes of each row's first clip."""
        raise NotImplementedError

    def _read(self, rows: Sequence[Row], ids: np.ndarray, room: int, episodes: Sequence[Episode] = ()
              ) -> Generator[np.ndarray, Sequence[Sequence[int]], None]:
        """Read rows, then whatever ids are sent for each; yields the logits (B, A) of `ids` at the end of each row.

        Args:
            rows: to be read.
            ids: whose logits are wanted.
            room: most slots that follow a row.
            episodes: of the rows, if their caches are kept.
        """
        raise NotImplementedError

    @property
    def domain(self) -> Domain:
        """The domain that was named, or the only one to act in, or the only one; else ValueError."""
        if self._domain is None:
            raise ValueError(f"{self.folder} has no domain of the layout 'actions', but "
                             f"{', '.join(self.description['prompted'])}, and none was named; use `say` or "
                             "`classify`, or name one")
        return self._domain

    def _of_layout(self, name: str, layout: str) -> Domain:
        """The domain to predict in: the one named here or at the start, or the only one of the layout."""
        own = self._domain
        if own is not None and own.layout == layout and name in ("", own.name):
            return own
        return Domain.load(self.folder, name, layout)

    def reset(self, env_ids: Sequence[Any]) -> None:
        """Start new episodes."""
        for env_id in env_ids:
            self._episodes[env_id] = Episode([])

    def forget(self, env_ids: Sequence[Any]) -> None:
        """Drop the history of these ids; unknown ones are ignored."""
        for env_id in env_ids:
            self._episodes.pop(env_id, None)

    def flush_at(self, steps: int) -> None:
        """Drop the history every so many steps, instead of sliding it.

        Raises:
            ValueError: later than the domain's window, or amid the actions of an image.
        """
        window, k = self.domain.window, self.domain.actions_per_image
        if not 0 < steps <= window or steps % k:
            raise ValueError(f"flush_every={steps}: domain {self.domain.name!r} has windows of {window} steps and {k} "
                             f"actions per image; expected a multiple of the latter, up to {window}")
        self.flush_every = steps

    def prepare(self, images: Any, instruction: str, state: Mapping[str, Any] | None = None) -> Prepared:
        """One observation, checked and ready for `step`; may run in any thread.

        Args:
            images: uint8 (height, width, 3), or a sequence or mapping of one such image for each camera.
            instruction: a text.
            state: the StateSpec's values; None if the domain has no StateSpec.

        Raises:
            ValueError: a domain without actions, or a wrong observation.
        """
        self._codec()
        frames = self.domain.step_images(images)
        if (state is None) != (self.domain.state is None):
            raise ValueError(f"domain {self.domain.name!r} {'has no' if state is not None else 'needs a'} state for "
                             "each environment")
        state_ids = self.domain.state.encode(state) if self.domain.state and state is not None else []
        return Prepared(Step(frames, state_ids), self.domain.text_ids(instruction))

    def act(self, images: Sequence[Any], instructions: Sequence[str], env_ids: Sequence[Any],
            states: Sequence[Mapping[str, Any]] | None = None) -> list[Any]:
        """`prepare`, then `step`.

        Args:
            images: n observations, as in `prepare`.
            instructions: n texts.
            env_ids: n different ids; an unknown id starts an episode.
            states: n mappings of the StateSpec's values; None if the domain has no StateSpec.

        Raises:
            ValueError: a domain without actions, sequences of unequal length, duplicate env_ids, a wrong observation,
                or logits that are not finite.
        """
        self._codec()
        n = len(env_ids)
        if not len(images) == len(instructions) == n or (states is not None and len(states) != n):
            raise ValueError(f"found {len(images)} images, {len(instructions)} instructions, {n} env_ids"
                             f"{'' if states is None else f' and {len(states)} states'}, expected one each")
        if len(set(env_ids)) != n:
            raise ValueError(f"duplicate env_ids: {list(env_ids)}")
        return self.step([self.prepare(images[i], instructions[i], None if states is None else states[i])
                          for i in range(n)], env_ids)

    def step(self, prepared: Sequence[Prepared], env_ids: Sequence[Any]) -> list[Any]:
        """The next action of each episode, which is assumed to be executed.

        If the domain has several actions per image: a list of them for each episode, in order; it ends with the action
        that ends the episode.
        """
        if not len(env_ids):
            return []
        codec = self._codec()
        found = self._advance(prepared, env_ids, lambda _, logits: self._choose(logits))
        if self.domain.actions_per_image == 1:
            return [codec.decode(ids) for [ids] in found]
        made = [[codec.decode(ids) for ids in several] for several in found]
        return [actions[: next((i + 1 for i, action in enumerate(actions) if "terminal" in action), len(actions))]
                for actions in made]

    def follow(self, prepared: Sequence[Prepared], env_ids: Sequence[Any], action_ids: Sequence[Sequence[int]]
               ) -> list[np.ndarray]:
        """A step with given actions, which become history (teacher forcing).

        Args:
            prepared: n observations.
            env_ids: n different ids.
            action_ids: n actions as ids; joined, if the domain has several per image.

        Returns:
            n arrays f32 (choices, A) over the sorted ids of the actions: the logits of each choice among several legal
            ids, -inf where an id is illegal.
        """
        codec = self._codec()
        given = [codec.choices(ids) for ids in action_ids]
        found: list[list[np.ndarray]] = [[] for _ in env_ids]

        def force(row: int, logits: Mapping[int, float]) -> int:
            logits_A = np.full(len(codec.ids), -np.inf, np.float32)
            logits_A[[codec.columns[token] for token in logits]] = list(logits.values())
            found[row].append(logits_A)
            return given[row].pop(0)

        self._advance(prepared, env_ids, force)
        return [np.reshape(rows, (-1, len(codec.ids))) for rows in found]

    def _advance(self, prepared: Sequence[Prepared], env_ids: Sequence[Any], choose: Any) -> list[list[list[int]]]:
        """The ids of the actions of each episode, which are remembered; if it fails, no episode changes."""
        texts = [seen.text_ids for seen in prepared]
        steps = self._encoded([seen.step for seen in prepared], env_ids)
        k = self.domain.actions_per_image
        for env_id, text in zip(env_ids, texts, strict=True):
            episode = self._episodes[env_id]
            full = len(episode.past) >= self.flush_every // k or episode.text != text
            self._episodes[env_id] = Episode([], text) if self.flush_every and full else episode
        found: list[list[list[int]]] = [[] for _ in env_ids]
        try:
            for _ in range(k):
                for i, ids in enumerate(self.decode(env_ids, texts, steps, choose)):
                    tokens, step = steps[i]
                    steps[i] = tokens, replace(step, action_ids=[*step.action_ids, *ids])
                    found[i].append(ids)
        except BaseException:
            for env_id in env_ids:  # a cache may have what the history lacks
                self._episodes[env_id].cache, self._episodes[env_id].used = None, 0
            raise
        for env_id, (tokens, step) in zip(env_ids, steps, strict=True):
            self.remember(env_id, tokens, step)
        return found

    def _codec(self) -> Codec:
        """The codec of the domain's actions; ValueError if it has none."""
        if self.domain.actions is None:
            acting = ", ".join(self.description["acting"]) or "there is none"
            raise ValueError(f"domain {self.domain.name!r} of {self.folder} has the layout {self.domain.layout!r}, "
                             f"which predicts no actions; expected a domain of the layout 'actions': {acting}")
        return self.domain.actions

    def remember(self, env_id: Any, tokens: list[Any], step: Step) -> None:
        """Append an executed step to the history."""
        episode = self._episodes[env_id]
        episode.past = [*episode.past, (tokens, step)]
        if not self.flush_every:
            images = self.domain.window // self.domain.actions_per_image
            episode.past = episode.past[max(0, len(episode.past) - images + 1) :]

    def observe(self, images: Sequence[Any], env_ids: Sequence[Any], states: Sequence[Mapping[str, Any]] | None
                ) -> list[tuple[list[Any], Step]]:
        """Encode the observations: the visual tokens of each camera, and the step without its action."""
        state = self.domain.state
        return self._encoded([Step(self.domain.step_images(given), state.encode(states[i])
                                   if state and states is not None else [])
                              for i, given in enumerate(images)], env_ids)

    def _encoded(self, steps: Sequence[Step], env_ids: Sequence[Any]) -> list[tuple[list[Any], Step]]:
        self.reset([env_id for env_id in env_ids if env_id not in self._episodes])
        encoded = [[]] * len(steps) if self.domain.video else self._encode([step.images for step in steps])
        return list(zip(encoded, steps, strict=True))

    def decode(self, env_ids: Sequence[Any], texts: Sequence[Sequence[int]], steps: Sequence[tuple[list[Any], Step]],
               choose: Any) -> list[list[int]]:
        """The ids of each action, after those in `steps`; `choose(row, {id: logit})` returns one of the legal ids."""
        codec = self._codec()
        first, state = codec.forced(codec.start)
        ids, where = [list(first) for _ in env_ids], [state] * len(env_ids)
        if state == codec.accept:
            return ids
        episodes = [self._episodes[env_id] for env_id in env_ids]
        rows = [self._row(episode, text, step, first)
                for episode, text, step in zip(episodes, texts, steps, strict=True)]
        # An action has at most as many ids as its automaton has states.
        # In a video model a new image changes the tokens of those before it, so no row grows.
        changing = self.domain.video and self.description["config"]["model"]["vision"].get("temporal_attention")
        growing = episodes if self.flush_every and not changing else ()
        reading = self._read(rows, codec.ids, 2 * len(codec.ways), growing)
        logits_BA = next(reading)
        while True:
            pending: list[list[int]] = [[] for _ in env_ids]
            for i, state in enumerate(where):
                if state != codec.accept:
                    legal = codec.ways[state]
                    token = choose(i, {token: float(logits_BA[i, codec.columns[token]]) for token in legal})
                    forced, where[i] = codec.forced(legal[token])
                    ids[i] += [token, *forced]
                    pending[i] = [token, *forced] if where[i] != codec.accept else []
            if not any(pending):
                return ids
            logits_BA = reading.send(pending)

    def _encode(self, images: Sequence[Sequence[np.ndarray]]) -> list[list[Any]]:
        """Visual tokens (V, D) of each camera of each environment; every image is its own clip."""
        frames_BFHWC = np.asarray(images)
        clip_BF = np.broadcast_to(np.arange(frames_BFHWC.shape[1]), frames_BFHWC.shape[:2])
        return [list(row) for row in self._tokens(frames_BFHWC, clip_BF)]

    def _row(self, episode: Episode, text: Sequence[int], now: tuple[list[Any], Step], first_ids: Sequence[int]) -> Row:
        """The row of an episode up to the first ids of its next action."""
        window = [*episode.past, now]
        visual = self._clip([step for _, step in window]) if self.domain.video else [tokens for tokens, _ in window]
        ids = [[*step.state_ids, *step.action_ids, *(first_ids if step is now[1] else ())] for _, step in window]
        return _laid_out(self.domain, text, visual, ids)

    def _clip(self, steps: Sequence[Step]) -> list[list[Any]]:
        """Visual tokens by step and camera of a video model, which encodes the whole window; one CLS a camera."""
        images = np.stack([image for step in steps for image in step.images])
        cameras = len(steps[0].images)
        tokens = self._tokens(images[None], np.tile(np.arange(cameras), len(steps))[None])[0]
        return [[tokens[number * cameras + camera, 1 if number else 0 :] for camera in range(cameras)]
                for number in range(len(steps))]

    def _choose(self, logits: Mapping[int, float]) -> int:
        """The best id, or a sample from the softmax (Gumbel-max)."""
        tokens, found = list(logits), np.array(list(logits.values()))
        _check_finite(found)
        if self.temperature:
            found = found / self.temperature + self._random.gumbel(size=found.shape)
        return tokens[int(np.argmax(found))]

    def say(self, images: Sequence[Any], prompts: Sequence[str], *, domain: str = "", max_tokens: int = 0,
            temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> list[GeneratedText]:
        """Answer each prompt about its images; no history is read or written.

        Args:
            images: for each prompt an image uint8 (height, width, 3), or a sequence of 1 to `window` of them; with
                several cameras, a mapping by their names or a tuple in their order in place of an image.
            prompts: texts.
            domain: of the layout "answer"; may be empty if the policy has it, or if there is only one.
            max_tokens: of an answer, </s> included; 0: the domain's `max_answer`, which is the most.
            temperature: of sampling; 0: the most probable id.
            top_p: sample among the fewest most probable ids whose probabilities reach this sum; 1: all.
            seed: of sampling; what is drawn depends on it and on the prompt's number alone.

        Returns:
            One text for each prompt. Ids of actions and states are never generated.

        Raises:
            ValueError: a domain without text, another number of images than prompts, a prompt that is too long, a
                wrong clip, a setting out of range, or logits that are not finite.
        """
        chosen = self._of_layout(domain, "answer")
        _check_sampling(chosen, temperature, top_p, max_tokens)
        if isinstance(prompts, str) or len(images) != len(prompts):
            found = "one text" if isinstance(prompts, str) else f"{len(prompts)} prompts"
            raise ValueError(f"found {len(images)} clips and {found}, expected a clip (an image or several) for each "
                             "prompt: say([clip], [prompt])")
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise ValueError(f"domain {chosen.name!r}: found the prompt {prompt!r}, expected a text")
        if not len(prompts):
            return []
        texts = [chosen.text_ids(prompt) for prompt in prompts]
        clips = [chosen.clip_images(given) for given in images]
        random = [np.random.default_rng([seed, number]) for number in range(len(prompts))]
        log_probabilities = [0.0] * len(prompts)

        def choose(row: int, logits_K: np.ndarray) -> int:
            _check_finite(logits_K)
            log_K = logits_K - logits_K.max()
            log_K -= np.log(np.exp(log_K).sum())
            token = sampled(log_K, temperature, top_p, random[row])
            log_probabilities[row] += float(log_K[token])
            return token

        said = []
        for ids, log_probability in zip(self.generate(chosen, texts, clips, max_tokens or chosen.max_answer, choose),
                                        log_probabilities, strict=True):
            complete = ids[-1] == EOS
            ids = ids[:-1] if complete else ids
            said.append(GeneratedText(chosen.text(ids), ids, log_probability, complete))
        return said

    def generate(self, domain: Domain, texts: Sequence[Sequence[int]], clips: Sequence[Sequence[Sequence[np.ndarray]]],
                 limit: int, choose: Any) -> list[list[int]]:
        """The ids after each prompt and clip, up to </s> or `limit` of them.

        Args:
            domain: of the layout "answer".
            texts: ids of the prompts.
            clips: prepared images by step and camera.
            limit: ids of an answer at most.
            choose: `choose(row, logits_K)` returns the next id by the logits of the text ids, f64.
        """
        tokens_BFVD, rows = self._tokens(*_frames(domain, clips)), []
        for text, clip, tokens_FVD in zip(texts, clips, tokens_BFVD, strict=True):
            cameras = len(clip[0])
            visual = [[tokens_FVD[step * cameras + camera, 1 if domain.video and step else 0 :]
                       for camera in range(cameras)] for step in range(len(clip))]
            rows.append(_laid_out(domain, text, visual, [[]] * len(clip)))
        reading = self._read(rows, np.arange(domain.text_ids_end), limit - 1)
        logits_BK = next(reading)
        ids: list[list[int]] = [[] for _ in texts]
        going = [True] * len(texts)
        while True:
            for i, found in enumerate(ids):
                if going[i]:
                    found.append(choose(i, logits_BK[i].astype(np.float64)))
                    going[i] = found[-1] != EOS and len(found) < limit
            if not any(going):
                return ids
            logits_BK = reading.send([found[-1:] if on else [] for found, on in zip(ids, going, strict=True)])

    def classify(self, images: Sequence[Any], *, domain: str = "") -> list[Classification]:
        """The class of each clip.

        Args:
            images: for each clip an image uint8 (height, width, 3), or a sequence of 1 to `window` of them.
            domain: of the layout "label"; may be empty if the policy has it, or if there is only one.

        Raises:
            ValueError: a domain without classes, a wrong clip, or logits that are not finite.
        """
        chosen = self._of_layout(domain, "label")
        if not len(images):
            return []
        found = self._probabilities(*_frames(chosen, [chosen.clip_images(given) for given in images]))
        _check_finite(found)
        return [Classification(int(row.argmax()), row) for row in found]


def _laid_out(domain: Domain, text: Sequence[int], visual: Sequence[Sequence[Any]], ids: Sequence[Sequence[int]]
              ) -> Row:
    """The row of a text, and of each step's visual tokens by camera and its ids."""
    pieces: list[Any] = [list(text)]
    for tokens, of_step in zip(visual, ids, strict=True):
        pieces += [*tokens, *([list(of_step)] if of_step else [])]
    position_S = np.arange(sum(map(len, pieces)))
    if domain.first_position:
        position_S[len(text) :] += domain.first_position - len(text)
    return pieces, position_S


def _frames(domain: Domain, clips: Sequence[Sequence[Sequence[np.ndarray]]]) -> tuple[np.ndarray, np.ndarray]:
    """frames_BFHWC and clip_BF (-1: padding) of steps by camera."""
    frames = [np.stack([image for step in clip for image in step]) for clip in clips]
    frames_BFHWC = np.zeros((len(clips), max(map(len, frames)), *frames[0].shape[1:]), np.uint8)
    clip_BF = np.full(frames_BFHWC.shape[:2], -1)
    for i, (images, clip) in enumerate(zip(frames, clips, strict=True)):
        frames_BFHWC[i, : len(images)] = images
        clip_BF[i, : len(images)] = np.arange(len(images)) % (len(clip[0]) if domain.video else len(images))
    return frames_BFHWC, clip_BF


def sampled(log_K: np.ndarray, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """An id by its log-probabilities: the best one, or a sample among the top p (Holtzman et al., 2019)."""
    if not temperature:
        return int(np.argmax(log_K))
    odds_K = np.exp((log_K - log_K.max()) / temperature)
    order_K = np.argsort(-odds_K, kind="stable")
    sums_K = np.cumsum(odds_K[order_K] / odds_K.sum())
    kept = order_K[: 1 + np.searchsorted(sums_K, top_p)]
    return int(random.choice(kept, p=odds_K[kept] / odds_K[kept].sum()))


def _check_sampling(domain: Domain, temperature: float, top_p: float, max_tokens: int) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature={temperature}: expected 0 (the most probable id) or more, and finite")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: expected above 0 and at most 1 (all ids)")
    if not 0 <= max_tokens <= domain.max_answer:
        raise ValueError(f"max_tokens={max_tokens}: domain {domain.name!r} was trained on answers of at most "
                         f"{domain.max_answer} tokens with </s>; expected 1 to {domain.max_answer}, or 0 for that")


def _check_finite(logits: np.ndarray) -> None:
    if not np.isfinite(logits).all():
        raise ValueError("the logits are NaN or infinite: the parameters are damaged, or their training diverged")
