from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent_jax.data.store.store import open_store
from agent_jax.envs import collect, load, tasks_of
from agent_jax.envs.workers.demonstration_worker import demonstrate

# Without importing it: the renderer is chosen when mujoco is imported, and agent_jax.envs.metaworld sets it.
if importlib.util.find_spec("metaworld") is None:
    pytest.skip("metaworld is not installed", allow_module_level=True)
# In another process: without EGL, mujoco's objects raise errors when they are deleted.
DRAW = "from agent_jax.envs import load; load('metaworld').make('drawer-close', 8).reset(seed=0)"
if (drawn := subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, check=False)).returncode:
    pytest.skip(f"MuJoCo cannot draw here: {drawn.stderr[-200:]}", allow_module_level=True)

metaworld = load("metaworld")


@pytest.fixture(scope="module")
def drawer():
    environment = metaworld.make("drawer-close@16hz", 32)
    yield environment
    environment.close()


def test_there_are_ten_and_fifty_tasks_each_with_its_own_sentence() -> None:
    assert len(metaworld.TASKS["MT10"]) == 10
    assert set(metaworld.TASKS["MT10"]) < set(metaworld.TASKS["MT50"]) == set(metaworld.SENTENCES)
    assert len(set(metaworld.SENTENCES.values())) == len(metaworld.SENTENCES) == 50
    assert tasks_of(metaworld, ["MT10", "reach", "sweep"]) == (*metaworld.TASKS["MT10"], "sweep")


def test_an_episode_is_determined_by_its_seed(drawer) -> None:
    first, info = drawer.reset(seed=5)
    assert info == {"success": False}
    assert (first["rgb"].shape, first["rgb"].dtype) == ((32, 32, 3), np.uint8)
    assert first["state"].dtype == np.float32
    drawer.step({"action": np.ones(4)})
    other = drawer.reset(seed=6)[0]
    again = drawer.reset(seed=5)[0]
    np.testing.assert_array_equal(first["rgb"], again["rgb"])
    np.testing.assert_array_equal(first["state"], again["state"])
    assert not np.array_equal(first["rgb"], other["rgb"])


def test_the_state_is_the_hands_position_and_follows_the_action(drawer) -> None:
    before = drawer.reset(seed=1)[0]["state"]
    after = drawer.step({"action": np.array([1.0, 0.0, 0.0, -1.0])})[0]["state"]
    assert after[0] - before[0] > 0.005
    assert abs(after[1] - before[1]) < 0.01
    closing = [drawer.step({"action": np.array([0.0, 0.0, 0.0, 1.0])})[0]["state"][3] for _ in range(6)]
    assert closing[-1] < before[3] - 0.2


@pytest.mark.parametrize("task", ["door-open@16hz", "reach"])
def test_the_scripted_policy_solves_the_task_at_both_rates(task: str) -> None:
    environment = metaworld.make(task, 8)
    record = demonstrate(metaworld, environment, 3, 0.0)
    environment.close()
    assert record is not None
    assert record["instruction"] == metaworld.SENTENCES[environment.task]
    last = record["steps"][-1]
    assert last["is_terminal"]
    actions = np.array([step["action"] for step in record["steps"]])
    assert actions.shape[1:] == (4,)
    assert np.abs(actions).max() <= 1


def test_tasks_outside_mt10_begin_with_the_hand_within_the_states_bounds() -> None:
    for task in ("assembly", "shelf-place"):
        environment = metaworld.make(task, 8)
        observation, _ = environment.reset(seed=0)
        low, high = metaworld.STATE_SPEC.bounds("state")
        assert (observation["state"] >= low).all()
        assert (observation["state"] <= high).all()
        environment.close()


def test_an_episode_is_truncated_after_500_steps_of_the_simulator() -> None:
    environment = metaworld.make("pick-place@2hz", 8)
    environment.reset(seed=0)
    ends = [environment.step({"action": np.zeros(4)})[2:4] for _ in range(13)]  # 500 / 40, rounded up
    environment.close()
    assert ends == [(False, False)] * 12 + [(False, True)]
    assert not any(any(end) for end in ends[:-1])


def test_demonstrations_have_images_and_state(tmp_path: Path) -> None:
    collect.main(["metaworld", "--task", "drawer-close@16hz", "--episodes", "2", "--validation_episodes", "1",
                  "--image_size", "16", "--processes", "1", "--noise", "0.3", "--out", str(tmp_path / "made")])
    store = open_store(tmp_path / "made")
    assert dict(store.splits) == {"train": 2, "test": 1}
    assert store.metadata["state_spec"] == metaworld.STATE_SPEC.to_dict()
    episode = store.split("train")[0]
    states = np.asarray(episode.values("steps/observation/state", 0, episode.steps))
    assert states.shape == (episode.steps, 4)
    weights = set(np.asarray(episode.values("steps/action_weight", 0, episode.steps)).tolist())
    assert weights <= {0.0, 1.0}


def test_without_egl_the_error_names_what_to_install() -> None:
    environment = {**os.environ, "__EGL_VENDOR_LIBRARY_FILENAMES": "/no/driver"}  # of the library that finds drivers
    done = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, check=False, env=environment)
    assert "OSError: environment 'metaworld': MuJoCo cannot render here with MUJOCO_GL=egl: Cannot" in done.stderr
    assert 'environments.md, "Meta-World"' in done.stderr


def test_user_errors_name_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"task: found 'door-opn', .*: door-open"):
        metaworld.make("door-opn")
    with pytest.raises(ValueError, match=r"found 'door-open@30hz', expected .*80 Hz"):
        metaworld.make("door-open@30hz")
    with pytest.raises(ValueError, match="image_size=0 must be at least 1"):
        metaworld.make("reach", 0)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.delitem(sys.modules, "agent_jax.envs.metaworld")
    with pytest.raises(ModuleNotFoundError, match=r'needs mujoco, .* pip install -e "\.\[metaworld\]"'):
        load("metaworld")
