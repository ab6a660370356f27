"""Checks of what a policy is called with; each refuses with what was found and what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from agent_jax.client.pictures import is_image
from agent_jax.config.checks import divisors
from agent_jax.data.pipeline.domains import Domain

History = Literal["sliding", "flushed"]


def check_ids(call: str, env_ids: Any) -> None:
    """Refuse one id in place of a sequence: a text is a sequence, too, of its letters."""
    if isinstance(env_ids, (str, bytes)) or not isinstance(env_ids, Iterable):
        arguments = "[image], [instruction], " if call == "act" else ""
        raise ValueError(f"{call}: found env_ids={env_ids!r}, expected a sequence of ids, one of each environment: "
                         f"{call}({arguments}[{env_ids!r}])")


def check_history(domain: Domain, history: str, flush_every: int, *, ahead: bool) -> None:
    """Refuse an unknown history, or options of the other one."""
    if history not in ("sliding", "flushed"):
        raise ValueError(f"history={history!r}: expected 'sliding' or 'flushed'")
    if flush_every and history == "sliding":
        raise ValueError(f"flush_every={flush_every} is of history='flushed', but found history='sliding'")
    if ahead and history == "flushed":
        raise ValueError("ahead is of history='sliding', but found history='flushed', which reads nothing twice")
    if not 0 <= flush_every <= domain.window:
        raise ValueError(f"flush_every={flush_every}: domain {domain.name!r} was trained on windows of "
                         f"{domain.window} steps, later positions were not; expected 1 to {domain.window}")


def actions_of_observation(domain: Domain, replan_every: int, flush_every: int, history: History) -> int:
    """How many actions are executed after each observation."""
    k, fits = domain.actions_per_image, divisors(domain.actions_per_image)
    if replan_every and replan_every not in fits:
        raise ValueError(f"replan_every={replan_every} does not divide the {k} actions per image that domain "
                         f"{domain.name!r} was trained with (actions_per_image={k}); use "
                         f"{' or '.join(map(str, fits))}, or 0 for all of them")
    if flush_every % k:
        raise ValueError(f"flush_every={flush_every} counts actions, {k} of which follow each image in domain "
                         f"{domain.name!r}; use a multiple of actions_per_image={k}")
    if 0 < replan_every < k and history == "flushed":
        raise ValueError(f"replan_every={replan_every} is below actions_per_image={k} of domain {domain.name!r}, so an "
                         "image that was read ends up amid actions; use history='sliding', or "
                         f"replan_every={k}")
    return replan_every or k


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is negative or not finite."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature={temperature} must be 0 (greedy) or positive, and finite")


def check_sequences(call: str, **given: Any) -> None:
    """Refuse one image or text in place of a sequence."""
    for name, found in given.items():
        if isinstance(found, (str, bytes, Mapping)) or not hasattr(found, "__len__") or (
                is_image(found) and getattr(found, "ndim", 3) == 3):
            raise ValueError(f"{call}: found {name} as one {type(found).__name__}, expected a sequence with one for "
                             "each text or class that is wanted, as [image]")
