"""Meta-World (Yu et al. 2019, arXiv 1910.10897; McLean et al. 2025, arXiv 2505.11289): a robot arm, 50 tasks.

    "door-open" + seed -> positions of door, goal and hand -> "open the door": rgb, hand position, gripper opening

Each episode has its own positions, drawn from the seed over the task's whole range. It ends at the first success or
after 500 steps of the simulator, which runs at 80 Hz. "door-open@16hz" is the same task with each action held for 5
simulator steps, so an episode has 100 steps, which a small agent learns sooner.

MuJoCo renders off screen by EGL, without shadows, reflections and multisampling, which are slow on a CPU.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from agent_jax.actions.simulators import METAWORLD, METAWORLD_STATE
from agent_jax.envs import Action, Observation, requires
from agent_jax.envs.random_actions import uniform_actions
from agent_jax.help_pages import help_page

os.environ.setdefault("MUJOCO_GL", "egl")  # for machines without a display; read when mujoco is imported


@contextlib.contextmanager
def _renders() -> Iterator[None]:
    """Name what is missing where MuJoCo cannot render.

    Raises:
        OSError: it cannot; PyOpenGL raises an AttributeError without libEGL, mujoco an ImportError without a device.
    """
    try:
        yield
    except ModuleNotFoundError:
        raise
    except (ImportError, AttributeError) as error:
        raise OSError(f"environment 'metaworld': MuJoCo cannot render here with MUJOCO_GL={os.environ['MUJOCO_GL']}: "
                      f"{error}; install its library and driver{help_page('guides/environments.md', 'Meta-World')}"
                      ) from error


with _renders(), requires("metaworld", "mujoco", "metaworld", "packaging"):
    import mujoco
    from metaworld import env_dict
    from metaworld.policies import ENV_POLICY_MAP

NAME = "metaworld"
ACTION_SPEC = METAWORLD
STATE_SPEC = METAWORLD_STATE
STATE_SHAPES = {}
CAMERAS = ("rgb",)
RATE_HZ = 80.0
IMAGE_SIZE = 224
IMAGE_SHAPES = {"rgb": (IMAGE_SIZE, IMAGE_SIZE, 3)}
ONE_A_PROCESS = False
HAS_EXPERT = True
# Our own sentences: Meta-World has only names.
SENTENCES = {
    "assembly": "put the ring on the peg",
    "basketball": "put the basketball through the hoop",
    "bin-picking": "move the block from the right bin to the left bin",
    "box-close": "put the lid on the box",
    "button-press": "press the button on the wall",
    "button-press-topdown": "press the button from above",
    "button-press-topdown-wall": "reach over the wall and press the button from above",
    "button-press-wall": "reach around the wall and press the button",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-close": "turn the faucet off",
    "faucet-open": "turn the faucet on",
    "hammer": "hammer the nail into the wall",
    "hand-insert": "put the hand into the hole",
    "handle-press": "press the handle down",
    "handle-press-side": "press the handle down from the side",
    "handle-pull": "pull the handle up",
    "handle-pull-side": "pull the handle up from the side",
    "lever-pull": "pull the lever up",
    "peg-insert-side": "put the peg into the hole at the side",
    "peg-unplug-side": "pull the peg out of the hole",
    "pick-out-of-hole": "take the puck out of the hole",
    "pick-place": "carry the puck to the ball",
    "pick-place-wall": "carry the puck over the wall to the ball",
    "plate-slide": "slide the plate into the goal",
    "plate-slide-back": "slide the plate out of the goal",
    "plate-slide-back-side": "slide the plate out of the goal to the side",
    "plate-slide-side": "slide the plate into the goal at the side",
    "push": "push the puck to the ball",
    "push-back": "push the block back to the ball",
    "push-wall": "push the puck around the wall to the ball",
    "reach": "reach the ball",
    "reach-wall": "reach the ball behind the wall",
    "shelf-place": "put the block on the shelf",
    "soccer": "kick the ball into the goal",
    "stick-pull": "pull the thermos with the stick",
    "stick-push": "push the thermos with the stick",
    "sweep": "sweep the block off the table",
    "sweep-into": "sweep the block into the hole",
    "window-close": "close the window",
    "window-open": "open the window",
}
_SUFFIX = "-v3"
TASKS = {
    name: tuple(task.removesuffix(_SUFFIX) for task in tasks)
    for name, tasks in (("MT10", env_dict.MT10_V3), ("MT50", env_dict.MT50_V3))
}
RANDOM = {"random": uniform_actions(METAWORLD)}
NOISE = RANDOM["random"]
_CAMERA = "corner4"  # from the front, above a corner: the nearer of the two cameras that show hand and objects


def version() -> str:
    """Names and versions of Meta-World and MuJoCo."""
    return f"metaworld {importlib.metadata.version('metaworld')}, mujoco {importlib.metadata.version('mujoco')}"


def action_name(action: Action) -> str:
    """The hand's move in millimetres and the gripper, e.g. `+10 -3 +0 mm, close`."""
    dx, dy, dz, grip = (float(number) for number in np.clip(action["action"], -1, 1))
    return f"{10 * dx:+.0f} {10 * dy:+.0f} {10 * dz:+.0f} mm, {'close' if grip > 0 else 'open'}"


def _held_steps(level: str, rate: str) -> int:
    """Simulator steps that an action is held for, from the part of a level's name after the @."""
    if not rate:
        return 1
    number = rate.removesuffix("hz")
    if number == rate or not number.isdigit() or int(number) < 1 or RATE_HZ % int(number):
        raise ValueError(f"task: found {level!r}, expected a rate that divides {RATE_HZ:.0f} Hz, e.g. "
                         f"{level.partition('@')[0]}@16hz")
    return int(RATE_HZ) // int(number)


class MetaWorld:
    """One task, e.g. "door-open", "door-open-v3" or "door-open@16hz".

    Observations: {"rgb": uint8 (image_size, image_size, 3), "state": float32 (4,)}.
    """

    def __init__(self, level: str, image_size: int = IMAGE_SIZE) -> None:
        task, _, rate = level.partition("@")
        task = task.removesuffix(_SUFFIX)
        if task not in SENTENCES:
            near = difflib.get_close_matches(task, SENTENCES, n=3) or list(TASKS["MT10"][:3])
            raise ValueError(f"task: found {level!r}, which {version()} lacks; similar: {', '.join(near)}")
        if image_size < 1:
            raise ValueError(f"image_size={image_size} must be at least 1 pixel")
        self.task, self._size, self._hold = task, image_size, _held_steps(level, rate)
        self.level = f"{task}@{rate}" if rate else task
        # Typed Any: the class is looked up by name.
        self.simulator: Any = env_dict.ALL_V3_ENVIRONMENTS[task + _SUFFIX]()
        self.simulator._set_task_called = True  # draw positions from the seed, not from a list of 50
        self.simulator._freeze_rand_vec, self.simulator.seeded_rand_vec = False, True
        self.simulator._partially_observable = False  # the scripted policies read the goal; the agent sees images
        vars(self.simulator).pop("sawyer_observation_space", None)  # cached for a hidden goal, and clips it to 0
        self._renderer: Any = None
        self.numbers = np.zeros(39)  # the observation of the scripted policies

    @property
    def instruction(self) -> str:
        """The task in words."""
        return SENTENCES[self.task]

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode of `seed`."""
        self.simulator.seed(seed)
        self.numbers, _ = self.simulator.reset()
        return self._observe(), {"success": False}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take {"action": (dx, dy, dz, gripper)}, clipped to [-1, 1]; the episode ends at the first success."""
        move = np.clip(np.asarray(action["action"], np.float32), -1, 1)
        total, success, truncated = 0.0, False, False
        for _ in range(self._hold):
            self.numbers, reward, _, truncated, info = self.simulator.step(move)
            total, success = total + float(reward), bool(info["success"])
            if success or truncated:
                break
        return self._observe(), total, success, bool(truncated) and not success, {"success": success}

    def close(self) -> None:
        """Release the renderer and the simulator."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.simulator.close()

    def _observe(self) -> Observation:
        if self._renderer is None:
            visual = self.simulator.model.vis
            visual.quality.offsamples = 0
            visual.global_.offwidth = visual.global_.offheight = self._size
            with _renders():
                self._renderer = mujoco.Renderer(self.simulator.model, self._size, self._size)
            flags: Any = vars(mujoco)["mjtRndFlag"]  # missing in its type stubs
            for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION):
                self._renderer.scene.flags[flag] = False
        self._renderer.update_scene(self.simulator.data, camera=_CAMERA)
        image = self._renderer.render()[::-1, ::-1]  # the camera is mounted upside down
        return {"rgb": np.ascontiguousarray(image), "state": self.numbers[:4].astype(np.float32)}


make = MetaWorld


class Expert:
    """Meta-World's scripted policy of the task."""

    def __init__(self, environment: MetaWorld) -> None:
        self._environment = environment
        self._policy = ENV_POLICY_MAP[environment.task + _SUFFIX]()
        self.failed = False

    def act(self, taken: Action | None = None) -> dict[str, np.ndarray]:
        """The policy's action, clipped to [-1, 1]; it depends on the current state, so `taken` is not read."""
        del taken
        with warnings.catch_warnings():  # "Constant(s) may be too high. Environments clip response to [-1, 1]"
            warnings.simplefilter("ignore", UserWarning)
            action = self._policy.get_action(self._environment.numbers)
        return {"action": np.clip(action, -1, 1).astype(np.float32)}
