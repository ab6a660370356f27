"""Closed-loop evaluation during training, every `config.closed_loop.every` steps.

Only the greedy policy acts, on the seeds of the final evaluation. The run's state, data and random numbers are not
changed, so a run learns the same with and without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent_jax.config import ClosedLoopConfig, Config
from agent_jax.data.pipeline.domains import Domain
from agent_jax.envs import load
from agent_jax.envs.custom import same_environment, try_out
from agent_jax.evaluate.closed_loop import Report, check_domain, closed_loop
from agent_jax.models.agent import Params
from agent_jax.policy import Policy


@dataclasses.dataclass(frozen=True)
class ActingDomain:
    """A domain that acts in a simulator."""

    name: str  # in the report; "" if the run has one simulator
    domain: str  # "": the only domain
    config: ClosedLoopConfig  # with the environment and its episodes
    image_size: int  # pixels of the simulator's images; 0: the environment's default


class InTrainingEvaluation:
    """Evaluates the parameters of a training run in its simulators."""

    def __init__(self, config: Config, domains: Sequence[Domain]) -> None:
        """Check domains, simulators and tasks before the first training step.

        Raises:
            ValueError: a domain does not fit its environment, an unknown task, or a first instruction longer than
                `max_text`.
            ModuleNotFoundError, FileNotFoundError: the simulator is not installed, or its checkout is missing.
        """
        self._run = config
        named = {domain.name: domain for domain in domains}
        self._acting = [(acting, named[acting.domain or domains[0].name]) for acting in acting_domains(config)]
        self._policies: dict[str, Policy] = {}
        for acting, domain in self._acting:
            _check(acting, domain)

    def __call__(self, params: Params) -> dict[str, Report]:
        """{NAME: {TASK: {"greedy": results}}} of parameters on the host, as `ActingDomain.name`; on one device."""
        reports = {}
        for acting, domain in self._acting:
            policy = self._policies.get(domain.name)
            policy = policy.with_params(params) if policy else Policy(self._run, params, domain)
            self._policies[domain.name] = policy  # keeps the compiled functions
            reports[acting.name] = closed_loop(acting.config, {"greedy": policy}, domain=domain, baselines=False,
                                               image_size=acting.image_size, log=lambda line: None)
        return reports


def _check(acting: ActingDomain, domain: Domain) -> None:
    module = load(acting.config.environment)
    check_domain(domain, module)
    for task in acting.config.episodes:
        try_out(module, task, acting.image_size)
        with contextlib.closing(module.make(task, acting.image_size or module.IMAGE_SIZE)) as environment:
            environment.reset(seed=acting.config.seed)
            domain.text_ids(environment.instruction)


def acting_domains(config: Config) -> list[ActingDomain]:
    """The domains that act in a simulator, in the order of the config.

    Raises:
        ValueError: as `acting_domain`.
    """
    loop = config.closed_loop
    if loop.environment:
        return [ActingDomain("", acting_domain(config), loop, simulator_image_size(config, loop.environment))]
    found = []
    for name, episodes in loop.domains.items():
        demonstrations = config.data.demonstrations_of(name)
        of_domain = dataclasses.replace(loop, environment=demonstrations.environment, episodes=episodes, domains={})
        found.append(ActingDomain(name, name, of_domain, demonstrations.image_size))
    return found


def acting_domain(config: Config) -> str:
    """The name of the domain that acts in `config.closed_loop.environment`; "": the only domain.

    Of several domains, the one with the environment's name, else the one whose data are collected from it.

    Raises:
        ValueError: no such domain, or several.
    """
    domains, environment = config.data.domains, config.closed_loop.environment
    if len(domains) <= 1:
        return ""
    collected = [name for name, demonstrations in config.data.gathered.items()
                 if same_environment(demonstrations.environment, environment)]
    own = load(environment).NAME
    found = [own] if own in domains else collected
    if len(found) != 1:
        raise ValueError(f"config.closed_loop.environment={environment!r}: found the domains "
                         f"{', '.join(sorted(domains))}, expected one named {own!r}; rename the domain that acts in it")
    return found[0]


def simulator_image_size(config: Config, environment: str, domain: str = "") -> int:
    """Pixels of a simulator's images: as in the domain's demonstrations, or 0 (the default) if it has none from it.

    Args:
        config: of the run.
        environment: name of the simulator.
        domain: that acts in it; "": the run has one, or the one of `acting_domain`.
    """
    names = [domain] if domain else [*config.data.domains, ""]
    for demonstrations in map(config.data.demonstrations_of, names):
        if same_environment(demonstrations.environment, environment):
            return demonstrations.image_size
    return 0


def by_domain(reports: Mapping[str, Report]) -> dict[str, Any]:
    """The reports as they are written: {DOMAIN: {TASK: ...}}, or {TASK: ...} of the only simulator."""
    return dict(reports[""]) if set(reports) == {""} else dict(reports)


def by_task(success: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(domain, task, its figures by policy) of what `by_domain` returns; the domain is "" of the only simulator."""
    for name, inner in success.items():
        if all("ci95" in figures for figures in inner.values()):
            yield "", name, inner
        else:
            yield from ((name, task, policies) for task, policies in inner.items())
