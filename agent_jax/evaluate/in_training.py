"""Closed-loop evaluation during training, every `config.closed_loop.every` steps.

Only the greedy policy acts, on the seeds of the final evaluation. The run's state, data and random numbers are not
changed, so a run learns the same with and without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from agent_jax.config import Config
from agent_jax.data.pipeline.domains import Domain
from agent_jax.envs import load
from agent_jax.envs.custom import same_environment, try_out
from agent_jax.evaluate.closed_loop import Report, check_domain, closed_loop
from agent_jax.models.agent import Params
from agent_jax.policy import Policy


class InTrainingEvaluation:
    """Evaluates the parameters of a training run in the simulator."""

    def __init__(self, config: Config, domains: Sequence[Domain]) -> None:
        """Check domain, simulator and tasks before the first training step.

        Args:
            config: of the run; `closed_loop.environment` is set.
            domains: of the run.

        Raises:
            ValueError: the domain does not fit the environment, an unknown task, or a first instruction longer than
                `max_text`.
            ModuleNotFoundError, FileNotFoundError: the simulator is not installed, or its checkout is missing.
        """
        name = acting_domain(config)
        self._domain = next(domain for domain in domains if domain.name == name or not name)
        module = load(config.closed_loop.environment)
        check_domain(self._domain, module)
        self._image_size = simulator_image_size(config, config.closed_loop.environment)
        for task in config.closed_loop.episodes:
            try_out(module, task, self._image_size)
            with contextlib.closing(module.make(task, self._image_size or module.IMAGE_SIZE)) as environment:
                environment.reset(seed=config.closed_loop.seed)
                self._domain.text_ids(environment.instruction)
        self._run = config
        self._policy: Policy | None = None

    def __call__(self, params: Params) -> Report:
        """{TASK: {"greedy": results}} of parameters on the host; the policy acts on one device."""
        policy = self._policy.with_params(params) if self._policy else Policy(self._run, params, self._domain)
        self._policy = policy  # keeps the compiled functions
        return closed_loop(self._run.closed_loop, {"greedy": policy}, domain=self._domain, baselines=False,
                           image_size=self._image_size, log=lambda line: None)


def acting_domain(config: Config) -> str:
    """The name of the domain that acts in `config.closed_loop.environment`; "": the only domain.

    Of several domains, the one with the environment's name, else the one whose data are collected from it.

    Raises:
        ValueError: no such domain, or several.
    """
    domains, environment = config.data.domains, config.closed_loop.environment
    if len(domains) <= 1:
        return ""
    collected = [name for name, entry in domains.items()
                if not entry.path and same_environment(config.data.demonstrations.environment, environment)]
    own = load(environment).NAME
    found = [own] if own in domains else collected
    if len(found) != 1:
        raise ValueError(f"config.closed_loop.environment={environment!r}: found the domains "
                         f"{', '.join(sorted(domains))}, expected one named {own!r}; rename the domain that acts in it")
    return found[0]


def simulator_image_size(config: Config, environment: str) -> int:
    """Pixels of a simulator's images: as in the run's demonstrations, or 0 (the default) if it has none from it."""
    demonstrations = config.data.demonstrations
    return demonstrations.image_size if same_environment(demonstrations.environment, environment) else 0
