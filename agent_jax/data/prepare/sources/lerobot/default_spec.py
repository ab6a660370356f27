"""The ActionSpec of a LeRobot data set that was given none: names of info.json, bounds of its statistics.

    info.json     "action": {"names": ["shoulder_pan", "gripper"]}
    stats.json    "action": {"q01": [-80.1, 0.0], "q99": [75.3, 98.2]}   or min and max, where there are no quantiles
                  -> Bins of shoulder_pan over [-80.1, 75.3], of gripper over [0, 98.2]

Statistics stand in meta/stats.json, of an episode each in episodes_stats.jsonl (v2.1), or beside the episodes (v3).
Where none can be used, the bounds are left to the train split ("bounds": "quantiles").
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions import ActionSpec, arms
from agent_jax.actions.declarations import closed
from agent_jax.actions.vocabulary import BLOCKS
from agent_jax.data.pipeline.domain_specs import not_too_narrow
from agent_jax.data.prepare.sources.lerobot.info import Features, LeRobotInfo
from agent_jax.data.prepare.sources.lerobot.parquet import parquet_table
from agent_jax.data.prepare.sources.selection import Selection
from agent_jax.data.prepare.sources.source import BadDataError
from agent_jax.data.prepare.sources.table import read_jsonl
from agent_jax.json_files import read_json_object

_MOST = 128  # numbers of an action: each has 256 tokens
_LONGEST = 40  # characters of a name
_SHOWN = 8  # numbers in a note
_STATE = "observation.state"
_OVERLAP = 0.5  # of an action's range that lies within the state's: it is a target of the state


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Of a feature's components, as the data's own statistics say."""

    low: np.ndarray
    high: np.ndarray
    least: np.ndarray
    most: np.ndarray
    source: str  # for notes


@dataclasses.dataclass(frozen=True)
class DefaultSpec:
    """The spec, and how sure it is."""

    content: dict[str, Any]  # ActionSpec.to_dict(), with bounds that may be open; {}: none can be made
    absolute: bool | None  # whether actions are targets; None: not known
    notes: tuple[str, ...]

    @property
    def spec(self) -> ActionSpec | None:
        """The spec, with any numbers for bounds that are open."""
        return ActionSpec.from_dict(closed(self.content, None, "action_spec")) if self.content else None


def default_action_spec(path: Path, info: LeRobotInfo, features: Features, selection: Selection, *, rate_hz: float,
                        summed: bool) -> DefaultSpec:
    """The spec of the numbers that are stored as `action`.

    Args:
        path: of the data set.
        info: its info.json.
        features: of it.
        selection: what the action is made of.
        rate_hz: of the stored steps.
        summed: actions of several steps are added up, so that the statistics are not theirs.
    """
    names = _names(features, selection)
    if len(names) > _MOST:
        return DefaultSpec({}, None, (f"action_spec: none was given, and none is made of more than {_MOST} numbers",))
    found = None if summed else _joined([_ranges(path, info, feature, features.numbers[feature][0], first, stop)
                                         for feature, first, stop in selection.parts])
    absolute, why = _absolute(path, info, features, names, found)
    name = _spec_name(path, info)
    arguments: dict[str, Any] = {"names": names, "rate_hz": rate_hz, "absolute": bool(absolute)}
    content, shown = arms.arm_spec(name, bounds="quantiles", **arguments), "the train split's quantiles"
    if found:
        low, high = _wide_enough(found)
        try:
            content = arms.arm_spec(name, low=low, high=high, **arguments)
            ranges = [f"{part} [{least:.4g}, {most:.4g}]" for part, least, most in zip(names, low, high, strict=True)]
            shown = f"{found.source}: {', '.join(ranges[:_SHOWN])}{' ...' if len(ranges) > _SHOWN else ''}"
        except ValueError:  # beyond what float32 holds: the numbers are not those of the data
            shown = f"the train split's quantiles, since {found.source} cannot be used"
    return DefaultSpec(content, absolute, (
        f"action_spec: none was given; the default has the names of info.json and bounds of {shown}; {why}. Train with "
        f"config.vocabulary.blocks=({name!r},); config.action_spec here or of the domain takes its place",))


def _names(features: Features, selection: Selection) -> list[str]:
    """A name for each number, none twice; no more than a few beyond `_MOST`, since a shape is only declared."""
    found: list[str] = []
    for feature, first, stop in selection.parts:
        own = features.names.get(feature, ())
        short = feature.removeprefix("observation.").removeprefix("action.")
        for index in range(first, min(stop, first + _MOST + 1)):
            name = own[index] if own else short if features.numbers[feature] == (1,) else f"{short}_{index}"
            name = re.sub(r"[^\w.-]+", "_", name)[:_LONGEST].strip("_") or f"{short}_{index}"
            found.append(name if name not in found else f"{name}_{len(found)}")
    return found


def _spec_name(path: Path, info: LeRobotInfo) -> str:
    """The robot's name, or the data set's, as one of a vocabulary block."""
    robot = info.content.get("robot_type")
    for candidate in (robot if isinstance(robot, str) and robot != "unknown" else "", path.resolve().name, "lerobot"):
        name = re.sub(r"\W+", "_", candidate)[:_LONGEST].strip("_").lower()
        if name:
            return f"{name}_arm" if name in BLOCKS else name
    return "lerobot"


def _absolute(path: Path, info: LeRobotInfo, features: Features, names: list[str],
              found: Ranges | None) -> tuple[bool | None, str]:
    """Whether actions are targets, and why in words."""
    if any(re.match(r"delta|d_?(x|y|z|roll|pitch|yaw)\b", name, re.IGNORECASE) for name in names):
        return False, "changes (by their names)"
    state = features.numbers.get(_STATE, ())
    ranges = _ranges(path, info, _STATE, state[0], 0, state[0]) if len(state) == 1 and state[0] == len(names) else None
    if found and ranges:
        inside = np.minimum(found.high, ranges.most) - np.maximum(found.low, ranges.least)
        if np.all(inside >= _OVERLAP * (found.high - found.low)):
            return True, f"absolute targets (their ranges are those of {_STATE})"
    elif names and tuple(names) == features.names.get(_STATE):
        return True, f"absolute targets (their names are those of {_STATE})"
    return None, "whether they are targets or changes is not known, and stands as changes"


def _ranges(path: Path, info: LeRobotInfo, feature: str, size: int, first: int, stop: int) -> Ranges | None:
    """Of components [first, stop) of a feature with `size` of them; None where no file has them."""
    if size > _MOST:
        return None
    for read in (_of_all, _of_episodes, _beside_episodes):
        try:
            found = read(path, info, feature, size)
        except (BadDataError, OSError):  # a default needs no statistics: what is damaged is passed over
            found = None
        if found:
            part = slice(first, stop)
            return Ranges(found.low[part], found.high[part], found.least[part], found.most[part], found.source)
    return None


def _of_all(path: Path, info: LeRobotInfo, feature: str, size: int) -> Ranges | None:
    file = path / "meta" / "stats.json"
    if not file.is_file():
        return None
    try:
        content = read_json_object(file).get(feature)
    except ValueError as error:
        raise BadDataError(str(error)) from error
    of = {name: _vector(content, name, size) for name in ("min", "max", "q01", "q99")}
    least, most, low, high = (of[name] for name in ("min", "max", "q01", "q99"))
    if low is not None and high is not None:
        return Ranges(low, high, low if least is None else least, high if most is None else most,
                      "the 1% and 99% quantiles of meta/stats.json")
    if least is None or most is None:
        return None
    return Ranges(least, most, least, most, "the least and greatest values of meta/stats.json")


def _of_episodes(path: Path, info: LeRobotInfo, feature: str, size: int) -> Ranges | None:
    file = path / "meta" / "episodes_stats.jsonl"
    every = (row.values.get("stats") for row in (read_jsonl(file) if file.is_file() else ()))
    return _over((stats.get(feature) if isinstance(stats, dict) else None for stats in every), size,
                 "meta/episodes_stats.jsonl")


def _beside_episodes(path: Path, info: LeRobotInfo, feature: str, size: int) -> Ranges | None:
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    columns = {name: f"stats/{feature}/{name}" for name in ("min", "max")}
    tables = [parquet_table(file, [*columns.values()]) for file in files]
    rows = ({name: table[column][row].as_py() for name, column in columns.items()}
            for table in tables for row in range(len(table)))
    return _over(rows, size, "the episodes' statistics in meta/episodes")


def _over(rows: Iterator[Any], size: int, source: str) -> Ranges | None:
    """The range of all episodes; None where one of them lacks its own."""
    least, most = np.full(size, np.inf), np.full(size, -np.inf)
    for row in rows:
        low, high = _vector(row, "min", size), _vector(row, "max", size)
        if low is None or high is None:
            return None
        least, most = np.minimum(least, low), np.maximum(most, high)
    if not np.isfinite(least).all():
        return None
    return Ranges(least, most, least, most, f"the least and greatest values of {source}")


def _vector(content: Any, name: str, size: int) -> np.ndarray | None:
    """The numbers of a statistic; None where they are not `size` finite ones."""
    try:
        found = np.asarray(content[name] if isinstance(content, Mapping) else None, np.float64).ravel()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return found if len(found) == size and np.isfinite(found).all() else None


def _joined(parts: list[Ranges | None]) -> Ranges | None:
    """The ranges of several features side by side; None where one of them has none."""
    there = [part for part in parts if part]
    if len(there) < len(parts):
        return None
    low, high, least, most = (np.concatenate([getattr(part, name) for part in there])
                              for name in ("low", "high", "least", "most"))
    return Ranges(low, high, least, most, " and ".join(dict.fromkeys(part.source for part in there)))


def _wide_enough(found: Ranges) -> tuple[list[float], list[float]]:
    """Bounds that can be binned, of nine digits."""
    pairs = [not_too_narrow(*map(float, values))[:2]
             for values in zip(found.low, found.high, found.least, found.most, strict=True)]
    return [float(f"{low:.9g}") for low, _ in pairs], [float(f"{high:.9g}") for _, high in pairs]
