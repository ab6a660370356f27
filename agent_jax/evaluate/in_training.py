"""Acting in the simulator in the course of a training run, every `config.closed_loop.every` steps.

The greedy policy alone, on the seeds of the final evaluation. Nothing here touches the run's state, its data or its
random numbers, so a run learns the same with and without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from agent_jax.config import Config
from agent_jax.data.pipeline.domains import Domain
from agent_jax.envs import load, same, try_out
from agent_jax.envs.workers.simulator_pool import make
from agent_jax.evaluate.closed_loop import Report, check_domain, closed_loop
from agent_jax.models.agent import Params
from agent_jax.policy import Policy


class InTraining:
    """Evaluates parameters as they come to be; checked before the first step."""

    def __init__(self, config: Config, domains: Sequence[Domain]) -> None:
        """Of a run.

        Args:
            config: of the run; `closed_loop.environment` is set.
            domains: of the run.

        Raises:
            ValueError: the domain does not fit the environment, an unknown task, or its first instruction is beyond
                `max_text`.
            ModuleNotFoundError, FileNotFoundError: the simulator is not installed, or not where it should be.
        """
        name = acting_domain(config)
        self._domain = next(domain for domain in domains if domain.name == name or not name)
        module = load(config.closed_loop.environment)
        check_domain(self._domain, module)
        self._image_size = simulator_image_size(config, config.closed_loop.environment)
        for task in config.closed_loop.episodes:  # an unknown one, or words that are always too many, are told now
            try_out(module, task, self._image_size)
            with contextlib.closing(make(module, task, self._image_size)) as environment:
                environment.reset(seed=config.closed_loop.seed)
                self._domain.text_ids(environment.instruction)
        self._run = config
        self._policy: Policy | None = None

    def __call__(self, params: Params) -> Report:
        """{TASK: {"greedy": figures}} of parameters on the host."""
        # The policy puts on one device what it needs; the others have the training's arrays and are idle.
        policy = self._policy.with_params(params) if self._policy else Policy(self._run, params, self._domain)
        self._policy = policy  # it keeps what was compiled
        return closed_loop(self._run.closed_loop, {"greedy": policy}, domain=self._domain, baselines=False,
                           image_size=self._image_size, say=lambda line: None)


def acting_domain(config: Config) -> str:
    """The name of the domain that acts in `config.closed_loop.environment`; "": the only one.

    Of several, the one named like the environment, or else the one whose data is gathered from it.

    Raises:
        ValueError: several domains, and none of them can be told to be the one.
    """
    domains, environment = config.data.domains, config.closed_loop.environment
    if len(domains) <= 1:
        return ""
    gathered = [name for name, entry in domains.items()
                if not entry.path and same(config.data.demonstrations.environment, environment)]
    own = load(environment).NAME
    found = [own] if own in domains else gathered
    if len(found) != 1:
        raise ValueError(f"config.closed_loop.environment={environment!r}: of the domains {', '.join(sorted(domains))} "
                         f"none has its name; name the domain that is to act in it {own!r}")
    return found[0]


def simulator_image_size(config: Config, environment: str) -> int:
    """Pixels of what a simulator shows: as in the run's demonstrations of it; 0, its default, if there are none."""
    demonstrations = config.data.demonstrations
    return demonstrations.image_size if same(demonstrations.environment, environment) else 0
