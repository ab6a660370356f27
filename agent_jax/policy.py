"""A trained agent that acts: a checkpoint in, actions in the environment's own units out.

    policy = Policy.load("runs/babyai")
    policy.reset([0, 1])
    actions = policy.act(images, ["go to the red ball", "go to a key"], [0, 1])    # [{"action": 2}, {"action": 0}]

Where a domain has several cameras, `images` holds a mapping (or a tuple in their order) an environment:

    policy.act([{"rgb_static": image, "rgb_gripper": other}], ["open the drawer"], [0])

What the agent sees is laid out by the same code as in training: instruction, then the last M steps, the newest without
its action. The ids of the action follow one by one, each among those that the ActionSpec's automaton allows, so an
action always decodes; where only one id is legal the model is not asked.

    history of an episode -> row (lay_out_prefix) -> logits of the last slot -> legal id -> ... -> ActionSpec.decode
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax import checkpoint
from agent_jax.batch import Batch
from agent_jax.config import Config, from_config_dict
from agent_jax.data.domains import Domain
from agent_jax.data.layout import Step, Window, blank_row, lay_out_prefix, row_size, stack
from agent_jax.data.transforms import prepare_image
from agent_jax.models.agent import Agent, Params
from agent_jax.restart import restore_acting_parameters
from agent_jax.vocabulary import Vocabulary

# Rows the forward pass is compiled for; a larger batch is cut up, a smaller one filled up with empty rows.
BUCKETS = (1, 8, 32)

_NO_IDS = np.zeros(0, np.int32)

Images = np.ndarray | Mapping[str, np.ndarray] | Sequence[np.ndarray]  # of one environment: an image, or one a camera


@dataclasses.dataclass
class _Episode:
    """What is remembered of one environment."""

    steps: deque[Step]  # the last M - 1, each with its action
    text_ids: np.ndarray | None = None
    instruction: str = ""


class Policy:
    """Acts in any number of environments at once; each has its own history, known by its id."""

    def __init__(self, config: Config, params: Params, domain: Domain, *, temperature: float = 0.0, seed: int = 0):
        """Of a model and the domain it is to act in.

        Args:
            config: of the run; `model.language.vocabulary_size` is set.
            params: its parameters.
            domain: ActionSpec, vocabulary, window and preprocessing.
            temperature: of sampling among the legal ids; 0: the best one.
            seed: of sampling.

        Raises:
            ValueError: a negative temperature, a window beyond the model's positions, or a domain without actions.
        """
        if domain.spec is None:
            raise ValueError(f"domain {domain.name!r} has the layout {domain.layout!r}, which predicts no actions: "
                             "there is nothing to act with; name a domain of the layout 'actions'")
        if temperature < 0:
            raise ValueError(f"temperature={temperature} must be 0 (greedy) or positive")
        self.domain, self.temperature = domain, temperature
        self._params, self._random = params, np.random.default_rng(seed)
        self._patches = config.model.vision.patches
        self._spec = domain.spec
        self._size = row_size([domain], 1 + self._patches, domain.images, config.model.language.positions)
        self._episodes: dict[Any, _Episode] = {}
        agent = Agent(config.model)
        legal_A = jnp.asarray(self._spec.automaton.ids_A)

        def logits_of_actions(params: Params, batch: Batch) -> jax.Array:
            output: Any = agent.apply({"params": params}, batch)
            return output.logits_BTK[:, 0, legal_A]

        self._logits = jax.jit(logits_of_actions)

    @classmethod
    def load(cls, path: str | Path, *, domain: str = "", step: int | None = None, temperature: float = 0.0,
             seed: int = 0) -> Self:
        """The policy of a checkpoint, by its averaged parameters where the run kept some.

        Args:
            path: a workdir, its checkpoints directory, or one step in it.
            domain: the domain to act in; may be empty if the run had one.
            step: by default the one `path` names, or the newest undamaged one.
            temperature: as above.
            seed: as above.

        Raises:
            FileNotFoundError: no checkpoint there.
            ValueError: no such domain, or several and none named.
        """
        directory, named = checkpoint.locate(path)
        meta = checkpoint.read_meta(directory, named if step is None else step)
        config = from_config_dict(meta["config"])
        vocabulary = Vocabulary.from_json(meta["vocabulary"])
        found = _chosen(meta["domains"], domain, directory)
        params = restore_acting_parameters(directory, config, meta["step"])
        return cls(config, params, Domain.from_meta(found, vocabulary), temperature=temperature, seed=seed)

    def with_temperature(self, temperature: float, seed: int = 0) -> Policy:
        """The same parameters, acting otherwise; histories are not shared."""
        other = object.__new__(type(self))
        random = np.random.default_rng(seed)
        other.__dict__ |= self.__dict__ | {"temperature": temperature, "_random": random, "_episodes": {}}
        return other

    def reset(self, env_ids: Sequence[Any]) -> None:
        """Begin new episodes: forget what was seen under these ids."""
        for env_id in env_ids:
            self._episodes[env_id] = _Episode(deque(maxlen=self.domain.window - 1))

    def act(self, images: Sequence[Images] | np.ndarray, instructions: Sequence[str], env_ids: Sequence[Any],
            states: Sequence[Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
        """The next action of each episode, which is taken to be executed.

        Args:
            images: n uint8 images (height, width, 3), what is seen now; resized as in training. With several cameras,
                n mappings of them by `domain.camera_names`, or n tuples in that order.
            instructions: n texts.
            env_ids: n different ids, in any order; unknown ones begin an episode.
            states: n mappings of the StateSpec's values; needed if the domain has one.

        Returns:
            n mappings of the ActionSpec's values, in the environment's units.

        Raises:
            ValueError: sequences of unequal length, an id twice, a missing state or camera, an instruction too long.
        """
        n = len(env_ids)
        if not len(images) == len(instructions) == n or (states is not None and len(states) != n):
            raise ValueError(f"act: found {len(images)} images, {len(instructions)} instructions and {n} env_ids"
                             f"{'' if states is None else f' and {len(states)} states'}, expected one each")
        if len(set(env_ids)) != n:
            raise ValueError(f"act: env_ids={list(env_ids)} hold an id twice")
        if (self.domain.state is None) != (states is None):
            raise ValueError(f"act: domain {self.domain.name!r} "
                             f"{'has no' if self.domain.state is None else 'needs a'} state for each environment")
        self.reset([env_id for env_id in env_ids if env_id not in self._episodes])
        steps = []
        for i, env_id in enumerate(env_ids):
            episode = self._episodes[env_id]
            if episode.text_ids is None or episode.instruction != instructions[i]:
                episode.text_ids, episode.instruction = self.domain.text_ids(instructions[i]), instructions[i]
            state_ids = self.domain.state.encode(states[i]) if self.domain.state and states is not None else _NO_IDS
            steps.append(Step(self._frames(images[i]), state_ids, _NO_IDS))
        actions = []
        for i, ids in enumerate(self._decode([self._episodes[env_id] for env_id in env_ids], steps)):
            self._episodes[env_ids[i]].steps.append(dataclasses.replace(steps[i], action_ids=ids))
            actions.append(self._spec.decode(ids))
        return actions

    def _frames(self, images: Images) -> tuple[np.ndarray, ...]:
        """What the cameras of one environment see, in the order of the domain, as the encoder takes it."""
        names = self.domain.camera_names
        if isinstance(images, Mapping):
            found, seen = ", ".join(map(str, images)), [images.get(name) for name in names]
        elif isinstance(images, np.ndarray):
            found, seen = "one image", [images]
        else:
            found, seen = f"{len(images)} images", list(images)
        extra = isinstance(images, Mapping) and len(images) != len(names)
        if len(seen) != len(names) or extra or any(image is None for image in seen):
            raise ValueError(f"act: domain {self.domain.name!r} sees through {', '.join(names)}; found {found} of an "
                             "environment, expected an image of each, in a mapping by these names or a tuple in this "
                             "order")
        return tuple(prepare_image(image, self.domain.image_size) for image in seen if image is not None)

    def _decode(self, episodes: Sequence[_Episode], steps: Sequence[Step]) -> list[np.ndarray]:
        """The ids of each action: all episodes advance together until the automaton accepts."""
        automaton = self._spec.automaton
        ids: list[list[int]] = [[] for _ in episodes]
        where = [automaton.start] * len(episodes)

        def follow(i: int, token: int) -> None:
            ids[i].append(token)
            where[i] = automaton.advance(where[i], token)

        while open_ := [i for i, state in enumerate(where) if state != automaton.accept]:
            asked = []
            for i in open_:
                legal = automaton.legal(where[i])
                if len(legal) == 1:
                    follow(i, int(legal[0]))
                else:
                    asked.append(i)
            if not asked:
                continue
            windows = [self._window(episodes[i], steps[i], ids[i]) for i in asked]
            for i, logits_A in zip(asked, self._ask(windows), strict=True):
                legal_A = automaton.next_QA[where[i]] >= 0
                follow(i, int(automaton.ids_A[self._choose(np.where(legal_A, logits_A, -np.inf))]))
        return [np.asarray(sequence, np.int32) for sequence in ids]

    def _window(self, episode: _Episode, step: Step, ids: Sequence[int]) -> Window:
        newest = dataclasses.replace(step, action_ids=np.asarray(ids, np.int32))
        text_ids = episode.text_ids if episode.text_ids is not None else _NO_IDS
        return Window(self.domain.index, text_ids, (*episode.steps, newest), seed=0, video=self.domain.video,
                      first_position=self.domain.first_position)

    def _ask(self, windows: Sequence[Window]) -> np.ndarray:
        """logits (n, A) of the next id of each window, over the ids of the automaton."""
        rows = [lay_out_prefix(window, self._size, 1 + self._patches, self._patches) for window in windows]
        found = []
        while rows:
            bucket = next((size for size in BUCKETS if size >= len(rows)), BUCKETS[-1])
            # Filling up a bucket costs its empty rows; a smaller one that leaves little over is cheaper.
            smaller = [size for size in BUCKETS if size < bucket and 2 * len(rows) < bucket]
            bucket = smaller[-1] if smaller else bucket
            taken, rows = rows[:bucket], rows[bucket:]
            batch = stack(taken + [blank_row(self._size)] * (bucket - len(taken)))
            found.append(np.asarray(self._logits(self._params, batch))[: len(taken)])
        return np.concatenate(found)

    def _choose(self, logits_A: np.ndarray) -> int:
        """The best of the finite logits, or one drawn from their softmax (Gumbel-max; Gumbel, 1954)."""
        if self.temperature == 0:
            return int(np.argmax(logits_A))
        return int(np.argmax(logits_A / self.temperature + self._random.gumbel(size=logits_A.shape)))


def _chosen(domains: Mapping[str, Any], name: str, directory: Any) -> Mapping[str, Any]:
    """The meta of the domain to act in."""
    if not name and len(domains) == 1:
        return next(iter(domains.values()))
    if name not in domains:
        raise ValueError(f"domain={name!r}: {directory} was trained on {', '.join(sorted(domains))}; name one of them")
    return domains[name]
