"""One agent in one simulator, episode by episode; the agent or a person acts. Results are JSON for the page.

    begin -> frame -> agent_step | person_step -> frame -> ... -> over, or another begin: the person's steps are stored

A person's action becomes the agent's history as its own does (`Policy.follow`), so the agent goes on from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions.specs import TERMINAL_KEY
from agent_jax.data.pipeline.layout import Step, Window
from agent_jax.demo.controls import action_of, controls_of
from agent_jax.demo.demonstrations import AGENT_WEIGHT, PERSON_WEIGHT, Demonstrations
from agent_jax.envs import tasks_of
from agent_jax.envs.instructions import CONTRADICT, PARAPHRASE, hook
from agent_jax.envs.workers.simulator_pool import EpisodeStatus, SimulatorPool
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.closed_loop import check_domain
from agent_jax.evaluate.in_training import simulator_image_size
from agent_jax.policy.observation import Prepared
from agent_jax.view.attention import ActionAttention, heat_pictures
from agent_jax.view.page import image_uri

_ID, _SLOT = "demo", 0  # of the episode, for the policy and for the simulator
_MOST_SHOWN = 8  # ids of a choice
_MASKS = 4  # of the surprise, for speed


@dataclasses.dataclass
class _Episode:
    task: str
    seed: int
    reads: str  # the instruction that the agent reads
    own: str  # the environment's
    status: EpisodeStatus
    window: list[Step]  # the agent's last steps
    steps: list[dict[str, Any]]  # of the record
    person: bool = False  # whether a person acted


class Session:
    """An agent, its simulator, and the current episode; all calls from one thread."""

    def __init__(self, trained: TrainedRun, environment: str, directory: Path, *, domain: str = "") -> None:
        """Load policy and simulator.

        Args:
            trained: the checkpoint.
            environment: as for `envs.load`.
            directory: of the stored demonstrations.
            domain: to act in; "": the only one with actions.

        Raises:
            ValueError: no such domain, or its ActionSpec, state or cameras are not those of the environment.
            ModuleNotFoundError, FileNotFoundError: the simulator is not installed.
        """
        self._domain = trained.domain(domain)
        image_size = simulator_image_size(trained.config, environment, self._domain.name)
        self._pool = SimulatorPool(environment, image_size)
        self.module = self._pool.module
        check_domain(self._domain, self.module)
        k = self._domain.actions_per_image
        self._policy = trained.policy(self._domain.name, replan_every=1 if k > 1 else 0)
        self._params = trained.params()
        self._attention = ActionAttention(trained.config.model, self._domain) if k == 1 else None
        self.demonstrations = Demonstrations(directory, self.module, image_size or self.module.IMAGE_SIZE)
        self._stored = (*self.module.CAMERAS, *(self.module.STATE_SPEC.fields if self.module.STATE_SPEC else ()))
        self._episode: _Episode | None = None

    def describe(self) -> dict[str, Any]:
        """What the page needs to know: tasks, controls, and whether a step waits for a key."""
        controls = controls_of(self.module)
        return {"environment": self.module.NAME, "tasks": tasks_of(self.module, list(self.module.TASKS)),
                "controls": controls, "by_key": len(controls) == 1 and controls[0]["kind"] == "choice",
                "domain": self._domain.name}

    def begin(self, task: str, seed: int, instruction: str = "") -> dict[str, Any]:
        """Begin an episode; the last one is stored if a person acted in it.

        Args:
            task: of the environment.
            seed: of the episode.
            instruction: that the agent reads; "": the environment's.

        Raises:
            ValueError: an unknown task, or an instruction that is longer than the agent reads.
        """
        if instruction:
            self._domain.text_ids(instruction)
        saved = self.store()
        status = self._pool.begin(_SLOT, task, seed, [instruction] if instruction else [])
        reads = instruction or status.instruction
        self._episode = _Episode(task, seed, reads, status.instruction, status, [], [])
        self._policy.reset([_ID])
        return {**self._frame(), "instructions": self._instructions(task, seed, status.instruction), "saved": saved}

    def agent_step(self, *, attention: bool = False, surprise: bool = False) -> dict[str, Any]:
        """Let the agent act.

        Args:
            attention: whether the frame has where the agent looked.
            surprise: whether it has the surprise.

        Raises:
            ValueError: no episode, or it is over.
        """
        _, prepared = self._running()
        (found,) = self._policy.step([prepared], [_ID])
        return self._acted(found[0] if isinstance(found, list) else found, prepared, AGENT_WEIGHT, attention, surprise)

    def person_step(self, values: Mapping[str, Any], *, attention: bool = False, surprise: bool = False
                    ) -> dict[str, Any]:
        """Take a person's action; the frame shows what the agent would have done. Arguments, errors as above."""
        episode, prepared = self._running()
        assert self._domain.spec is not None
        action = action_of(self.module.ACTION_SPEC, values)
        ids = self._domain.spec.encode(action)
        self._policy.follow([prepared], [_ID], [ids])
        episode.person = True
        return self._acted(action, prepared, PERSON_WEIGHT, attention, surprise)

    def store(self) -> str:
        """Store the current episode if a person acted in it; returns the data set's directory, or ""."""
        episode = self._episode
        if episode is None or not episode.person:
            return ""
        path = self.demonstrations.add(episode.task, episode.seed, episode.reads, episode.steps)
        episode.person, episode.steps = False, []
        return str(path)

    def close(self) -> None:
        """Store what a person did, and close the simulator."""
        self.store()
        self._pool.close()

    def frame(self) -> dict[str, Any] | None:
        """The current frame, without what the last action looked at; None before the first episode."""
        return self._frame() if self._episode else None

    def _running(self) -> tuple[_Episode, Prepared]:
        episode = self._episode
        if episode is None or episode.status.over:
            raise ValueError("the episode is over; begin another one" if episode else "no episode; begin one")
        if episode.status.instruction != episode.own:  # of a chain: the history of another instruction does not count
            if episode.reads == episode.own:
                episode.reads = episode.status.instruction
            episode.own = episode.status.instruction
            episode.window = []
            self._policy.reset([_ID])
        seen, state = episode.status.observation, self._domain.state
        images = {name: seen[name] for name in self._domain.camera_names}
        values = {key: seen[key] for key in state.spec.fields} if state else None
        return episode, self._policy.prepare(images, episode.reads, values)

    def _acted(self, action: Mapping[str, Any], prepared: Prepared, weight: float, attention: bool, surprise: bool
               ) -> dict[str, Any]:
        """The frame after an action, which is taken in the simulator."""
        episode, spec = self._episode, self._domain.spec
        assert episode is not None
        assert spec is not None
        ids = self._policy.last_ids[_ID]
        # A copy: simulators draw into the same buffer again.
        observation = {key: np.array(episode.status.observation[key]) for key in self._stored}
        step = Step(prepared.frames, prepared.state_ids, ids, action_choices=spec.choices(ids))
        episode.window = [*episode.window, step][-self._domain.window :]
        seen = {"who": "person" if weight else "agent", "choices": self._choices(ids), "images": [], "surprise": None,
                "action": TERMINAL_KEY if action.get(TERMINAL_KEY, False) else self.module.action_name(action)}
        if attention and self._attention:
            window = Window(self._domain.index, prepared.text_ids, tuple(episode.window), 0, video=self._domain.video,
                            first_position=self._domain.first_position)
            heat = self._attention.heat(self._params, window)[-len(prepared.frames) :]
            seen["images"] = heat_pictures(np.stack(prepared.frames), heat)
        if surprise:
            seen["surprise"] = float(self._policy.surprise_of([prepared.frames], masks=_MASKS).mean())
        episode.status = self._pool.step(_SLOT, action)
        if not action.get(TERMINAL_KEY, False):
            episode.steps.append({"observation": observation, **action, "action_weight": weight,
                                  "reward": float(episode.status.success)})
        saved = self.store() if episode.status.over else ""
        return {**self._frame(), "seen": seen, "saved": saved}

    def _choices(self, ids: np.ndarray) -> list[list[dict[str, Any]]]:
        """The most probable ids of each choice of the last action, and the one that was taken."""
        assert self._domain.spec is not None
        taken = [int(token) for token, choice in zip(ids, self._domain.spec.choices(ids), strict=True) if choice >= 0]
        found = []
        for number, odds in enumerate(self._policy.choices(_ID)[: len(taken)]):
            best = sorted(odds, key=lambda token: -odds[token])[:_MOST_SHOWN]
            shown = best if taken[number] in best else [*best[:-1], taken[number]]
            found.append([{"token": self._domain.vocabulary.token(token), "probability": odds[token],
                           "taken": token == taken[number]} for token in shown])
        return found

    def _frame(self) -> dict[str, Any]:
        episode = self._episode
        assert episode is not None
        status = episode.status
        typed = episode.reads != episode.own
        success: bool | None = status.done[0] if typed and status.done else None if typed else status.success
        return {"images": [image_uri(np.asarray(status.observation[name])) for name in self.module.CAMERAS],
                "task": episode.task, "seed": episode.seed, "instruction": episode.own, "reads": episode.reads,
                "step": status.steps, "over": status.over, "success": success, "seen": None,
                "demonstrations": {"episodes": self.demonstrations.episodes, "steps": self.demonstrations.steps}}

    def _instructions(self, task: str, seed: int, own: str) -> list[str]:
        """Instructions to choose among: the episode's own, and other ones that its environment can make."""
        # It takes another simulator, which some cannot have in this process.
        kinds = [kind for kind in (CONTRADICT, PARAPHRASE) if hook(self.module, kind) and not self.module.ONE_A_PROCESS]
        made = [self._pool.reword(task, seed, kind, ()).instruction for kind in kinds]
        return [*dict.fromkeys(text for text in (own, *made) if text and self._can_be_read(text))]

    def _can_be_read(self, text: str) -> bool:
        try:
            self._domain.text_ids(text)
        except ValueError:  # too long
            return False
        return True
