"""A trained agent that acts, generates text and classifies clips: a checkpoint in, actions in the environment's units.

    policy = Policy.load("runs/babyai")
    policy.reset([0, 1])
    actions = policy.act(images, ["go to the red ball", "go to a key"], [0, 1])    # [{"action": 2}, {"action": 0}]

Where a domain has several cameras, `images` holds a mapping (or a tuple in their order) an environment:

    policy.act([{"rgb_static": image, "rgb_gripper": other}], ["open the drawer"], [0])

Where it was trained with k actions per image, `act` returns a list of k actions for each environment. They are executed
one after another before the next observation.

In domains whose windows end in a text or have a class, whatever domain the policy acts in:

    policy.say([clip], ["which object moves?"])[0].text
    policy.classify([clip])[0].label

What the agent sees is laid out by the same code as in training: instruction, then the last M steps, the newest without
its action. Each id of the action is among those that the ActionSpec's automaton allows, so an action always decodes.

    observation -prepare-> images, ids -encode-> visual tokens -row of the episode-> read, say -> ids -> action
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from agent_jax.checkpoints.restore import ActingCheckpoint, StepTaken, load_to_act
from agent_jax.client.pictures import is_image
from agent_jax.config import Config
from agent_jax.data.pipeline.domains import Domain
from agent_jax.hub import located_agent
from agent_jax.models.agent import Params
from agent_jax.policy.actor import Actor
from agent_jax.policy.arguments import (
    History,
    actions_of_observation,
    check_history,
    check_ids,
    check_sequences,
    check_temperature,
)
from agent_jax.policy.classifier import Classification, ClipClassifier
from agent_jax.policy.clips import Clip
from agent_jax.policy.domains import acting_domain, domains_of, prompted_domain
from agent_jax.policy.observation import Images, Prepared, camera_images, prepare
from agent_jax.policy.parameters import acting_params
from agent_jax.policy.surprise import MASKS, SurpriseMeter, mae_params
from agent_jax.policy.text import GeneratedText, TextGenerator
from agent_jax.runtime.compile_notice import announce_compilations

__all__ = ["History", "Images", "Policy", "Prepared"]


class Policy:
    """Acts in any number of environments at once, each with its own history; generates text and classifies clips.

    `prepare` may run in any thread; all else is for one caller at a time. A call that fails changes no episode.
    """

    def __init__(self, config: Config, params: Params, domain: Domain, *, domains: Mapping[str, Domain] | None = None,
                 temperature: float = 0.0, seed: int = 0, history: History = "sliding", flush_every: int = 0,
                 ahead: bool = False, replan_every: int = 0):
        """Create the policy of a model; it acts if the domain has actions.

        Args:
            config: of the run; `model.language.vocabulary_size` is set.
            params: its parameters.
            domain: ActionSpec, vocabulary, window and preprocessing.
            domains: all domains of the run by name, for `say` and `classify`; None: `domain` alone.
            temperature: of sampling among the legal ids; 0: the best one.
            seed: of sampling; what is drawn depends on it, the environment's id, its episode and step alone.
            history: "sliding": the last M steps are seen, as in training. "flushed": all since the last flush, as in
                the paper's rollout code; only what is new is read, so a step costs a fraction.
            flush_every: steps between flushes; 0: the domain's window. Flushed history only.
            ahead: sliding history only: after an action, begin at once to read what the next row begins with, while
                the caller executes it. The next action then needs what is new alone; the work is the same in all.
                Without effect for windows of one image, and for clips in a model with temporal attention.
            replan_every: actions that are returned for an observation, where the domain has k of them per image: a
                divisor of k; 0: k. With fewer than k, rows are still as in training, with k actions after each image.

        Raises:
            ValueError: a negative or infinite temperature, a window beyond the model's positions, an unknown history,
                a flush later than the window, where positions were not trained, or one amid the actions of an image,
                or `replan_every` that does not divide k.
        """
        check_temperature(temperature)
        check_history(domain, history, flush_every, ahead=ahead)
        self.replan_every = actions_of_observation(domain, replan_every, flush_every, history)
        self.domain, self.temperature, self.history = domain, temperature, history
        self.flush_every = (flush_every or domain.window) if history == "flushed" else 0
        self.taken: StepTaken | None = None  # the step of a checkpoint that was loaded
        self.params, self._dtype = acting_params(params, config.model.dtype), config.model.dtype
        self._mae_params, self._meter = mae_params(params, self._dtype), SurpriseMeter(config)
        self.domains = dict(domains or {domain.name: domain})
        self._config = config
        self._generators: dict[str, TextGenerator] = {}  # by domain; made when they are first used
        self._classifiers: dict[str, ClipClassifier] = {}
        announce_compilations()  # the first action takes as long as they do
        self._actor = None if domain.spec is None else Actor(
            config, domain, domain.spec, temperature=temperature, seed=seed, flushed=history == "flushed",
            flush_every=flush_every, ahead=ahead, replan_every=self.replan_every)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, domain: str = "", step: int | None = None, temperature: float = 0.0,
             seed: int = 0, history: History = "sliding", flush_every: int = 0, ahead: bool = False,
             replan_every: int = 0) -> Self:
        """The policy of a checkpoint, by its averaged parameters where the run kept some.

        Args:
            path: a workdir, its checkpoints directory, one step in it, or a folder of `convert to-pytorch`.
            domain: the domain to act in; may be empty if the run had one with actions. Without any, the policy only
                says and classifies.
            step: by default the one `path` names, or the newest undamaged one.
            temperature: as in `Policy`, like the rest.
            seed: as above.
            history: as above.
            flush_every: as above.
            ahead: as above.
            replan_every: as above.

        Raises:
            FileNotFoundError: no checkpoint there.
            DamagedCheckpointError: the named step is damaged, or every one. Without a name, damaged newer steps are
                passed over: `policy.taken` says which step was taken and which were not, and so does the log.
            ValueError: no such domain, or several and none named.
        """
        return cls.of(load_to_act(path, step), domain=domain, temperature=temperature, seed=seed, history=history,
                      flush_every=flush_every, ahead=ahead, replan_every=replan_every)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *, revision: str = "", domain: str = "",
                        temperature: float = 0.0, seed: int = 0, history: History = "sliding", flush_every: int = 0,
                        ahead: bool = False, replan_every: int = 0) -> Self:
        """The policy of ORG/NAME on the Hugging Face hub, which `convert push-to-hub` wrote, or of a path as `load`.

        Files are taken from the hub's cache (HF_HOME) or downloaded. Only JSON and safetensors are read; nothing in
        them is executed.

        Args:
            name: ORG/NAME, or a path; a path that exists comes first.
            revision: branch, tag or commit on the hub; by default main.
            domain: as in `load`, like the rest.
            temperature: as above.
            seed: as above.
            history: as above.
            flush_every: as above.
            ahead: as above.
            replan_every: as above.

        Raises:
            FileNotFoundError: neither a path nor an exported agent on the hub; says which, and what to do.
            ValueError: a damaged file; or as `load`.
        """
        return cls.load(located_agent(name, revision), domain=domain, temperature=temperature, seed=seed,
                        history=history, flush_every=flush_every, ahead=ahead, replan_every=replan_every)

    @classmethod
    def of(cls, loaded: ActingCheckpoint, *, domain: str = "", temperature: float = 0.0, seed: int = 0,
           history: History = "sliding", flush_every: int = 0, ahead: bool = False, replan_every: int = 0) -> Self:
        """The policy of a step that has been read; arguments and errors as `load`."""
        domains = domains_of(loaded)
        policy = cls(loaded.config, loaded.params, acting_domain(domains, domain, loaded.taken.directory),
                     domains=domains, temperature=temperature, seed=seed, history=history, flush_every=flush_every,
                     ahead=ahead, replan_every=replan_every)
        policy.taken = loaded.taken
        return policy

    def with_temperature(self, temperature: float, seed: int = 0) -> Policy:
        """The same parameters, acting otherwise; histories are not shared.

        Raises:
            ValueError: a negative or infinite temperature.
        """
        check_temperature(temperature)
        other = copy.copy(self)
        other.temperature = temperature
        if self._actor:
            other._actor = self._actor.with_temperature(temperature, seed)
        return other

    def with_params(self, params: Params) -> Policy:
        """Other parameters of the same shapes, acting alike with what is compiled already; histories are not shared."""
        other = self.with_temperature(self.temperature, self._actor.seed if self._actor else 0)
        other.params = acting_params(params, self._dtype)
        other._mae_params = mae_params(params, self._dtype)
        return other

    def reset(self, env_ids: Sequence[Any]) -> None:
        """Begin new episodes: forget what was seen under these ids."""
        check_ids("reset", env_ids)
        if self._actor:
            self._actor.reset(env_ids)

    def forget(self, env_ids: Sequence[Any]) -> None:
        """Drop all memory of these ids; unknown ones are passed over."""
        check_ids("forget", env_ids)
        if self._actor:
            self._actor.forget(env_ids)

    @property
    def last_ids(self) -> Mapping[Any, np.ndarray]:
        """The ids of each environment's last actions, by env_id."""
        return self._actor.last_ids if self._actor else {}

    def probability(self, env_id: Any, number: int = 0) -> float:
        """How probable the last action of an environment was: the product over its choices among legal ids.

        By the model's own logits, whatever the temperature of sampling.

        Args:
            env_id: the environment.
            number: of the action among those of the last observation, from 0.

        Raises:
            KeyError: the environment has had no action.
        """
        return self.check_acts("probability").probability(env_id, number)

    def choices(self, env_id: Any) -> list[dict[int, float]]:
        """The probabilities of the legal ids at each choice of the last action (or actions), by the model's own logits.

        Raises:
            KeyError: the environment has had no action.
        """
        return self.check_acts("choices").choices(env_id)

    def warm_up(self, batch_sizes: Sequence[int] = (1,)) -> None:
        """Compile everything that acting in batches of up to these sizes will need, histories of any length mixed."""
        self.check_acts("warm_up").decoder.warm_up(self.params, max(batch_sizes))

    def prepare(self, images: Images, instruction: str, state: Mapping[str, Any] | None = None) -> Prepared:
        """One observation of one environment, checked and ready; needs no device and may run in any thread.

        Args:
            images: an image uint8 (height, width, 3), or a mapping or tuple of the cameras'; resized as in training.
            instruction: the text.
            state: the StateSpec's values; needed if the domain has one.

        Raises:
            ValueError: says in words what is wrong.
        """
        self.check_acts("act")
        return prepare(self.domain, images, instruction, state)

    def step(self, prepared: Sequence[Prepared], env_ids: Sequence[Any]) -> list[Any]:
        """The next action of each episode, or its next actions, which are taken to be executed.

        Args:
            prepared: n observations.
            env_ids: n different ids, in any order; unknown ones begin an episode.

        Returns:
            n mappings of the ActionSpec's values, in the environment's units. If the domain has several actions per
            image: n lists of `replan_every` such mappings, in order; a list ends with the action that ends the episode.

        Raises:
            ValueError: sequences of unequal length, an id twice, or logits that are NaN.
        """
        actor = self._checked(prepared, env_ids)
        return [actor.decode(answer.ids) for answer in actor.answer(self.params, prepared, env_ids)]

    def follow(self, prepared: Sequence[Prepared], env_ids: Sequence[Any], action_ids: Sequence[np.ndarray]
               ) -> list[np.ndarray]:
        """A step with given actions: what the policy would have said of each id, after the given ones before it.

        Args:
            prepared: n observations.
            env_ids: n different ids.
            action_ids: n whole actions as ids, which become history; `replan_every` of them, joined, where the domain
                has several actions per image.

        Returns:
            n arrays f32 (choices, A) over `domain.spec.automaton.ids_A`: the logits of each choice among several legal
            ids, -inf where an id is illegal.

        Raises:
            ValueError: as `step`; or an action that the automaton does not accept.
        """
        if len(action_ids) != len(env_ids):
            raise ValueError(f"follow: found {len(action_ids)} actions and {len(env_ids)} env_ids, expected one each")
        answers = self._checked(prepared, env_ids).answer(self.params, prepared, env_ids, action_ids)
        return [answer.logits_JA[np.isfinite(answer.logits_JA).any(axis=1)] for answer in answers]

    def act(self, images: Sequence[Images] | np.ndarray, instructions: Sequence[str], env_ids: Sequence[Any],
            states: Sequence[Mapping[str, Any]] | None = None) -> list[Any]:
        """`prepare`, then `step`.

        Args:
            images: n uint8 images (height, width, 3), what is seen now: arrays of NumPy, jax or torch, or RGB pictures
                of Pillow. With several cameras, n mappings of them by `domain.camera_names`, or n tuples in that order.
            instructions: n texts.
            env_ids: n different ids, in any order; unknown ones begin an episode.
            states: n mappings of the StateSpec's values; needed if the domain has one.

        Returns:
            n mappings of the ActionSpec's values, or n lists of them, as `step`.

        Raises:
            ValueError: sequences of unequal length, an id twice, or an observation that is not as expected.
        """
        self.check_acts("act")
        check_ids("act", env_ids)
        given: dict[str, Any] = {"image": images, "instruction": instructions, "state": states}
        for name, found in given.items():
            one = isinstance(found, (str, Mapping)) or not (found is None or hasattr(found, "__len__"))
            if one or (name == "image" and is_image(images) and getattr(images, "ndim", 3) == 3):
                raise ValueError(f"act: found one {name}, a {type(found).__name__}, expected a sequence with one of "
                                 "each environment: act([image], [instruction], [env_id]), and [state] where there is "
                                 "one")
        n = len(env_ids)
        if not len(images) == len(instructions) == n or (states is not None and len(states) != n):
            raise ValueError(f"act: found {len(images)} images, {len(instructions)} instructions and {n} env_ids"
                             f"{'' if states is None else f' and {len(states)} states'}, expected one each")
        return self.step([self.prepare(images[i], instructions[i], None if states is None else states[i])
                          for i in range(n)], env_ids)

    def say(self, images: Sequence[Clip], prompts: Sequence[str], *, domain: str = "", max_tokens: int = 0,
            temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> list[GeneratedText]:
        """Generate the answers to prompts about images or clips. No episode changes.

        Args:
            images: n images uint8 (height, width, 3), or n clips: sequences or arrays of 1 to `window` images, in order
                of time. With several cameras a mapping or tuple of them in place of each image.
            prompts: n texts, as the instructions of the training data: a question, or what precedes a caption.
            domain: of the layout "answer"; may be empty if the run had one.
            max_tokens: of a text, </s> included; 0: the domain's `max_answer`, which is the most.
            temperature: of sampling; 0: the most probable token.
            top_p: sample among the fewest most probable tokens that together have this probability; 1: all.
            seed: of sampling; what is drawn depends on it and on the prompt's number alone.

        Returns:
            n texts with their ids, log-probability, and whether they are complete.

        Raises:
            ValueError: sequences of unequal length, a domain without text, a prompt or clip that is too long, an image
                that is not as expected, `max_tokens`, `temperature` or `top_p` out of range, or logits that are NaN.
        """
        check_sequences("say", images=images, prompts=prompts)
        if len(images) != len(prompts):
            raise ValueError(f"say: found {len(images)} images or clips and {len(prompts)} prompts, expected one each")
        chosen = prompted_domain(self.domains, "answer", "say", domain, self.domain)
        if chosen.name not in self._generators:
            self._generators[chosen.name] = TextGenerator(self._config, chosen)
        return self._generators[chosen.name](self.params, images, prompts, max_tokens=max_tokens,
                                             temperature=temperature, top_p=top_p, seed=seed)

    def classify(self, images: Sequence[Clip], *, domain: str = "") -> list[Classification]:
        """The classes of images or clips, by the model's class head.

        Args:
            images: as in `say`.
            domain: of the layout "label"; may be empty if the run had one.

        Returns:
            n classes with the probabilities of all classes.

        Raises:
            ValueError: a domain without classes, a clip that is too long, an image that is not as expected, or logits
                that are NaN.
        """
        check_sequences("classify", images=images)
        chosen = prompted_domain(self.domains, "label", "classify", domain, self.domain)
        if chosen.name not in self._classifiers:
            self._classifiers[chosen.name] = ClipClassifier(self._config, chosen)
        return self._classifiers[chosen.name](self.params, images)

    def surprise(self, images: Sequence[Images], *, masks: int = MASKS, seed: int = 0) -> np.ndarray:
        """How badly the model reconstructs images, as the MAE loss of training: high in places it has not seen.

        Args:
            images: n images, or n mappings or tuples of the cameras' images, as in `act`. No episode changes.
            masks: number of random masks whose errors are averaged.
            seed: of the masks, which are the same for every image.

        Returns:
            f32 (n, cameras): mean squared error of the hidden patches, in normalised pixels.

        Raises:
            ValueError: an image that is not as expected, `masks` below 1, or a policy without its MAE decoder.
        """
        check_sequences("surprise", images=images)
        return self.surprise_of([camera_images(self.domain, one, "surprise") for one in images], masks=masks, seed=seed)

    def surprise_of(self, frames: Sequence[Sequence[np.ndarray]], *, masks: int = MASKS, seed: int = 0) -> np.ndarray:
        """`surprise` of n observations that are prepared already (`Prepared.frames`)."""
        params = {"vision": self.params["vision"], **self._mae_params()}
        errors = self._meter(params, [image for one in frames for image in one], masks=masks, seed=seed)
        return errors.reshape(len(frames), -1)

    def check_acts(self, call: str) -> Actor:
        """What acts; refuses `call`, which needs actions, in a domain without any.

        Raises:
            ValueError: names the domains that have some.
        """
        if self._actor is None:
            acting = [name for name, domain in self.domains.items() if domain.spec]
            raise ValueError(f"{call}: domain {self.domain.name!r} has the layout {self.domain.layout!r}, which "
                             "predicts no actions; load the policy with a domain of the layout 'actions' "
                             f"({', '.join(acting) or 'this run had none'})")
        return self._actor

    def _checked(self, prepared: Sequence[Prepared], env_ids: Sequence[Any]) -> Actor:
        """What acts, for one observation of each of different environments."""
        actor = self.check_acts("act")
        if len(prepared) != len(env_ids):
            raise ValueError(f"act: found {len(prepared)} observations and {len(env_ids)} env_ids, expected one each")
        if len(set(env_ids)) != len(env_ids):
            raise ValueError(f"act: env_ids={list(env_ids)} hold an id twice")
        return actor
