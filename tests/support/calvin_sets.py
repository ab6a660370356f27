"""Writes CALVIN folders in the format of the authors' recorder and annotator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

MEAN = [round(0.05 * d, 3) for d in range(14)] + [0.1]
STD = [round(0.1 + 0.01 * d, 3) for d in range(14)] + [0.995]
# Annotations by folder: (start, end, text). In training the first two share steps, through which the third is joined.
ANNOTATED = {
    "training": [(30, 38, "close the drawer"), (10, 18, "push the red block"), (16, 24, "lift the red block"),
                 (23, 26, "turn on the lamp")],
    "validation": [(100, 109, "open the drawer")],
}
PLAYS = {"training": [(8, 27), (28, 40)], "validation": [(100, 110)]}


def step_arrays(number: int) -> dict[str, np.ndarray]:
    """A time step; every number differs from its neighbours'."""
    rng = np.random.default_rng(number)
    robot_obs = np.asarray(MEAN) + np.asarray(STD) * rng.uniform(-1, 1, 15)
    robot_obs[14] = 1.0 if number % 3 else -1.0
    rel_actions = rng.uniform(-1, 1, 7)
    rel_actions[6] = robot_obs[14]
    return {
        "actions": rng.uniform(-0.5, 0.5, 7), "rel_actions": rel_actions, "robot_obs": robot_obs,
        "scene_obs": rng.uniform(-1, 1, 24),
        "rgb_static": np.full((20, 20, 3), number, np.uint8),
        "rgb_gripper": np.full((12, 12, 3), 255 - number, np.uint8),
        "rgb_tactile": np.zeros((16, 12, 6), np.uint8), "depth_static": np.ones((20, 20), np.float32),
    }


def save_step(folder: Path, number: int, **changes: Any) -> None:
    """Write a step's file; an array changed to None is left out."""
    arrays: dict[str, Any] = {**step_arrays(number), **changes}
    np.savez_compressed(folder / f"episode_{number:07d}.npz",
                        **{key: value for key, value in arrays.items() if value is not None})


def save_annotations(folder: Path, annotated: list[Any]) -> None:
    (folder / "lang_annotations").mkdir(exist_ok=True)
    content = {
        "language": {"ann": [text for _, _, text in annotated], "task": ["a_task" for _ in annotated],
                     "emb": np.zeros((len(annotated), 1, 384), np.float32)},
        "info": {"episodes": [], "indx": [(start, np.int64(end)) for start, end, _ in annotated]},
    }
    saved: Any = content
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", saved, allow_pickle=True)


def calvin_folder(path: Path) -> Path:
    for name, plays in PLAYS.items():
        folder = path / name
        folder.mkdir(parents=True)
        np.save(folder / "ep_start_end_ids.npy", np.asarray(plays))
        for number in {n for first, last in plays for n in range(first, last + 1)}:
            save_step(folder, number)
        save_annotations(folder, ANNOTATED[name])
        (folder / "statistics.yaml").write_text(
            "robot_obs:\n"
            "  - _target_: calvin_models.calvin_agent.utils.transforms.NormalizeVector\n"
            f"    mean: {MEAN[:7]}\n".replace("]\n", f",\n      {str(MEAN[7:])[1:]}\n") + f"    std: {STD}\n"
            "scene_obs:\n  - _target_: calvin_models.calvin_agent.utils.transforms.NormalizeVector\n"
            "    mean: [0.5]\n    std: [1.0]\n"
            "act_min_bound: [-0.4, -0.7, 0.2, -3.2, -0.6, -3.2, -1.0]\n")
    return path
