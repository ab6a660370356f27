"""The default ActionSpec of a LeRobot data set: names from info.json, bounds from its statistics.

    info.json     "action": {"names": ["shoulder_pan", "gripper"]}
    stats.json    "action": {"q01": [-80.1, 0.0], "q99": [75.3, 98.2]}   or min and max, if there are no quantiles
                  -> Bins of shoulder_pan over [-80.1, 75.3], of gripper over [0, 98.2]

Statistics are in meta/stats.json, per episode in episodes_stats.jsonl (v2.1), or in the episodes' table (v3). If none
can be used, the bounds are left to the train split ("bounds": "quantiles").
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions import arms
from agent_jax.actions.vocabulary import BLOCKS
from agent_jax.data.bad_data import BadDataError, bad_data
from agent_jax.data.pipeline.domain_specs import not_too_narrow
from agent_jax.data.prepare.sources.lerobot.info import Features, LeRobotInfo
from agent_jax.data.prepare.sources.parquet import parquet_table
from agent_jax.data.prepare.sources.selection import Selection
from agent_jax.data.prepare.sources.table import read_jsonl
from agent_jax.json_files import read_json_object

_MAX_NUMBERS = 128  # of an action: each has 256 tokens
_MAX_NAME = 40  # characters
_MAX_SHOWN = 8  # numbers in a note
_STATE = "observation.state"
_OVERLAP = 0.5  # share of an action's range within the state's from which on it is a target of the state


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Ranges of a feature's components in the data's own statistics."""

    values: np.ndarray  # float64 (4, components): lower and upper bound, minimum, maximum
    source: str  # for notes


@dataclasses.dataclass(frozen=True)
class DefaultSpec:
    """The spec, with what is known about it."""

    content: dict[str, Any]  # ActionSpec.to_dict(), possibly with open bounds; {}: no spec can be made
    absolute: bool | None  # actions are targets, not deltas; None: unknown
    notes: tuple[str, ...]


def default_action_spec(path: Path, info: LeRobotInfo, features: Features, selection: Selection, *, rate_hz: float,
                        summed: bool) -> DefaultSpec:
    """The spec of the selected numbers at the stored rate; statistics do not apply to `summed` actions."""
    names = _names(features, selection)
    if len(names) > _MAX_NUMBERS:
        return DefaultSpec({}, None, (
            f"action_spec: none was given, and none is made of more than {_MAX_NUMBERS} numbers",))
    found = None if summed else _joined([_ranges(path, info, feature, features.numbers[feature][0], first, stop)
                                         for feature, first, stop in selection.parts])
    absolute, why = _absolute(path, info, features, names, found)
    name = _spec_name(path, info)
    arguments: dict[str, Any] = {"names": names, "rate_hz": rate_hz, "absolute": bool(absolute)}
    content, shown = arms.arm_spec(name, bounds="quantiles", **arguments), "the train split's quantiles"
    if found:
        pairs = [not_too_narrow(*values)[:2] for values in found.values.T.tolist()]
        low, high = ([float(f"{pair[end]:.9g}") for pair in pairs] for end in (0, 1))
        try:
            content = arms.arm_spec(name, low=low, high=high, **arguments)
            ranges = [f"{part} [{least:.4g}, {most:.4g}]" for part, least, most in zip(names, low, high, strict=True)]
            shown = f"{found.source}: {', '.join(ranges[:_MAX_SHOWN])}{' ...' if len(ranges) > _MAX_SHOWN else ''}"
        except ValueError:  # beyond the range of float32: not the numbers of the data
            shown = f"the train split's quantiles, since {found.source} cannot be used"
    return DefaultSpec(content, absolute, (
        f"action_spec: none was given; the default has the names of info.json and bounds of {shown}; {why}. Train with "
        f"config.vocabulary.blocks=({name!r},); config.action_spec here or of the domain overrides it",))


def _names(features: Features, selection: Selection) -> list[str]:
    """A unique name for each number; at most a few more than `_MAX_NUMBERS`, since a shape is only declared."""
    found: list[str] = []
    for feature, first, stop in selection.parts:
        own = features.names.get(feature, ())
        short = feature.removeprefix("observation.").removeprefix("action.")
        for index in range(first, min(stop, first + _MAX_NUMBERS + 1)):
            name = own[index] if own else short if features.numbers[feature] == (1,) else f"{short}_{index}"
            name = re.sub(r"[^\w.-]+", "_", name)[:_MAX_NAME].strip("_") or f"{short}_{index}"
            found.append(name if name not in found else f"{name}_{len(found)}")
    return found


def _spec_name(path: Path, info: LeRobotInfo) -> str:
    """The robot's name, or the data set's, in the form of a vocabulary block's."""
    robot = info.content.get("robot_type")
    for candidate in (robot if isinstance(robot, str) and robot != "unknown" else "", path.resolve().name, "lerobot"):
        name = re.sub(r"\W+", "_", candidate)[:_MAX_NAME].strip("_").lower()
        if name:
            return f"{name}_arm" if name in BLOCKS else name
    return "lerobot"


def _absolute(path: Path, info: LeRobotInfo, features: Features, names: list[str],
              found: Ranges | None) -> tuple[bool | None, str]:
    """Whether actions are targets, and the reason as a sentence."""
    if any(re.match(r"delta|d_?(x|y|z|roll|pitch|yaw)\b", name, re.IGNORECASE) for name in names):
        return False, "deltas (by their names)"
    state = features.numbers.get(_STATE, ())
    ranges = _ranges(path, info, _STATE, state[0], 0, state[0]) if len(state) == 1 and state[0] == len(names) else None
    if found and ranges:
        low, high = found.values[:2]
        inside = np.minimum(high, ranges.values[3]) - np.maximum(low, ranges.values[2])
        if np.all(inside >= _OVERLAP * (high - low)):
            return True, f"absolute targets (their ranges are those of {_STATE})"
    elif names and tuple(names) == features.names.get(_STATE):
        return True, f"absolute targets (their names are those of {_STATE})"
    return None, "unknown whether targets or deltas, stored as deltas"


def _ranges(path: Path, info: LeRobotInfo, feature: str, size: int, first: int, stop: int) -> Ranges | None:
    """Ranges of components [first, stop) of a feature with `size` of them; None if no file has them."""
    if size > _MAX_NUMBERS:
        return None
    for read in (_from_stats, _from_episodes_stats, _from_episodes_table):
        try:
            found = read(path, feature, size)
        except (BadDataError, OSError):  # a default does not need statistics: damaged ones are ignored
            found = None
        if found:
            return Ranges(found.values[:, first:stop], found.source)
    return None


def _from_stats(path: Path, feature: str, size: int) -> Ranges | None:
    file = path / "meta" / "stats.json"
    if not file.is_file():
        return None
    with bad_data():
        content = read_json_object(file).get(feature)
    least, most, low, high = (_vector(content, name, size) for name in ("min", "max", "q01", "q99"))
    if low is not None and high is not None:
        return Ranges(np.stack([low, high, low if least is None else least, high if most is None else most]),
                      "the 1% and 99% quantiles of meta/stats.json")
    if least is None or most is None:
        return None
    return Ranges(np.stack([least, most, least, most]), "the least and greatest values of meta/stats.json")


def _from_episodes_stats(path: Path, feature: str, size: int) -> Ranges | None:
    file = path / "meta" / "episodes_stats.jsonl"
    every = (row.values.get("stats") for row in (read_jsonl(file) if file.is_file() else ()))
    return _over_episodes((stats.get(feature) if isinstance(stats, dict) else None for stats in every), size,
                          "meta/episodes_stats.jsonl")


def _from_episodes_table(path: Path, feature: str, size: int) -> Ranges | None:
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    columns = {name: f"stats/{feature}/{name}" for name in ("min", "max")}
    tables = [parquet_table(file, [*columns.values()]) for file in files]
    rows = ({name: table[column][row].as_py() for name, column in columns.items()}
            for table in tables for row in range(len(table)))
    return _over_episodes(rows, size, "the episodes' statistics in meta/episodes")


def _over_episodes(rows: Iterator[Any], size: int, source: str) -> Ranges | None:
    """The range over all episodes; None if one of them lacks its own."""
    least, most = np.full(size, np.inf), np.full(size, -np.inf)
    for row in rows:
        low, high = _vector(row, "min", size), _vector(row, "max", size)
        if low is None or high is None:
            return None
        least, most = np.minimum(least, low), np.maximum(most, high)
    if not np.isfinite(least).all():
        return None
    return Ranges(np.stack([least, most, least, most]), f"the least and greatest values of {source}")


def _vector(content: Any, name: str, size: int) -> np.ndarray | None:
    """The numbers of a statistic; None if they are not `size` finite ones."""
    try:
        found = np.asarray(content[name] if isinstance(content, Mapping) else None, np.float64).ravel()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return found if len(found) == size and np.isfinite(found).all() else None


def _joined(parts: list[Ranges | None]) -> Ranges | None:
    """The ranges of several features side by side; None if one of them has none."""
    there = [part for part in parts if part]
    if len(there) < len(parts):
        return None
    return Ranges(np.concatenate([part.values for part in there], axis=1),
                  " and ".join(dict.fromkeys(part.source for part in there)))
