"""Replacements for checkouts of simulators: files with the real repositories' modules and classes.

They have no physics: a counter moves with the first number of the action, and the task succeeds when it is high enough.
"""

from __future__ import annotations

from pathlib import Path

LANGUAGE_TABLE = {
    "language_table/__init__.py": "",
    "language_table/environments/__init__.py": "",
    "language_table/environments/blocks.py": """
import enum
class LanguageTableBlockVariants(enum.Enum):
    BLOCK_4 = "BLOCK_4"
    BLOCK_8 = "BLOCK_8"
""",
    "language_table/environments/language_table.py": """
import numpy as np
class LanguageTable:
    def __init__(self, block_mode, training=True, reward_factory=None, control_frequency=10.0, seed=None):
        self._rng = np.random.RandomState(seed)
        self.block_mode, self._control_frequency = block_mode, control_frequency
        self._reward_calculator = reward_factory(goal_reward=100.0, rng=self._rng, delay_reward_steps=0,
                                                 block_mode=block_mode)
        self.pybullet_client = self
        self.connected, self.moved = True, 0.0
        self.reset()
    def disconnect(self): self.connected = False
    def seed(self, seed=None):
        self._rng = np.random.RandomState(seed=seed)
        self._reward_calculator.seed(self._rng)
    def reset(self, reset_poses=True):
        self.layout, self.moved = int(self._rng.randint(1000)), 0.0
        return self._observation()
    def compute_state(self, request_task_update=True): return {"layout": self.layout}
    def step(self, action):
        assert action.dtype == np.float32
        self.moved += float(action[0])
        reward, done = self._reward_calculator.reward({"moved": self.moved})
        return self._observation(), reward, done, {}
    @property
    def succeeded(self): return self._reward_calculator.reward({"moved": self.moved})[0] > 0.0
    @staticmethod
    def decode_instruction(bytes_list): return bytes(bytes_list[bytes_list != 0].tolist()).decode("utf-8")
    def _observation(self):
        text = f"layout {self.layout}".encode()
        return {"effector_translation": np.array([0.4, self.moved]), "instruction": np.array([*text, 0, 0], np.int32),
                "effector_target_translation": np.zeros(2, np.float32),
                "rgb": np.full((180, 320, 3), self.layout % 256, np.uint8)}
""",
    "language_table/environments/oracles/__init__.py": "",
    "language_table/environments/oracles/push_oracle_rrt_slowdown.py": """
import numpy as np
from tf_agents.trajectories import time_step as ts
class ObstacleOrientedPushOracleBoard2dRRT:
    def __init__(self, env, use_ee_planner): self._env, self.resets = env, 0
    def get_plan(self, raw_state): return raw_state["layout"] % 3 == 0
    def reset(self): self.resets += 1
    def _action(self, time_step, policy_state):
        if time_step.is_first(): self.reset()
        assert self._env.get_control_frequency() == 10.0
        class Step: action = np.array([0.5, 0.0])
        return Step
""",
    "tf_agents/__init__.py": "",
    "tf_agents/environments/__init__.py": "",
    "tf_agents/environments/gym_wrapper.py": """
class GymWrapper:
    def __init__(self, environment): self._environment = environment
    def __getattr__(self, name): return getattr(self._environment, name)
""",
    "tf_agents/trajectories/__init__.py": "",
    "tf_agents/trajectories/time_step.py": """
class TimeStep:
    def __init__(self, first): self._first = first
    def is_first(self): return self._first
def restart(observation): return TimeStep(True)
def transition(observation, reward): return TimeStep(False)
""",
    "language_table/environments/rewards/__init__.py": "",
    **{f"language_table/environments/rewards/{module}.py": f"""
class {name}:
    def __init__(self, goal_reward, rng, delay_reward_steps, block_mode): self._goal_reward = goal_reward
    def seed(self, rng): pass
    def reward(self, state): return (self._goal_reward, True) if state["moved"] > 0.1 else (0.0, False)
""" for module, name in (("block2block", "BlockToBlockReward"),
                         ("block2absolutelocation", "BlockToAbsoluteLocationReward"),
                         ("block2block_relative_location", "BlockToBlockRelativeLocationReward"),
                         ("block2relativelocation", "BlockToRelativeLocationReward"),
                         ("separate_blocks", "SeparateBlocksReward"))},
}

CALVIN = {
    "calvin_models/calvin_agent/__init__.py": "",
    "calvin_models/calvin_agent/models/__init__.py": "",
    "calvin_models/calvin_agent/models/mcil.py": "import pytorch_lightning",
    "calvin_models/calvin_agent/utils/__init__.py": "",
    "calvin_models/calvin_agent/utils/utils.py": "import pytorch_lightning",
    "calvin_models/calvin_agent/evaluation/__init__.py": "",
    "calvin_models/calvin_agent/evaluation/multistep_sequences.py": """
from concurrent.futures import ProcessPoolExecutor
from calvin_agent.evaluation.utils import temp_seed
import numpy as np
def get_sequences_for_state2(args):
    state, num_sequences, i = args
    np.random.seed(i)
    return [np.array([f"task_{(state['number'] + int(np.random.randint(10)) + k) % 34}" for k in range(5)])
            for _ in range(num_sequences)]
def flatten(t): return [tuple(item.tolist()) for sublist in t for item in sublist]
def get_sequences(num_sequences=1000, num_workers=None):
    initial_states = [{"number": i, "slider": "left"} for i in range(192)]
    num_sequences_per_state = list(map(len, np.array_split(range(num_sequences), len(initial_states))))
    with temp_seed(0):
        with ProcessPoolExecutor(max_workers=2) as executor:
            results = flatten(executor.map(get_sequences_for_state2, zip(initial_states, num_sequences_per_state,
                                                                         range(len(initial_states)))))
        results = list(zip(np.repeat(initial_states, num_sequences_per_state), results))
        np.random.shuffle(results)
    return results
""",
    "calvin_models/calvin_agent/evaluation/utils.py": """
import contextlib
from calvin_agent.models.mcil import MCIL
from calvin_agent.utils.utils import add_text, format_sftp_path
import numpy as np
import pyhash
import torch
hasher = pyhash.fnv1_32()
@contextlib.contextmanager
def temp_seed(seed):
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
def get_env_state_for_initial_condition(initial_condition):
    with temp_seed(hasher(str(initial_condition.values()))):
        return np.full(15, initial_condition["number"], float), np.random.uniform(size=24)
""",
    "calvin_models/conf/callbacks/rollout/tasks/new_playtable_tasks.yaml": "tasks",
    "calvin_models/conf/annotations/new_playtable_validation.yaml": "annotations",
    **{f"calvin_env/conf/{name}.yaml": name for name in (
        "robot/panda", "robot/panda_longer_finger", "env/play_table_env", "scene/calvin_scene_D",
        "cameras/cameras/static", "cameras/cameras/gripper")},
    "calvin_env/calvin_env/__init__.py": "",
    "calvin_env/calvin_env/envs/__init__.py": "",
    "calvin_env/calvin_env/envs/play_table_env.py": """
import numpy as np
class PlayTableSimEnv:
    ownsPhysicsClient, closed = True, 0
    def __init__(self, env, **kwargs): self.env, self.kwargs = env, kwargs
    def __del__(self): self.close()
    def reset(self, robot_obs=None, scene_obs=None):
        self.robot_obs, self.scene_obs, self.moved, self.actions = robot_obs, scene_obs, 0.0, []
        return self.get_obs()
    def get_obs(self):
        return {"rgb_obs": {"rgb_static": np.full((200, 200, 3), 7, np.uint8),
                            "rgb_gripper": np.full((84, 84, 3), 9, np.uint8)},
                "depth_obs": {}, "robot_obs": self.robot_obs, "scene_obs": np.zeros(24)}
    def get_info(self): return {"moved": self.moved}
    def step(self, action):
        assert action.shape == (7,) and action[-1] in (-1, 1)
        self.actions.append(action)
        self.moved += action[0]
        return self.get_obs(), 0, False, self.get_info()
    def close(self): self.closed += self.ownsPhysicsClient
""",
    "calvin_env/hydra/__init__.py": "",
    "calvin_env/hydra/utils.py": """
from calvin_env.envs.play_table_env import PlayTableSimEnv
class Tasks:
    def get_task_info_for_set(self, start_info, end_info, task_filter):
        return set(task_filter) if end_info["moved"] - start_info["moved"] >= 3 else set()
def instantiate(configuration, **kwargs):
    return PlayTableSimEnv(configuration, **kwargs) if kwargs else Tasks()
""",
    "calvin_env/omegaconf/__init__.py": """
from types import SimpleNamespace
class OmegaConf:
    @staticmethod
    def load(path):
        assert path.is_file(), path
        if path.stem == "new_playtable_validation":
            return {f"task_{i}": [f"do thing {i}"] for i in range(34)}
        if path.stem == "merged_config":
            return OmegaConf.create({"env": SimpleNamespace(scene="recorded"), "robot": {}, "scene": {},
                                     "cameras": dict.fromkeys(("static", "gripper", "tactile"))})
        return SimpleNamespace(scene="D") if path.stem == "play_table_env" else {"defaults": [], "name": path.stem}
    @staticmethod
    def merge(one, other): return one | other
    @staticmethod
    def create(content): return SimpleNamespace(**content)
""",
    "data/validation/.hydra/merged_config.yaml": "",
}

LIBERO = {
    "libero/libero/__init__.py": """
import os, yaml
config = os.path.join(os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero")), "config.yaml")
if not os.path.exists(config):
    input("Do you want to specify a custom path for the dataset folder? (Y/N): ")
def get_libero_path(key):
    with open(config) as file: return yaml.load(file.read(), Loader=yaml.FullLoader)[key]
""",
    "libero/libero/init_files/suite/empty": "",
    "libero/libero/benchmark/__init__.py": """
import os
import numpy as np
import torch
from libero.libero import get_libero_path
class Task:
    def __init__(self, language): self.language = language
class Suite:
    def get_task(self, i): return Task(f"do thing {i}")
    def get_task_init_states(self, i):
        path = os.path.join(get_libero_path("init_states"), "suite", f"{i}.pruned_init")
        torch.save(np.arange(50, dtype=float)[:, None], path)  # as in the real files
        return torch.load(path)
    def get_task_bddl_file_path(self, i): return os.path.join(get_libero_path("bddl_files"), f"suite/{i}.bddl")
def get_benchmark(name): return Suite
""",
    "libero/libero/envs/__init__.py": """
import numpy as np
class OffScreenRenderEnv:
    def __init__(self, bddl_file_name, camera_heights, camera_widths):
        self.size, self.bddl_file_name, self.moved = (camera_heights, camera_widths), bddl_file_name, None
    def seed(self, seed): pass
    def reset(self): self.moved, self.steps = 0.0, 0
    def set_init_state(self, state): self.state = float(state[0]); return self.seen()
    def step(self, action):
        assert len(action) == 7 and abs(action).max() <= 1
        self.moved, self.steps = self.moved + action[0], self.steps + 1
        return self.seen(), float(self.check_success()), self.check_success(), {}
    def check_success(self): return self.moved > 2
    def seen(self):
        image = np.zeros((*self.size, 3), np.uint8)
        image[0, 0] = 255
        return {"agentview_image": image, "robot0_eye_in_hand_image": image,
                "robot0_eef_pos": np.array([self.state, self.moved, 0.0]),
                "robot0_eef_quat": np.array([0.0, 0.0, np.sin(0.25), np.cos(0.25)]),
                "robot0_gripper_qpos": np.array([0.02, -0.02])}
    def close(self): self.closed = True
""",
}


def write_checkout(directory: Path, files: dict[str, str]) -> Path:
    """Write the files of a checkout below `directory`."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return directory
