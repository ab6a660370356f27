"""Compares a domain's specs with its data: the table at the start of a run, and errors where they disagree.

    actions of my_arm: my_arm, changes in gripper frame, 5 Hz
      value      name  bounds           tokens  data               outside  at a bound
      action[0]  dx    [-0.05, 0.05] m  21      [-0.0512, 0.0498]  0.03%    0.10%

Shares are of the steps of the train split; `outside` is clipped by `encode`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from agent_jax.actions import ActionSpec, Bins, BoundSpec, Buttons, Camera, Choice, Part, StateSpec
from agent_jax.actions.parts import stored
from agent_jax.data.pipeline.domain_specs import DomainSpecs
from agent_jax.data.store.statistics import ROUNDING, SplitNumbers, Statistics
from agent_jax.help_pages import help_page
from agent_jax.text_table import aligned

_RATE_TOLERANCE = 0.01  # of a rate: 29.97 Hz counts as 30
_HEAD = ("value", "name", "bounds", "tokens", "data", "outside", "at a bound")
_Row = tuple[str, ...]


def check_specs(name: str, specs: DomainSpecs, bound: list[BoundSpec], out_of_bounds: float) -> list[str]:
    """Compare the specs with the train split, whose statistics are cached.

    Args:
        name: of the domain.
        specs: of the domain.
        bound: its ActionSpec and, if it has one, its StateSpec, bound to the vocabulary.
        out_of_bounds: the largest share of steps that may be outside declared bounds; 1: no check, and the data are not
            read.

    Returns:
        Lines for the log.

    Raises:
        ValueError: one line for each disagreement: values out of bounds, values that are not a choice, an inexact round
            trip through the tokens, another rate.
    """
    where = f"config.data.domains.{name}"
    lines: list[str] = []
    wrong = _wrong_rate(where, specs)
    for spec in bound:
        lines.append(f"{spec.spec.kind}s of {name}: {_described(spec.spec)}")
        if out_of_bounds >= 1:
            rows = [(part.place, _name(part), _bounds(part), str(len(part.tokens))) for part in spec.spec.parts]
        else:
            found = list(_rows_and_problems(spec.spec, specs, f"{where}.{spec.spec.kind}_spec", out_of_bounds))
            rows = [row for row, _ in found]
            problems = [problem for _, problem in found if problem]
            wrong += problems or _inexact(spec, specs.numbers, where)
        lines += [f"  {line}" for line in aligned([_HEAD[: len(rows[0])], *rows], words=len(_HEAD))]
    if wrong:
        raise ValueError("\n".join(wrong) + help_page("guides/data.md", "ActionSpec"))
    return lines


def clipped_beyond(spec: ActionSpec | StateSpec) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(low, high) by key, beyond which a value counts as outside: the bounds, extended by a degree for a camera."""
    wide = {part.key for part in spec.parts if isinstance(part, Camera)}  # truncated to whole degrees: 50.7 is 50
    bounds = {key: spec.bounds(key) for key in spec.fields}
    return {key: (low - (key in wide), high + (key in wide)) for key, (low, high) in bounds.items()}


def _described(spec: ActionSpec | StateSpec) -> str:
    words = [spec.name]
    if isinstance(spec, ActionSpec):
        words.append(f"{'absolute' if spec.absolute else 'changes'} in {spec.frame or 'an unnamed frame'}")
        words.append(f"{spec.rate_hz:g} Hz" if spec.rate_hz else "unknown rate")
    elif spec.frame:
        words.append(f"in {spec.frame}")
    return ", ".join(words)


def _name(part: Part) -> str:
    if isinstance(part, Buttons):
        return f"{len(part.names)} buttons"
    return part.name


def _bounds(part: Part) -> str:
    if isinstance(part, Buttons):
        return "up or down"
    if isinstance(part, Choice):
        return f"one of {len(part.tokens)}"
    low, high = part.limits[0]
    return f"[{low:.4g}, {high:.4g}]" + (f" {part.unit}" if part.unit else "")


def _wrong_rate(where: str, specs: DomainSpecs) -> list[str]:
    rate_hz = specs.action.rate_hz
    if not rate_hz or not specs.rate_hz or math.isclose(rate_hz, specs.rate_hz, rel_tol=_RATE_TOLERANCE):
        return []
    return [f"{where}.action_spec: found rate_hz={rate_hz:g}, expected {specs.rate_hz:g} as in the data set's "
            "metadata; correct the wrong one, or prepare the data at the other rate"]


def _rows_and_problems(spec: ActionSpec | StateSpec, specs: DomainSpecs, where: str,
                       out_of_bounds: float) -> Iterator[tuple[_Row, str]]:
    """For each part its row of the table and a message about what is wrong with it, or ""."""
    by_key = specs.numbers.statistics
    shares = specs.numbers.shares(clipped_beyond(spec))
    derived = specs.derived(spec.kind)
    configured = f"{spec.kind}_spec" in specs.configured
    for part in spec.parts:
        statistics = by_key[part.key]
        components = range(len(part.limits)) if part.index is None else [part.index]
        flat = lambda array, chosen=components: np.ravel(array)[list(chosen)]  # noqa: E731
        data = f"[{flat(statistics.min).min():.4g}, {flat(statistics.max).max():.4g}]"
        row = (part.place, _name(part), _bounds(part), str(len(part.tokens)), data)
        if isinstance(part, (Choice, Buttons)):
            yield (*row, "", ""), _no_choice(part, statistics, components, where)
            continue
        share = shares[part.key]
        outside, at_bound = float(flat(share.outside).max()), float(flat(share.at_bound).max())
        shown = (*row, f"{outside:.2%}", f"{at_bound:.2%}" if isinstance(part, Bins) else "")
        if outside <= out_of_bounds or part.place in derived:  # bounds by quantiles cut off values by design
            yield shown, ""
            continue
        fix = (f'set low and high of that part in {where}, or "bounds": "quantiles" instead' if configured
               else "prepare the data again with other bounds")
        low, high = part.limits[0]
        yield shown, (
            f"{where}: {outside:.2%} of the steps have {part.place} ({part.name or 'unnamed'}) outside its bounds: "
            f"declared [{low:g}, {high:g}], found {data}, 98% of the values in [{flat(statistics.q01).min():.4g}, "
            f"{flat(statistics.q99).max():.4g}]; {fix}, or raise config.data.out_of_bounds={out_of_bounds:g} to clip "
            "them")


def _no_choice(part: Choice | Buttons, statistics: Statistics, components: Any, where: str) -> str:
    """A message about values of the data that the part cannot encode, or ""."""
    if isinstance(part, Buttons):
        allowed, expected = {0.0, 1.0}, "0 or 1"
    else:
        allowed = {*map(float, part.numbers), *(stored(number) for number in part.numbers)}
        expected = "one of " + ", ".join(f"{number:g} ({token})" for number, token
                                         in list(zip(part.numbers, part.tokens, strict=True))[:12])
    for component in components:
        values = statistics.distinct[component]
        unknown = [value for value in values if value not in allowed]
        if unknown or not values:
            found = ", ".join(f"{value:g}" for value in unknown[:5]) or "too many different values to list"
            name = part.named if isinstance(part, Choice) else part.place
            return f"{where}: {name} holds {found}, expected {expected}; correct the spec's values"
    return ""


def _inexact(bound: BoundSpec, numbers: SplitNumbers, where: str) -> list[str]:
    """A message if decode(encode(a)) is further from `a` than half a bin, for a sample of the data's values."""
    samples = {key: numbers.statistics[key].sample for key in bound.spec.fields}
    steps = len(next(iter(samples.values())))
    for step in range(steps):
        values = {key: sample[step] for key, sample in samples.items()}
        ids = bound.encode(values)
        decoded = bound.decode(ids)
        if not np.array_equal(bound.encode(decoded), ids):
            return [f"{where}: the {bound.spec.kind} {values} decodes to {decoded}, which encodes to other tokens"]
        for part in bound.spec.parts:
            if not isinstance(part, Bins):
                continue
            at = ... if part.index is None else part.index
            value = min(max(float(values[part.key][at]), part.low), part.high)
            decoded_value = float(decoded[part.key][at])
            distance = abs(decoded_value - value)
            if distance > part.width / 2 + ROUNDING * max(abs(part.low), abs(part.high)):
                return [f"{where}: {part.named}={value:g} decodes to {decoded_value:g}, {distance:g} away, expected at "
                        f"most half a bin, {part.width / 2:g}"]
    return []
