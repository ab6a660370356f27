"""Every config of configs/finetune takes two steps of a tiny model on data of its form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lerobot_sets
import numpy as np
import pytest
from config_files import load_config
from data_stores import CAMERAS, clip_store, game_store, language_table_store
from prepared_runs import two_steps

from agent_jax.actions import BLEEDING_EDGE, CALVIN, MINECRAFT, calvin_state
from agent_jax.config import from_config_dict, presets
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.prepare import prepare
from agent_jax.data.store.writer import episode_features, write_store


def table(directory: Path) -> dict[str, Any]:
    language_table_store(directory)
    return {"validation_split": "train"}


def calvin(directory: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    state = calvin_state(np.zeros(15), np.ones(15))
    features = episode_features((16, 16, 3), CALVIN.fields, state.fields)

    def numbers(count: int) -> np.ndarray:
        return np.asarray([*rng.uniform(-1, 1, count), rng.choice((-1, 1))], np.float32)  # the last one is the gripper

    def episode(number: int) -> dict[str, Any]:
        steps = [{"observation": {"rgb": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), "robot_obs": numbers(14)},
                  "action": numbers(6), "action_weight": 1.0, "reward": 0.0,
                  "is_first": t == 0, "is_last": t == 7, "is_terminal": False} for t in range(8)]
        return {"episode_id": f"{number}", "recording_id": f"{number}", "start": 0, "instruction": "open the drawer",
                "steps": steps}

    write_store(directory, "calvin", features, {"train": [episode(0), episode(1)], "test": [episode(2)]},
                {"action_spec": CALVIN.to_dict(), "state_spec": state.to_dict()})
    return {}


def clips(directory: Path) -> dict[str, Any]:
    clip_store(directory, lengths=(9, 9, 9), test=(9,))
    return {"cameras": CAMERAS[:1]}


def robot(directory: Path) -> dict[str, Any]:
    source = lerobot_sets.version_3(directory.with_name("lerobot"))
    cameras = {"front": lerobot_sets.TOP, "wrist": lerobot_sets.WRIST}
    prepare("lerobot", source, directory, PrepareConfig(image_size=16, cameras=cameras))
    return {"action_spec": presets.arm_spec("my_robot", names=("x", "y", "z"), bounds="quantiles"),
            "validation_split": "train"}


# The data of each config: a function that writes them and returns fields of the domain.
DATA: dict[str, Callable[[Path], dict[str, Any]]] = {
    "language_table": table, "calvin": calvin,
    "minecraft": lambda directory: game_store(directory, spec=MINECRAFT) and {},
    "bleeding_edge": lambda directory: game_store(directory, spec=BLEEDING_EDGE) and {},
    "captions": clips, "vqa": clips, "rass": clips, "my_robot": robot,
}
FAST = ("my_robot",)


def test_every_config_has_data(root: Path):
    found = {path.stem for path in (root / "configs" / "finetune").glob("*.py")}
    assert found == {*DATA, "mini"}  # which gathers its data: test_pretrain_mini.py


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
                                  for name in DATA])
def test_a_config_takes_two_steps_on_data_of_its_form(root: Path, tmp_path: Path, name: str):
    changes = DATA[name](tmp_path / "data")
    config = load_config(root, f"finetune/{name}.py:smoke", f"--config.data.domains.{name}.path={tmp_path / 'data'}")
    with config.unlocked(), config.ignore_type():
        config.data.domains[name].update(changes)
    metrics = two_steps(from_config_dict(config))
    assert np.isfinite(metrics.loss)
    assert metrics.frames > 0
