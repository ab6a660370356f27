"""The agents that the page offers: a checkpoint with a domain and the simulator that it acts in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.in_training import acting_domains
from agent_jax.help_pages import help_page


@dataclasses.dataclass(frozen=True)
class ShownAgent:
    """A checkpoint in a simulator."""

    name: str
    checkpoint: str
    domain: str
    environment: str


def agents_of(checkpoint: str, environment: str = "", domain: str = "") -> list[ShownAgent]:
    """The agents of a checkpoint.

    Args:
        checkpoint: a workdir, its checkpoints directory, or one step.
        environment: in place of the run's own simulators.
        domain: to act in; "": of `environment` the only one with actions, else all that have a simulator.

    Raises:
        FileNotFoundError, DamagedCheckpointError: no checkpoint there, or a damaged one.
        ValueError: no such domain, or the run acts in no simulator.
    """
    trained = TrainedRun.load(checkpoint)
    if environment:
        found = [(trained.domain(domain).name, environment)]
    else:
        found = [(trained.domain(acting.domain).name, acting.config.environment)
                 for acting in acting_domains(trained.config)]
        found = [(name, simulator) for name, simulator in found if domain in ("", name)]
    if not found:
        raise ValueError(f"--checkpoint={checkpoint}: the run acts in no simulator"
                         f"{f' in domain {domain!r}' if domain else ''}; pass --env NAME"
                         + help_page("guides/demo.md", "Watch"))
    return [ShownAgent(f"{Path(checkpoint).name}: {name} in {simulator}", checkpoint, name, simulator)
            for name, simulator in found]
