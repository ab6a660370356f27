"""Acts in the episodes of one domain, each with its own history.

observation, episode --> Request --BatchedDecoder--> Response --> action, and the episode with one more step
"""

from __future__ import annotations

import copy
import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from agent_jax.actions.codec import BoundSpec
from agent_jax.actions.specs import TERMINAL_KEY
from agent_jax.config import Config
from agent_jax.data.pipeline.domains import Domain
from agent_jax.models.agent import Params
from agent_jax.policy.batched_decoder import BatchedDecoder, Response
from agent_jax.policy.decoding_tables import DecodingTables
from agent_jax.policy.history import (
    ChunkSizes,
    EpisodeHistory,
    HistoryStep,
    Request,
    join_decisions,
    next_request,
    request_ahead,
)
from agent_jax.policy.observation import Prepared


class Actor:
    """The episodes of a policy and what decodes their actions; holds no parameters."""

    def __init__(self, config: Config, domain: Domain, spec: BoundSpec, *, temperature: float, seed: int, flushed: bool,
                 flush_every: int, ahead: bool, replan_every: int) -> None:
        """Prepare; the first action compiles. Arguments as of `Policy`, but `replan_every` is never 0.

        Raises:
            ValueError: an ActionSpec with one action only, or a window that does not fit into the model's positions.
        """
        self.temperature, self.seed = temperature, seed
        self.episodes: dict[Any, EpisodeHistory] = {}
        self.last_ids: dict[Any, np.ndarray] = {}  # of the last step's actions, by env_id
        self._last_logits: dict[Any, np.ndarray] = {}  # of their choices
        self._domain, self._spec, self._flushed = domain, spec, flushed
        k = domain.actions_per_image
        self._joined = k // replan_every  # decisions that make one step of a row
        self._most_steps = (flush_every or domain.window) // k  # of a row, by its images
        self._visual_tokens = 1 + config.model.vision.patches
        self._choices = DecodingTables.of(spec.automaton.repeated(replan_every))
        if not self._choices.most:
            raise ValueError(f"domain {domain.name!r}: its ActionSpec has one action only, so there is nothing to "
                             "choose; act without a policy")
        video = domain.video and config.model.vision.temporal_attention  # each image changes the encoding of its clip
        self._grows = flushed and not video
        self._ahead = ahead and not video and self._most_steps > 1
        self._sizes = ChunkSizes.of(domain, self._visual_tokens, config.model.language.positions, ahead=self._ahead)
        self.decoder = BatchedDecoder(config, domain, self._choices, self._sizes, grows=self._grows, ahead=self._ahead)

    def with_temperature(self, temperature: float, seed: int) -> Actor:
        """Another temperature and seed with what is compiled already, and no episodes."""
        other = copy.copy(self)
        other.temperature, other.seed = temperature, seed
        other.episodes, other.last_ids, other._last_logits = {}, {}, {}
        return other

    def reset(self, env_ids: Sequence[Any]) -> None:
        """Begin new episodes."""
        for env_id in env_ids:
            old = self.episodes.get(env_id)
            self.episodes[env_id] = EpisodeHistory(number=old.number + (old.time > 0) if old else 0)

    def forget(self, env_ids: Sequence[Any]) -> None:
        """Drop all memory of these ids; unknown ones are passed over."""
        for env_id in env_ids:
            self.episodes.pop(env_id, None)
            self.last_ids.pop(env_id, None)
            self._last_logits.pop(env_id, None)

    def decode(self, ids: np.ndarray) -> dict[str, Any] | list[dict[str, Any]]:
        """What `Policy.step` returns for one environment."""
        actions = [self._spec.decode(action) for action in self._spec.automaton.split(ids)]
        if self._domain.actions_per_image == 1:
            return actions[0]
        last = next((number for number, action in enumerate(actions) if TERMINAL_KEY in action), len(actions))
        return actions[: last + 1]

    def answer(self, params: Params, prepared: Sequence[Prepared], env_ids: Sequence[Any],
               taught: Sequence[np.ndarray] | None = None) -> list[Response]:
        """The next actions of episodes, which are remembered; if it fails, no episode changes.

        Args:
            params: as acting reads them.
            prepared: n observations.
            env_ids: n different ids; an unknown one begins an episode.
            taught: n actions that are taken instead of decoded ones.

        Raises:
            ValueError: logits that are not finite, or an action that the automaton does not accept.
        """
        episodes = [self.episodes.get(env_id, EpisodeHistory()) for env_id in env_ids]
        requests = [self.request(env_id, episode, seen, None if taught is None else taught[i])
                    for i, (env_id, episode, seen) in enumerate(zip(env_ids, episodes, prepared, strict=True))]
        for env_id, episode in zip(env_ids, episodes, strict=True):
            if self._grows and episode.kept is not None:  # given away with the request: if it fails, all is read again
                self.episodes[env_id] = dataclasses.replace(episode, kept=None, used=0)
        answers = self.decoder.answer(params, requests)
        unsound = [env_id for env_id, answer in zip(env_ids, answers, strict=True) if not answer.sound]
        if unsound:
            raise ValueError(f"act: the model's logits for env_ids={unsound} are NaN or infinite, expected finite "
                             "numbers: its parameters are damaged or their training diverged; load another step")
        after = [self._after(*one) for one in zip(episodes, prepared, requests, answers, strict=True)]
        for env_id, episode, answer in zip(env_ids, self._read_ahead(params, after), answers, strict=True):
            self.episodes[env_id] = episode
            self.last_ids[env_id], self._last_logits[env_id] = answer.ids, answer.logits_JA
        return answers

    def request(self, env_id: Any, episode: EpisodeHistory, seen: Prepared, taught: np.ndarray | None) -> Request:
        """What is to be read and decoded for the next action of an episode."""
        request = next_request(self._domain, self._sizes, self._visual_tokens, episode, seen, self._choices.first_ids,
                               self._most_steps, flushed=self._flushed, joined=self._joined)
        kept = (episode.kept or self.decoder.blank_cache()) if self._grows else episode.kept if request.used else None
        noise_JA = None
        if self.temperature:  # Gumbel-max (Gumbel, 1954): logits / temperature + noise, times temperature
            rng = np.random.default_rng([self.seed, zlib.crc32(repr(env_id).encode()), episode.number, episode.time])
            noise_JA = self.temperature * rng.gumbel(size=(self._choices.most, len(self._spec.automaton.ids_A)))
        return dataclasses.replace(request, noise_JA=noise_JA, taught_J=self._choices.columns(taught), kept=kept)

    def _after(self, episode: EpisodeHistory, seen: Prepared, request: Request, answer: Response) -> EpisodeHistory:
        step = HistoryStep(seen.frames if self.decoder.clips else (), answer.tokens, seen.state_ids, answer.ids)
        if self._flushed:
            steps = (*request.past, step)
        else:
            steps = (*episode.steps, step)
            steps = steps[max(0, len(steps) - (self._most_steps - 1) * self._joined) :]
        used = request.used + len(request.token_C) if self._grows else 0
        return EpisodeHistory(episode.number, episode.time + 1, seen.text_ids, steps, answer.kept, used)

    def _read_ahead(self, params: Params, episodes: Sequence[EpisodeHistory]) -> Sequence[EpisodeHistory]:
        """The episodes, with what their next rows begin with being read."""
        if not self._ahead:
            return episodes
        rows = [dataclasses.replace(episode, steps=join_decisions(episode.steps, self._joined)) for episode in episodes]
        begun = [number for number, row in enumerate(rows) if row.steps]
        requests = [request_ahead(self._domain, self._sizes, self._visual_tokens, rows[number]) for number in begun]
        found = list(episodes)
        for number, request, kept in zip(begun, requests, self.decoder.read_ahead(params, requests), strict=True):
            found[number] = dataclasses.replace(episodes[number], kept=kept, used=len(request.token_C))
        return found

    def probability(self, env_id: Any, number: int) -> float:
        """As `Policy.probability`."""
        ids, logits_JA = self.last_ids[env_id], self._last_logits[env_id]
        columns_J = self._choices.columns(ids)
        choices = [int((self._spec.choices(action) >= 0).sum()) for action in self._spec.automaton.split(ids)]
        first, odds = sum(choices[:number]), 1.0
        for place in range(first, first + choices[number]):
            logits_A = logits_JA[place]
            odds *= float(1 / np.exp(logits_A.astype(np.float64) - logits_A[columns_J[place]]).sum())
        return odds

    def choices(self, env_id: Any) -> list[dict[int, float]]:
        """As `Policy.choices`."""
        ids_A, found = self._spec.automaton.ids_A, []
        for logits_A in self._last_logits[env_id]:
            legal_A = np.isfinite(logits_A)
            if legal_A.any():
                odds_A = np.exp(logits_A[legal_A].astype(np.float64) - logits_A[legal_A].max())
                found.append(dict(zip(np.asarray(ids_A)[legal_A].tolist(), (odds_A / odds_A.sum()).tolist(),
                                      strict=True)))
        return found
