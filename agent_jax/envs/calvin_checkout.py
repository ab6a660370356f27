"""The parts of the CALVIN checkout that the adapter uses: the benchmark's chains, its task oracle, the scene.

    calvin_models/calvin_agent/evaluation     chains, initial states          run here, in this Python
    calvin_models/conf                        task oracle, sentences
    calvin_env                                the simulator; its conf/ describes scene D

The repository is for Python 3.8: its evaluation imports a trained model, and with it PyTorch Lightning and pyhash,
which cannot be installed on newer Pythons. None of that is used here, so empty modules replace them during the import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from agent_jax.envs.checkout import Checkout

CHECKOUT = Checkout(
    name="calvin",
    variable="AGENT_JAX_CALVIN",
    url="https://github.com/mees/calvin",
    marker="calvin_models/calvin_agent/evaluation/multistep_sequences.py",
    roots=("calvin_models", "calvin_env"),
    install="pip install pybullet hydra-core numpy-quaternion gym gitpython scipy opencv-python-headless",
)
DATA = "AGENT_JAX_CALVIN_DATA"  # a data set whose scene is used; unset: scene D of the checkout
EGL = "AGENT_JAX_CALVIN_EGL"  # 0: pybullet's CPU renderer, whose images differ from those of the data sets
CHAINS = 1000
CAMERAS = ("static", "gripper")

# Modules that calvin_agent.evaluation imports and this adapter does not need, with the imported names.
_REPLACED = {
    "calvin_agent.models.mcil": ("MCIL",),
    "calvin_agent.utils.utils": ("add_text", "format_sftp_path"),
    "torch": (),
}


def chain(number: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Initial condition and five subtasks of one of the benchmark's 1,000 chains, made by its own code."""
    condition, (group, index) = _order()[number]
    return condition, _group(*group)[index]


@functools.cache
def _order() -> list[tuple[dict[str, Any], tuple[_Group, int]]]:
    """The 1,000 chains in the benchmark's order: the initial condition and a reference to the subtasks.

    The benchmark draws all subtasks in forked processes, which takes minutes and is unsafe in a process with threads,
    such as jax's. The order does not depend on the subtasks, so references stand for them while it is computed.
    """
    _, sequences = _evaluation()
    executor, sequences.ProcessPoolExecutor = sequences.ProcessPoolExecutor, _ReferenceExecutor
    try:
        return [(condition, references[0]) for condition, references in sequences.get_sequences(CHAINS)]
    finally:
        sequences.ProcessPoolExecutor = executor


_Group = tuple[tuple[tuple[str, Any], ...], int, int]  # initial condition, number of sequences, seed


@functools.cache
def _group(condition: tuple[tuple[str, Any], ...], count: int, seed: int) -> list[tuple[str, ...]]:
    """All sequences of subtasks of an initial condition."""
    _, sequences = _evaluation()
    with sequences.temp_seed(seed):  # restores numpy's global random state, which the call seeds
        drawn = sequences.get_sequences_for_state2((dict(condition), count, seed))
    return [tuple(map(str, subtasks)) for subtasks in drawn]


class _ReferenceExecutor:
    """Replaces a ProcessPoolExecutor; `map` returns references to the sequences and draws none of them."""

    def __init__(self, max_workers: int) -> None:
        del max_workers

    def __enter__(self) -> _ReferenceExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: object, arguments: Iterable[tuple[dict[str, Any], int, int]]) -> list[list[_Reference]]:
        del function
        return [[_Reference(((tuple(condition.items()), count, seed), k)) for k in range(count)]
                for condition, count, seed in arguments]


@dataclasses.dataclass(frozen=True)
class _Reference:
    """Stands for an array of subtasks, which the benchmark converts by `tuple(item.tolist())`."""

    place: tuple[_Group, int]  # the group and the index in it

    def tolist(self) -> list[tuple[_Group, int]]:
        return [self.place]


def initial_state(condition: dict[str, Any]) -> tuple[Any, Any]:
    """robot_obs (15,) and scene_obs (24,) at the start of a chain."""
    evaluation, _ = _evaluation()
    return evaluation.get_env_state_for_initial_condition(condition)


def oracle() -> Any:
    """The repository's `Tasks`, which finds the tasks completed between two infos."""
    return CHECKOUT.module("hydra.utils").instantiate(_load("callbacks/rollout/tasks/new_playtable_tasks.yaml"))


def sentences() -> Any:
    """{SUBTASK: [the benchmark's sentence for it]}."""
    return _load("annotations/new_playtable_validation.yaml")


def make_simulator() -> Any:
    """The repository's simulator with its two cameras.

    Raises:
        FileNotFoundError: AGENT_JAX_CALVIN_DATA is not a CALVIN data set.
    """
    scene = _recorded_scene() if os.environ.get(DATA) else _scene_d()
    # Without the fingertip sensors of the data sets, tacto, which renders them, is not needed.
    scene.cameras = {name: scene.cameras[name] for name in CAMERAS}
    scene.env.use_egl = os.environ.get(EGL, "1") != "0"
    CHECKOUT.module("calvin_env.envs.play_table_env")
    instantiate = CHECKOUT.module("hydra.utils").instantiate
    return instantiate(scene.env, show_gui=False, use_vr=False, use_scene_info=True)  # as its get_env does


def _recorded_scene() -> Any:
    """The configuration that a data set was recorded with, read as in the repository's evaluation."""
    value = os.environ[DATA]
    path = Path(value).expanduser() / "validation" / ".hydra" / "merged_config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f'the environment "calvin": {DATA}={value}, expected a data set of CALVIN, a directory '
                                "with validation/.hydra/merged_config.yaml; unset it to act in scene D")
    return CHECKOUT.module("omegaconf").OmegaConf.load(path)


def _scene_d() -> Any:
    """The configuration of scene D, where CALVIN's "ABCD -> D" results are measured, from the checkout's files."""
    omega = CHECKOUT.module("omegaconf").OmegaConf
    folder = CHECKOUT.directory() / "calvin_env" / "conf"
    robot = omega.merge(omega.load(folder / "robot/panda.yaml"), omega.load(folder / "robot/panda_longer_finger.yaml"))
    del robot["defaults"]
    return omega.create({
        "use_vr": False, "data_path": "data", "robot": robot,
        "env": omega.load(folder / "env/play_table_env.yaml"),
        "scene": omega.load(folder / "scene/calvin_scene_D.yaml"),
        "cameras": {name: omega.load(folder / f"cameras/cameras/{name}.yaml") for name in CAMERAS}})


def _load(name: str) -> Any:
    return CHECKOUT.module("omegaconf").OmegaConf.load(CHECKOUT.directory() / "calvin_models" / "conf" / name)


@functools.cache
def _evaluation() -> tuple[Any, Any]:
    """The repository's modules `evaluation.utils` and `evaluation.multistep_sequences`."""
    with _stand_ins():
        return (CHECKOUT.module("calvin_agent.evaluation.utils"),
                CHECKOUT.module("calvin_agent.evaluation.multistep_sequences"))


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Replace the modules in `_REPLACED` and pyhash during an import; restore them afterwards."""
    made = {name: ModuleType(name) for name in _REPLACED}
    for name, attributes in _REPLACED.items():
        made[name].__dict__.update(dict.fromkeys(attributes))
    made["pyhash"] = ModuleType("pyhash")
    made["pyhash"].__dict__["fnv1_32"] = lambda: fnv1_32
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def fnv1_32(text: str) -> int:
    """32-bit FNV-1 hash (Fowler, Noll, Vo) starting at 0, as in pyhash; seeds the initial positions of the blocks."""
    value = 0
    for byte in text.encode():
        value = (value * 0x01000193 & 0xFFFFFFFF) ^ byte
    return value
