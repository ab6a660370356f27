"""Go-to-object in ViZDoom (Wydmuch et al. 2019, arXiv 1809.03470): a player in a room, by keyboard and mouse.

    "GoTo4" + seed -> four of 24 objects (kind and colour) in a room, one of them named -> "go to the red barrel"

    red barrel      blue lamp        Buttons: forward, back, left, right
         o              o            Camera: pitch (positive looks down), yaw (positive turns right), in degrees
              ^
            player       o green skull

An episode ends when the player comes near an object; it succeeds if that is the named one. doom_wad.py makes the room.
Console commands of the game place the objects, so the layout depends only on the seed.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import functools
import importlib.metadata
import itertools
import math
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions.simulators import VIZDOOM, VIZDOOM_BUTTONS
from agent_jax.data.images import prepare_image
from agent_jax.envs import Action, Observation, requires
from agent_jax.envs.doom_wad import COLORS, KINDS, MAP, ROOM, actor_name, scenario
from agent_jax.envs.instructions import Goal
from agent_jax.envs.random_actions import uniform_actions

with requires("vizdoom", "vizdoom"):
    import vizdoom

NAME = "vizdoom"
ACTION_SPEC = VIZDOOM
STATE_SPEC = None
STATE_SHAPES = {}
CAMERAS = ("rgb",)
TASKS = {"GoTo": ("GoTo2", "GoTo1", "GoTo4", "GoTo6")}  # the number of objects
MAX_STEPS = 60
IMAGE_SIZE = 224
IMAGE_SHAPES = {"rgb": (IMAGE_SIZE, IMAGE_SIZE, 3)}
ONE_A_PROCESS = False
HAS_EXPERT = True
RANDOM = {
    "random": uniform_actions(VIZDOOM),
    # Always forward with random turns: it moves through the room, which uniform actions hardly do.
    "random_walk": tuple({"buttons": np.array([True, False, False, False]), "camera": np.array([0.0, yaw], np.float32)}
                         for yaw in (-14.5, -7.5, 0.0, 0.0, 7.5, 14.5)),
}  # fmt: skip
NOISE = RANDOM["random_walk"]
TICS = 4  # of a step; the game has 35 a second
REACH = 64.0  # map units from an object's centre at which it is reached; the player is 32 wide
_APART = 176.0  # least distance between objects, and to the player at the start: more than twice REACH
_MARGIN = 80  # least distance from the walls
_SUMMON = 48.0  # distance in front of the player at which the console's `summon` places an actor of radius 16
_TURNS = np.array([1.5, 3.5, 7.5, 14.5, 29.5])  # of the expert, in degrees: each the centre of a bin of the ActionSpec
_RESOLUTIONS = {120: "RES_160X120", 240: "RES_320X240", 480: "RES_640X480"}  # by height


def version() -> str:
    """The simulator's name and version."""
    return f"vizdoom {importlib.metadata.version('vizdoom')}"


def action_name(action: Action) -> str:
    """Pressed keys and the turn in degrees, e.g. `forward, 7 right`."""
    keys = [name for name, down in zip(VIZDOOM_BUTTONS, action["buttons"], strict=True) if down]
    pitch, yaw = (float(turn) for turn in action["camera"])
    turns = [f"{abs(turn):.0f} {words[turn > 0]}" for turn, words in ((yaw, ("left", "right")), (pitch, ("up", "down")))
             if turn]
    return ", ".join(["+".join(keys)] * bool(keys) + turns) or "nothing"


# The game is a separate process that waits forever if this one is killed. So a shell waits for the end of its input,
# which comes when this process ends in any way; then it kills every game started from our directory and removes it.
_WATCH = """cat
for process in /proc/[0-9]*; do
  number=${process#/proc/}
  if [ "$number" != $$ ] && grep -qsF "$0/" "$process/cmdline"; then kill -9 "$number"; fi
done
rm -rf "$0"
"""


@functools.cache
def _temporary_directory() -> Path:
    """A directory for the scenario and the game's own files; removed when the process ends."""
    directory = Path(tempfile.mkdtemp(prefix="agent_jax_vizdoom_"))
    (directory / "goto.wad").write_bytes(scenario())
    watch = subprocess.Popen(["sh", "-c", _WATCH, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL, start_new_session=True)  # Ctrl-C must not end it before us

    def end() -> None:
        assert watch.stdin is not None
        watch.stdin.close()
        watch.wait()

    atexit.register(end)
    return directory


class GoTo:
    """One task; the game runs from the first `reset` to `close`. Observations: {"rgb": uint8 (size, size, 3)}."""

    def __init__(self, level: str, image_size: int = IMAGE_SIZE) -> None:
        number = level.removeprefix("GoTo")
        if number == level or number not in ("1", "2", "3", "4", "5", "6"):
            names = [f"GoTo{count}" for count in range(1, 7)]
            near = difflib.get_close_matches(level, names, n=1) or names
            raise ValueError(f"task: found {level!r}, expected one of GoTo1 to GoTo6; similar: {', '.join(near)}")
        if image_size < 1:
            raise ValueError(f"image_size={image_size} must be at least 1 pixel")
        self.level, self._count, self._size = level, int(number), image_size
        self._game: Any = None
        self._steps = 0
        self.target = ("red", "barrel")
        self.objects: dict[tuple[str, str], tuple[float, float]] = {}  # position by (colour, kind)

    @property
    def instruction(self) -> str:
        """The instruction, e.g. "go to the red barrel"."""
        return f"go to the {' '.join(self.target)}"

    @property
    def player(self) -> tuple[float, float, float, float]:
        """x, y, view direction (degrees, counter-clockwise from +x), and pitch (positive: down)."""
        x, y, angle, pitch = (float(number) for number in self._game.get_state().game_variables)
        return x, y, angle, pitch

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode of `seed`."""
        random = np.random.default_rng(seed)
        choices = list(itertools.product(COLORS, KINDS))
        chosen = [choices[int(i)] for i in random.choice(len(choices), self._count, replace=False)]
        x, y, *places = _places(random, self._count)
        angle = float(random.uniform(-180, 180))
        self._game = self._game or self._start()
        self._game.new_episode()
        for (color, kind), (to_x, to_y) in zip(chosen, places, strict=True):
            self._game.send_game_command(f"warp {to_x:.0f} {to_y - _SUMMON:.0f}")
            self._game.send_game_command(f"summon {actor_name(color, kind)}")
        self._game.send_game_command(f"warp {x:.0f} {y:.0f}")
        self._game.advance_action(8)  # commands take effect; the game ignores actions in its first 4 tics
        self._game.make_action([0, 0, 0, 0, angle, 0], 1)
        found = {thing.name: (thing.position_x, thing.position_y) for thing in self._game.get_state().objects}
        self.objects = {pair: found[actor_name(*pair)] for pair in chosen}
        self.target, self._steps = chosen[0], 0
        return self._observe(), {"success": False}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Press {"buttons": bool (4,)} and turn by {"camera": (pitch, yaw)} for 4 tics; reward 1 at success."""
        pitch, yaw = (float(turn) for turn in np.clip(action["camera"], -45, 45))
        keys = [int(down) for down in action["buttons"]]
        self._game.make_action([*keys, yaw / TICS, -pitch / TICS], TICS)  # turns are a tic's
        self._steps += 1
        x, y, *_ = self.player
        near = [pair for pair, place in self.objects.items() if math.dist(place, (x, y)) <= REACH]
        success = self.target in near
        truncated = not near and self._steps >= MAX_STEPS
        return self._observe(), float(success), bool(near), truncated, {"success": success}

    def close(self) -> None:
        """End the game."""
        if self._game is not None:
            atexit.unregister(self._game.close)
            self._game.close()
            self._game = None

    def _start(self) -> Any:
        game = vizdoom.DoomGame()
        directory = _temporary_directory()
        game.set_doom_scenario_path(str(directory / "goto.wad"))
        game.set_doom_map(MAP)
        game.set_doom_config_path(str(directory / "vizdoom.ini"))
        height = next((height for height in _RESOLUTIONS if height >= self._size), max(_RESOLUTIONS))
        game.set_screen_resolution(getattr(vizdoom.ScreenResolution, _RESOLUTIONS[height]))
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_window_visible(False)
        game.set_mode(vizdoom.Mode.PLAYER)
        for element in ("hud", "weapon", "crosshair", "decals", "particles", "messages"):
            getattr(game, f"set_render_{element}")(False)
        keys = ("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT_RIGHT_DELTA",
                "LOOK_UP_DOWN_DELTA")
        game.set_available_buttons([getattr(vizdoom.Button, key) for key in keys])
        numbers = ("POSITION_X", "POSITION_Y", "ANGLE", "PITCH")
        game.set_available_game_variables([getattr(vizdoom.GameVariable, number) for number in numbers])
        game.set_objects_info_enabled(True)
        game.set_seed(0)  # no observation depends on it
        game.add_game_args("+sv_cheats 1")  # for warp and summon
        with contextlib.chdir(directory):  # the game writes a folder into the current directory
            game.init()
        atexit.register(game.close)  # before the directory is removed
        return game

    def _observe(self) -> Observation:
        return {"rgb": np.ascontiguousarray(prepare_image(self._game.get_state().screen_buffer, self._size))}


make = GoTo


def paraphrase(instruction: str, random: np.random.Generator) -> str:
    """The instruction in other words, e.g. "walk up to the barrel that is red"."""
    color, kind = instruction.split()[-2:]
    forms = (f"walk up to the {kind} that is {color}", f"find the {color} {kind}", f"approach the {color} {kind}")
    return forms[int(random.integers(len(forms)))]


def contradict(environment: GoTo, random: np.random.Generator) -> str:
    """The instruction that names another object of the room; "" if there is only one."""
    others = [pair for pair in environment.objects if pair != environment.target]
    return f"go to the {' '.join(others[int(random.integers(len(others)))])}" if others else ""


def goal_of(environment: GoTo, instruction: str) -> Goal | None:
    """Whether the player is near the object of an instruction; None if the room lacks it."""
    named = next((pair for pair in environment.objects if instruction == f"go to the {' '.join(pair)}"), None)
    if named is None:
        return None
    return lambda _: math.dist(environment.objects[named], environment.player[:2]) <= REACH


def _places(random: np.random.Generator, count: int) -> list[Any]:
    """x and y of the player, then a position for each object, with distance between them and to the walls."""
    inner = ROOM - _MARGIN
    places: list[tuple[float, float]] = []
    attempts = 0
    while len(places) <= count:
        x, y = (float(number) for number in random.integers(-inner, inner + 1, 2))
        if all(math.dist((x, y), other) >= _APART for other in places):
            places.append((x, y))
        attempts += 1
        if attempts % 100 == 0:  # no space left for the next one: start again
            places.clear()
    return [*places[0], *places[1:]]


class Expert:
    """Walks to the named object and around the others, with positions read from the game."""

    def __init__(self, environment: GoTo) -> None:
        self._environment = environment
        self.failed = False

    def act(self, taken: Action | None = None) -> dict[str, np.ndarray]:
        """The next action; it depends on the player's current position, so `taken` is not read."""
        del taken
        x, y, angle, pitch = self._environment.player
        target = self._environment.objects[self._environment.target]
        heading = _bearing((x, y), target)
        for pair, place in self._environment.objects.items():
            if pair != self._environment.target:
                heading += _detour((x, y), target, place)
        right = (angle - heading + 180) % 360 - 180
        yaw = 0.0 if abs(right) < 1 else math.copysign(_TURNS[np.abs(_TURNS - abs(right)).argmin()], right)
        level = 0.0 if abs(pitch) < 1 else float(np.clip(-pitch, -29.5, 29.5))
        forward = abs(right) < 40  # at larger angles, walking leads away
        return {"buttons": np.array([forward, False, False, False]), "camera": np.array([level, yaw], np.float32)}


def _bearing(start: tuple[float, float], end: tuple[float, float]) -> float:
    return math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))


def _detour(start: tuple[float, float], target: tuple[float, float], other: tuple[float, float]) -> float:
    """Degrees to turn aside (counter-clockwise) on the way to `target`, to stay out of reach of `other`."""
    away = math.dist(start, other)
    aside = (_bearing(start, other) - _bearing(start, target) + 180) % 360 - 180
    clear = math.degrees(math.asin(min(1.0, 1.35 * REACH / max(away, 1.0))))
    if away > math.dist(start, target) or abs(aside) >= clear:
        return 0.0
    return aside - math.copysign(clear, aside or 1.0)
