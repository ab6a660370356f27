"""Idle play is left out a chunk of `window` steps at a time, so that windows of training are kept or dropped whole.

    tokens of an action   0 0 0 1 | 3 3 2 2 | 1 2 2 2 | 0 0 0 0 | 2 2     window 4
    chunk's sum           1         10        7         0         4
    kept: more than 1 a step        xxxxxxxxx xxxxxxxxx           xxx     -> stretches [4, 12) and [16, 18)

The rule is of the paper's games: a chunk of 9 frames is kept if it holds more than 9 action tokens. Delimiters, which
even an idle action has, are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent_jax.actions import ActionSpec


def said_tokens(spec: ActionSpec, action: Mapping[str, Any]) -> int:
    """How many tokens the action has between its delimiters.

    Raises:
        ValueError: a value is not a number or not one of the spec's; names the key.
    """
    count = 0
    for part in spec.parts:
        value = action[part.key] if part.index is None else action[part.key][part.index]
        count += len(part.symbols(value))  # pyright: ignore[reportArgumentType]  # a number or a vector, as the part has it
    return count


def active_stretches(tokens_T: Sequence[int], window: int, *, keep_idle: bool = False) -> list[tuple[int, int]]:
    """Runs of chunks that hold more than one token a step, as (first step, one after the last)."""
    if keep_idle:
        return [(0, len(tokens_T))] if len(tokens_T) else []
    stretches: list[tuple[int, int]] = []
    for start in range(0, len(tokens_T), window):
        stop = min(start + window, len(tokens_T))
        if sum(tokens_T[start:stop]) <= stop - start:
            continue
        if stretches and stretches[-1][1] == start:
            stretches[-1] = stretches[-1][0], stop
        else:
            stretches.append((start, stop))
    return stretches
