"""Removes idle chunks of `window` steps, so that training windows are kept or dropped whole.

    tokens of an action   0 0 0 1 | 3 3 2 2 | 1 2 2 2 | 0 0 0 0 | 2 2     window 4
    sum over the chunk    1         10        7         0         4
    kept: > 1 per step              xxxxxxxxx xxxxxxxxx           xxx     -> stretches [4, 12) and [16, 18)

The paper's rule for games: a chunk of 9 frames is kept if it holds more than 9 action tokens. Delimiters, which even an
idle action has, are not counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from agent_jax.actions import ActionSpec
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.sources.source import SourceEpisode, SourceStep

_Image = TypeVar("_Image")


def active_episodes(name: str, instruction: str, images: Iterator[_Image], step: Callable[[int, _Image], SourceStep],
                    tokens_T: Sequence[int], window: int, *, keep_idle: bool, where: Path,
                    hint: str = "") -> Iterator[SourceEpisode]:
    """The stretches of an episode that are not idle, each to be read before the next.

    `step` makes a step of its number and image. `images` is read to the end, where a video checks the number of its
    frames.

    Raises:
        BadDataError: every chunk is idle; names the file `where` and adds `hint`.
    """
    stretches = active_stretches(tokens_T, window, keep_idle=keep_idle)
    if not stretches:
        raise BadDataError(f"{where}: every chunk of {window} steps is idle; {hint}leave such recordings out with "
                           "--on_error=skip")
    numbered, position = enumerate(images), 0
    for start, stop in stretches:
        steps = itertools.starmap(step, itertools.islice(numbered, start - position, stop - position))
        yield SourceEpisode(name, instruction, steps, start=start, ends=stop == len(tokens_T))
        position = stop
    for _ in numbered:
        pass


def action_tokens(spec: ActionSpec, action: Mapping[str, Any]) -> int:
    """The number of tokens of an action, without delimiters.

    Raises:
        ValueError: a value is not a number or not one of the spec's; names the key.
    """
    count = 0
    for part in spec.parts:
        value = action[part.key] if part.index is None else action[part.key][part.index]
        count += len(part.symbols(value))  # pyright: ignore[reportArgumentType]  # a number or a vector, as the part has it
    return count


def active_stretches(tokens_T: Sequence[int], window: int, *, keep_idle: bool = False) -> list[tuple[int, int]]:
    """Runs of chunks with more than one token per step, as [first step, stop)."""
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
