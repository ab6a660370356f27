"""The policy of an exported folder: decodes the actions of episodes, each with its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agent_jax.convert.exported.codec import Codec
from agent_jax.convert.exported.network import Episode, check_finite
from agent_jax.convert.exported.prompted import Prompted
from agent_jax.convert.exported.row import Row, Step, lay_out_row


@dataclass(frozen=True)
class Prepared:
    """One observation, checked and ready."""

    step: Step
    text_ids: list[int]


class ExportedPolicy(Prompted):
    """Acts in any number of environments at once, each with its own history; answers prompts and classifies clips.

    Every action begins with the row of the last images and actions, from stored encodings, and is then decoded id by id
    with a KV cache, among the ids that the ActionSpec allows. A subclass has the network: `_tokens`, `_probabilities`
    and `_read`.
    """

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
        return lay_out_row(self.domain, text, visual, ids)

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
        check_finite(found)
        if self.temperature:
            found = found / self.temperature + self._random.gumbel(size=found.shape)
        return tokens[int(np.argmax(found))]
