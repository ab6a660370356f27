"""Other instructions for an episode, to find out whether an agent reads its instruction.

    as-is        go to the red ball               the environment's own
    empty                                         none at all
    swap         pick up a grey box               of another episode of the level, or of another task of the suite
    paraphrase   walk to the ball that is red     the same in other words
    contradict   go to the blue key               names another object of the episode

An environment module makes the last two, by optional functions; each of them may be missing:

    paraphrase(instruction, random) -> str        "" if it has no other words for this one
    contradict(environment, random) -> str        "" if the episode has no other object to name
    goal_of(environment, instruction) -> goal     whether an action has fulfilled an instruction of any kind: a function
                                                  of the action, called after each step; None if it cannot tell
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agent_jax.envs import Action, EnvironmentModule

AS_IS, EMPTY, SWAP, PARAPHRASE, CONTRADICT = KINDS = ("as-is", "empty", "swap", "paraphrase", "contradict")
WRONG = (SWAP, CONTRADICT)  # they ask for something else than the environment

Goal = Callable[[Action], bool]

_STREAM = 2402  # separates these random numbers from others drawn from an episode's seed


def episode_random(seed: int) -> np.random.Generator:
    """The random numbers that choose the other instructions of the episode with this seed."""
    return np.random.default_rng([seed, _STREAM])


def hook(module: EnvironmentModule, name: str) -> Callable[..., Any] | None:
    """An optional function of an environment module; None if the module lacks it."""
    return getattr(module, name, None)


def check_kinds(module: EnvironmentModule, kinds: Sequence[str]) -> None:
    """Check that an environment has these kinds of instructions.

    Raises:
        ValueError: an unknown kind, one given twice, or one for which the module lacks its function.
    """
    if not kinds:
        raise ValueError(f"instruction: found no kind, expected some of {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"instruction: found {kind!r}, expected one of {', '.join(KINDS)}")
        if kinds.count(kind) > 1:
            raise ValueError(f"instruction: found {kind} {kinds.count(kind)} times, expected each kind once")
        if kind in (PARAPHRASE, CONTRADICT) and hook(module, kind) is None:
            possible = [one for one in KINDS if one not in (PARAPHRASE, CONTRADICT) or hook(module, one)]
            raise ValueError(f"instruction: the environment {module.NAME!r} has no {kind}: its module lacks the "
                             f"function {kind}(); choose among {', '.join(possible)}, or add the function "
                             "(agent_jax/envs/instructions.py)")


def content(instruction: str) -> tuple[str, ...]:
    """The words of an instruction without articles: "go to a red ball" asks for the same as "go to the red ball"."""
    return tuple(word for word in instruction.lower().split() if word not in ("a", "an", "the"))
