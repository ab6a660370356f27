"""What the CALVIN adapter takes from its checkout: the chains of the benchmark, its task oracle, the scene.

    calvin_models/calvin_agent/evaluation     chains, initial states          run here, in this Python
    calvin_models/conf                        task oracle, sentences
    calvin_env                                the simulator; its conf/ describes scene D

The repository is of Python 3.8: its evaluation imports a trained model, and with it PyTorch Lightning and pyhash, which
newer Pythons cannot install. None of that is used here, so empty modules stand in while it is imported.
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
DATA = "AGENT_JAX_CALVIN_DATA"  # a data set, whose scene is taken; unset: scene D of the checkout
EGL = "AGENT_JAX_CALVIN_EGL"  # 0: pybullet's renderer for CPUs, whose pictures differ from those of the data sets
CHAINS = 1000
CAMERAS = ("static", "gripper")

# Modules that calvin_agent.evaluation imports, and what it takes from them.
_NEEDLESS = {
    "calvin_agent.models.mcil": ("MCIL",),
    "calvin_agent.utils.utils": ("add_text", "format_sftp_path"),
    "torch": (),
}


def chain(number: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Of the benchmark's 1,000 pairs of initial condition and five subtasks, one, made by its own code."""
    condition, (group, place) = _order()[number]
    return condition, _group(*group)[place]


@functools.cache
def _order() -> list[tuple[dict[str, Any], tuple[_Group, int]]]:
    """The 1,000 chains in the benchmark's order, with the place of the subtasks in the place of the subtasks.

    Drawing the subtasks takes minutes, and the benchmark does so in processes that it forks, which a process with
    threads, such as jax's, must not. The order does not depend on what they are.
    """
    _, sequences = _evaluation()
    executor, sequences.ProcessPoolExecutor = sequences.ProcessPoolExecutor, _Places
    try:
        return [(condition, places[0]) for condition, places in sequences.get_sequences(CHAINS)]
    finally:
        sequences.ProcessPoolExecutor = executor


_Group = tuple[tuple[tuple[str, Any], ...], int, int]  # initial condition, how many sequences, seed


@functools.cache
def _group(condition: tuple[tuple[str, Any], ...], count: int, seed: int) -> list[tuple[str, ...]]:
    """All sequences of subtasks of an initial condition."""
    _, sequences = _evaluation()
    with sequences.temp_seed(seed):  # what runs seeds numpy's global numbers; they are put back
        drawn = sequences.get_sequences_for_state2((dict(condition), count, seed))
    return [tuple(map(str, subtasks)) for subtasks in drawn]


class _Places:
    """A ProcessPoolExecutor that, asked for groups of sequences, answers with the places of each sequence."""

    def __init__(self, max_workers: int) -> None:
        del max_workers

    def __enter__(self) -> _Places:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: object, arguments: Iterable[tuple[dict[str, Any], int, int]]) -> list[list[_Place]]:
        del function
        return [[_Place(((tuple(condition.items()), count, seed), k)) for k in range(count)]
                for condition, count, seed in arguments]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Taken for an array of subtasks, of which the benchmark makes a tuple by way of a list."""

    place: tuple[_Group, int]

    def tolist(self) -> list[tuple[_Group, int]]:
        return [self.place]


def initial_state(condition: dict[str, Any]) -> tuple[Any, Any]:
    """robot_obs (15,) and scene_obs (24,) that a chain begins with."""
    evaluation, _ = _evaluation()
    return evaluation.get_env_state_for_initial_condition(condition)


def oracle() -> Any:
    """The repository's `Tasks`: which of them were done between two infos."""
    return CHECKOUT.module("hydra.utils").instantiate(_load("callbacks/rollout/tasks/new_playtable_tasks.yaml"))


def sentences() -> Any:
    """{SUBTASK: [the benchmark's sentence for it]}."""
    return _load("annotations/new_playtable_validation.yaml")


def make_simulator() -> Any:
    """The repository's simulator with its two cameras.

    Raises:
        FileNotFoundError: AGENT_JAX_CALVIN_DATA leads to no data set.
    """
    scene = _recorded_scene() if os.environ.get(DATA) else _scene_d()
    # The data sets' fingertip sensors are not seen here, and tacto, which draws them, is not needed then.
    scene.cameras = {name: scene.cameras[name] for name in CAMERAS}
    scene.env.use_egl = os.environ.get(EGL, "1") != "0"
    CHECKOUT.module("calvin_env.envs.play_table_env")
    instantiate = CHECKOUT.module("hydra.utils").instantiate
    return instantiate(scene.env, show_gui=False, use_vr=False, use_scene_info=True)  # as its get_env does


def _recorded_scene() -> Any:
    """What a data set was recorded in: by name, as the repository's evaluation takes it."""
    value = os.environ[DATA]
    path = Path(value).expanduser() / "validation" / ".hydra" / "merged_config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f'the environment "calvin": {DATA}={value}, expected a data set of CALVIN, a directory '
                                "with validation/.hydra/merged_config.yaml; unset it to act in scene D")
    return CHECKOUT.module("omegaconf").OmegaConf.load(path)


def _scene_d() -> Any:
    """Scene D, in which every published CALVIN figure of "ABCD -> D" is made, from the checkout's own files."""
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
    """Modules of the repository."""
    with _stand_ins():
        return (CHECKOUT.module("calvin_agent.evaluation.utils"),
                CHECKOUT.module("calvin_agent.evaluation.multistep_sequences"))


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Modules in the place of what the evaluation imports and is not used for here; gone afterwards."""
    made = {name: ModuleType(name) for name in _NEEDLESS}
    for name, attributes in _NEEDLESS.items():
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
    """FNV-1 of 32 bits (Fowler, Noll, Vo), begun at 0 as pyhash does; it seeds the places of a chain's blocks."""
    value = 0
    for byte in text.encode():
        value = (value * 0x01000193 & 0xFFFFFFFF) ^ byte
    return value
