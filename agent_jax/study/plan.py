"""The plan of a transfer study: arms, targets, comparisons. It is fixed before the first run.

    PLAN.py, get_plan() --> TransferPlan --with every base config--> plan.json and its SHA-256

plan.json in the study's directory is written once. A plan file that differs from it is refused, with the fields that
differ; so is a base config that has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent_jax.fields import build_field
from agent_jax.help_pages import help_page
from agent_jax.json_files import read_json_object, write_json
from agent_jax.study.run_config import changed_config, load_function

PLAN_FILE = "plan.json"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to reach the target: from scratch or from a pre-trained agent."""

    pretrain: str = ""  # config file of the pre-training, FILE.py or FILE.py:VARIANT; "": from scratch
    pretrain_overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {"train.steps": 1000}
    pretrain_seeds: tuple[int, ...] = (0,)  # of the pre-trainings; training seed number i starts from number i modulo n
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the training on each target
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by target; others: the target's


@dataclasses.dataclass(frozen=True)
class Target:
    """A task that the arms learn from few demonstrations, and on which they act."""

    config: str  # config file of the training
    levels: Mapping[str, float]  # share of the demonstrations by level of the environment, 1 in all
    demonstrations: tuple[int, ...]  # K, from few to many
    episodes: Mapping[str, int]  # acted at the end, by task
    steps: int  # of the training
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # 0: success of all episodes. Else of those that end before this step: "the right object, given that one was
    # reached" where only a reached object ends an episode early.
    reached_before: int = 0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An arm against a baseline, on every target at one number of demonstrations."""

    arm: str
    baseline: str
    seeds: tuple[int, ...]  # training seeds; each one is a pair
    demonstrations: int = 0  # which of the target's numbers, from 0
    margin: float = 0.05  # of success: smaller differences count as none
    targets: tuple[str, ...] = ()  # (): all


@dataclasses.dataclass(frozen=True)
class TransferPlan:
    """A whole study."""

    name: str
    arms: Mapping[str, Arm]
    targets: Mapping[str, Target]
    primary: Comparison
    secondary: Mapping[str, Comparison] = dataclasses.field(default_factory=dict)
    curve_arms: tuple[str, ...] = ()  # arms that are trained at every number of demonstrations
    curve_seeds: tuple[int, ...] = ()
    policy: str = "greedy"  # or "sampled": whose success counts
    alpha: float = 0.05  # of tests; intervals have the level 1 - alpha
    power: float = 0.8  # at which the smallest detectable difference is computed

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """The primary comparison and the secondary ones, by name."""
        return {"primary": self.primary, **self.secondary}

    def targets_of(self, comparison: Comparison) -> tuple[str, ...]:
        """The names of a comparison's targets."""
        return comparison.targets or tuple(self.targets)


def load_plan(file: str | Path) -> TransferPlan:
    """The plan of a Python file, checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no get_plan(), the plan has a wrong value, or a name in it is unknown.
    """
    made = load_function(str(file), "get_plan")()
    if not isinstance(made, TransferPlan):
        raise ValueError(f"{file}: get_plan() returned a {type(made).__name__}, expected a TransferPlan "
                         "(agent_jax/study/plan.py)")
    return plan_of(dataclasses.asdict(made))


def plan_of(content: Mapping[str, Any]) -> TransferPlan:
    """The plan of its fields, as in plan.json, checked; raises ValueError as `load_plan`."""
    plan: TransferPlan = build_field(TransferPlan, content, "plan")
    _check(plan)
    return plan


def _check(plan: TransferPlan) -> None:
    if "primary" in plan.secondary:
        raise ValueError("plan.secondary: found a comparison named 'primary', expected another name")
    for field, names in (("arms", plan.arms), ("targets", plan.targets)):  # they name directories
        for name in names:
            if not re.fullmatch(r"\w[\w.-]*", name) or name == "pretrain":
                raise ValueError(f"plan.{field}: found the name {name!r}, expected letters, digits, '_', '-' and '.', "
                                 "and not 'pretrain'")
    for name, target in plan.targets.items():
        where = f"plan.targets.{name}"
        numbers = target.demonstrations
        if not numbers or list(numbers) != sorted(set(numbers)) or numbers[0] < 1:
            raise ValueError(f"{where}.demonstrations: found {numbers}, expected ascending numbers from 1")
        if target.steps < 1:
            raise ValueError(f"{where}.steps: found {target.steps}, expected at least 1")
        if not target.levels or abs(sum(target.levels.values()) - 1) > 1e-6:
            raise ValueError(f"{where}.levels: found shares {dict(target.levels)}, expected a sum of 1")
        if not target.episodes:
            raise ValueError(f"{where}.episodes: found no task to act on, expected at least one")
    for where, arm in ((f"plan.arms.{name}", arm) for name, arm in plan.arms.items()):
        _known(f"{where}.steps", arm.steps, plan.targets)
        if arm.pretrain and not arm.pretrain_seeds:
            raise ValueError(f"{where}.pretrain_seeds: found none, expected at least one")
    for name, comparison in plan.comparisons.items():
        where = f"plan.{name}" if name == "primary" else f"plan.secondary.{name}"
        _known(f"{where}.arm", (comparison.arm,), plan.arms)
        _known(f"{where}.baseline", (comparison.baseline,), plan.arms)
        _known(f"{where}.targets", comparison.targets, plan.targets)
        if comparison.arm == comparison.baseline:
            raise ValueError(f"{where}: found {comparison.arm!r} as arm and baseline, expected two arms")
        if len(comparison.seeds) < 2 or len(set(comparison.seeds)) < len(comparison.seeds):
            raise ValueError(f"{where}.seeds: found {comparison.seeds}, expected at least two different seeds")
        if not 0 < comparison.margin < 1:
            raise ValueError(f"{where}.margin: found {comparison.margin}, expected a number between 0 and 1")
        for target in plan.targets_of(comparison):
            if not 0 <= comparison.demonstrations < len(plan.targets[target].demonstrations):
                raise ValueError(f"{where}.demonstrations: found {comparison.demonstrations}, expected a place in "
                                 f"plan.targets.{target}.demonstrations={plan.targets[target].demonstrations}, from 0")
    _known("plan.curve_arms", plan.curve_arms, plan.arms)
    for field, value in (("alpha", plan.alpha), ("power", plan.power)):
        if not 0 < value < 1:
            raise ValueError(f"plan.{field}: found {value}, expected a number between 0 and 1")


def _known(where: str, names: Any, known: Mapping[str, Any]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{where}: found {unknown[0]!r}, expected one of {', '.join(known)}")


def frozen_form(plan: TransferPlan) -> dict[str, Any]:
    """The plan as JSON with the base config of every arm and target in full, and the SHA-256 of both."""
    configs: dict[str, Any] = {}
    for name, arm in plan.arms.items():
        if arm.pretrain:
            where = f"plan.arms.{name}.pretrain_overrides"
            configs[f"arms.{name}"] = changed_config(arm.pretrain, arm.pretrain_overrides, where).to_dict()
    for name, target in plan.targets.items():
        where = f"plan.targets.{name}.overrides"
        configs[f"targets.{name}"] = changed_config(target.config, target.overrides, where).to_dict()
    content = json.loads(json.dumps({"plan": dataclasses.asdict(plan), "configs": configs}))
    return {**content, "sha256": hashlib.sha256(canonical(content).encode()).hexdigest()}


def canonical(content: Any) -> str:
    """JSON with sorted keys and without spaces: equal contents are equal texts."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def freeze(plan: TransferPlan, directory: Path) -> str:
    """Write plan.json, or check that it has this plan.

    Returns:
        The SHA-256.

    Raises:
        ValueError: the directory has another plan; names the fields that differ.
    """
    content, path = frozen_form(plan), directory / PLAN_FILE
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    found = read_json_object(path)
    if found != content:
        fields = sorted(set(_differences(found, content)) - {"sha256"})
        shown = "; ".join(fields[:8]) + (f"; and {len(fields) - 8} more" if len(fields) > 8 else "")
        raise ValueError(f"{path}: the plan has changed since it was written: {shown}. Restore these values, or give "
                         "the changed plan another --out directory" + help_page("guides/study.md", "The plan"))
    return content["sha256"]


def _differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """The fields in which two JSON values differ, each with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            place = f"{where}.{key}".lstrip(".")
            if key not in one or key not in other:
                yield f"{place} ({'new' if key not in one else 'missing'})"
            else:
                yield from (["sha256"] if place == "sha256" and one[key] != other[key] else
                            _differences(one[key], other[key], place))
    elif one != other:
        yield f"{where}: found {one!r}, now {other!r}"
