"""BabyAI (Chevalier-Boisvert et al. 2019, arXiv 1810.08272) as packaged in minigrid: instructions in a grid world.

The agent sees the 7 x 7 cells in front of it as an RGB image, with itself in the middle of the last row:

    image_size 56: 8 pixels a cell, so one 8-pixel patch is one cell

The image equals `RGBImgPartialObsWrapper(env, tile_size=image_size // 7)` to the pixel (tests/envs/test_babyai.py).
The wrapper and the bot compute the visible cells three times a step and draw each cell again. Here they are computed
once and the image is gathered from a table of tiles, because this limits the speed of collecting demonstrations.
"""

from __future__ import annotations

import collections
import contextlib
import difflib
import functools
import importlib.metadata
import io
import os
import re
from typing import Any

import numpy as np

from agent_jax.actions import BABYAI
from agent_jax.envs import Action, Observation, requires
from agent_jax.envs.instructions import Goal

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # minigrid imports pygame, which prints to stdout
with requires("babyai", "gymnasium", "minigrid"):
    import gymnasium
    import minigrid  # noqa: F401 (registers the levels)
    from minigrid.core.grid import Grid
    from minigrid.core.world_object import Wall
    from minigrid.envs.babyai.core.verifier import GoToInstr, ObjDesc, OpenInstr, PickupInstr
    from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError

NAME = "babyai"
ACTION_SPEC = BABYAI
STATE_SPEC = None
STATE_SHAPES = {}
CAMERAS = ("rgb",)
# Levels that the bot solves. `make` takes every level of minigrid.
TASKS = {
    "BabyAI": ("GoToLocal", "GoToObj", "GoToRedBallGrey", "GoToSeqS5R2", "PickupLoc", "PutNextLocal", "OpenDoor",
               "OpenTwoDoors", "UnlockPickup", "ActionObjDoor"),
}  # fmt: skip
IMAGE_SIZE = 56
IMAGE_SHAPES = {"rgb": (IMAGE_SIZE, IMAGE_SIZE, 3)}
ONE_A_PROCESS = False
HAS_EXPERT = True
ACTION_NAMES = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
RANDOM = {
    "random": tuple({"action": index} for index in range(7)),
    "random_moves": tuple({"action": index} for index in range(3)),
}
# Noise must be reversible by walking: a random toggle would open a box and destroy it.
NOISE = RANDOM["random_moves"]
_DONE = ACTION_NAMES.index("done")

_VIEW = 7  # side of the agent's view in cells, in every BabyAI level
_AGENT = _VIEW * (_VIEW - 1) + _VIEW // 2  # the agent's own cell: middle of the last row
_WALL = Wall()  # stands for cells outside the grid
# World offset of each cell of the view from the agent, row by row, by the agent's direction (right, down, left, up).
_OFFSETS = tuple(
    tuple(
        ((_VIEW - 1 - row) * fx + (column - _VIEW // 2) * -fy, (_VIEW - 1 - row) * fy + (column - _VIEW // 2) * fx)
        for row in range(_VIEW)
        for column in range(_VIEW)
    )
    for fx, fy in ((1, 0), (0, 1), (-1, 0), (0, -1))
)


def version() -> str:
    """The simulator's name and version."""
    return f"minigrid {importlib.metadata.version('minigrid')}"


def action_name(action: Action) -> str:
    """`left`, `right`, `forward`, `pickup`, `drop`, `toggle` or `done`."""
    return ACTION_NAMES[int(action["action"])]


def _level_id(level: str) -> str:
    known = {name.removeprefix("BabyAI-"): name for name in gymnasium.registry if name.startswith("BabyAI-")}
    for name in (level.removeprefix("BabyAI-"), f"{level}-v0", f"{level}-v1"):
        if name in known:
            return known[name]
    names = sorted(name.rpartition("-")[0] for name in known)
    near = difflib.get_close_matches(level, names, n=3) or names[:5]
    raise ValueError(f"level: found {level!r}, which {version()} lacks; similar: {', '.join(near)}")


class BabyAI:
    """One level, e.g. "GoToLocal" (BabyAI-GoToLocal-v0). Observations: {"rgb": uint8 (image_size, image_size, 3)}."""

    def __init__(self, level: str, image_size: int = IMAGE_SIZE) -> None:
        if image_size <= 0 or image_size % _VIEW:
            raise ValueError(
                f"image_size={image_size} must be a multiple of {_VIEW}: the agent sees {_VIEW} x {_VIEW} cells; "
                f"try {max(1, round(image_size / _VIEW)) * _VIEW}"
            )
        self.level = level
        # Typed Any: minigrid adds the attributes used here to gymnasium.Env.
        self.simulator: Any = gymnasium.make(_level_id(level), disable_env_checker=True).unwrapped
        # minigrid encodes its own view after every step, which is not used here.
        self.simulator.gen_obs = lambda: {}
        self._tiles = _tile_table(image_size // _VIEW)
        self.seen: tuple[tuple[int, int], ...] = ()  # world coordinates of the cells in view

    @property
    def instruction(self) -> str:
        """The mission of the current episode, e.g. "go to the red ball"."""
        return self.simulator.mission

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode of `seed`."""
        with contextlib.redirect_stdout(io.StringIO()):  # "Sampling rejected: ..."
            self.simulator.reset(seed=seed)
        return self._observe(), {"success": False}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take {"action": 0..6}; success is a reward above 0."""
        _, reward, terminated, truncated, _ = self.simulator.step(int(action["action"]))
        return self._observe(), float(reward), terminated, truncated, {"success": reward > 0}

    def close(self) -> None:
        """Close the simulator."""
        self.simulator.close()

    def _observe(self) -> Observation:
        simulator = self.simulator
        grid = simulator.grid
        width, height, cells = grid.width, grid.height, grid.grid
        x, y = map(int, simulator.agent_pos)
        places = [(x + dx, y + dy) for dx, dy in _OFFSETS[simulator.agent_dir]]
        view = [
            cells[row * width + column] if 0 <= column < width and 0 <= row < height else _WALL
            for column, row in places
        ]
        visible = _visible(view)
        self.seen = tuple(
            (column, row)
            for (column, row), shown in zip(places, visible, strict=True)
            if shown and 0 <= column < width and 0 <= row < height
        )
        view[_AGENT] = simulator.carrying  # the agent is drawn over what it carries, or over an empty cell
        return {"rgb": self._tiles.picture(view, visible)}


make = BabyAI


# Instructions about one object, by their verb; of sequences and of two objects there is no other instruction.
_VERBS: dict[str, Any] = {"go to": GoToInstr, "pick up": PickupInstr, "open": OpenInstr}
_OTHER_VERBS = {"go to": ("walk to", "move to", "head for"), "pick up": ("take", "grab", "collect"),
                "open": ("open up", "push open", "pull open")}
_ONE_OBJECT = re.compile(rf"({'|'.join(_VERBS)}) (a|the)(?: (red|green|blue|purple|yellow|grey))? "
                         "(ball|box|key|door|object)")


def paraphrase(instruction: str, random: np.random.Generator) -> str:
    """The instruction in other words, e.g. "walk to the ball that is red"; "" if it is not about one object."""
    if not (found := _ONE_OBJECT.fullmatch(instruction)):
        return ""
    verb, article, color, kind = found.groups()
    verbs = _OTHER_VERBS[verb]
    return f"{verbs[int(random.integers(len(verbs)))]} {article} {kind}" + (f" that is {color}" if color else "")


def contradict(environment: BabyAI, random: np.random.Generator) -> str:
    """The instruction with another object of the episode; "" if there is none, or if it is not about one object."""
    simulator = environment.simulator
    own = simulator.instrs
    verb = next((verb for verb, kind in _VERBS.items() if type(own) is kind), "")
    if not verb:
        return ""
    wanted = {"pick up": ("ball", "box", "key"), "open": ("door",)}.get(verb, ("ball", "box", "key", "door"))
    named = own.desc.obj_set
    pairs = {(cell.color, cell.type) for cell in simulator.grid.grid if cell is not None and cell.type in wanted}
    pairs -= {(cell.color, cell.type) for cell in named}
    others = sorted(pairs)
    if not others:
        return ""
    color, kind = others[int(random.integers(len(others)))]
    return _VERBS[verb](ObjDesc(kind, color)).surface(simulator)


def goal_of(environment: BabyAI, instruction: str) -> Goal | None:
    """Whether an instruction about one object is fulfilled, by minigrid's rules.

    None if the episode lacks the object, or if the instruction is not about one.
    """
    if not (found := _ONE_OBJECT.fullmatch(instruction)):
        return None
    verb, _, color, kind = found.groups()
    if (kind == "door") != (verb == "open") and verb != "go to":
        return None
    simulator = environment.simulator
    checked = _VERBS[verb](ObjDesc(None if kind == "object" else kind, color))
    checked.reset_verifier(simulator)
    if not checked.desc.obj_set:
        return None

    def fulfilled(action: Action) -> bool:
        checked.update_objs_poss()  # objects may have been carried elsewhere
        return checked.verify_action(int(action["action"])) == "success"

    return fulfilled


def _visible(view: list[Any]) -> list[bool]:
    """Which cells of the view the agent sees; the same as minigrid's `Grid.process_vis`, on a flat list."""
    shown = [False] * (_VIEW * _VIEW)
    shown[_AGENT] = True
    for start in range(_VIEW * (_VIEW - 1), -1, -_VIEW):
        for step, indices in ((1, range(start, start + _VIEW - 1)), (-1, range(start + _VIEW - 1, start, -1))):
            for index in indices:
                if shown[index]:
                    cell = view[index]
                    if cell is None or cell.see_behind():
                        shown[index + step] = True
                        if start:
                            shown[index - _VIEW] = shown[index - _VIEW + step] = True
    return shown


class _TileTable:
    """Cache of the tiles of one size, drawn by minigrid when first used."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._row: dict[tuple[Any, ...], int] = {}
        self._tiles = np.zeros((0, size, size, 3), np.uint8)
        self._unseen = self._find(None, agent=False, shown=False)
        self._empty = self._find(None, agent=False, shown=True)

    def picture(self, view: list[Any], visible: list[bool]) -> np.ndarray:
        """uint8 (7 size, 7 size, 3)."""
        rows = [
            (self._empty if cell is None else self._find(cell, agent=False, shown=True)) if shown else self._unseen
            for cell, shown in zip(view, visible, strict=True)
        ]
        rows[_AGENT] = self._find(view[_AGENT], agent=True, shown=True)
        size = self._size
        tiles = self._tiles[rows].reshape(_VIEW, _VIEW, size, size, 3)
        return tiles.transpose(0, 2, 1, 3, 4).reshape(_VIEW * size, _VIEW * size, 3)

    def _find(self, cell: Any, *, agent: bool, shown: bool) -> int:
        key = (agent, shown) if cell is None else (agent, shown, *cell.encode())
        if key not in self._row:
            tile = Grid.render_tile(cell, agent_dir=3 if agent else None, highlight=shown, tile_size=self._size)
            self._row[key] = len(self._tiles)
            # The cast cuts off fractions, as minigrid does when it copies a tile into its image.
            self._tiles = np.concatenate([self._tiles, tile.astype(np.uint8)[None]])
        return self._row[key]


@functools.cache
def _tile_table(size: int) -> _TileTable:
    return _TileTable(size)


class _Bot(BabyAIBot):
    """minigrid's bot with its two slowest parts replaced; its actions are the same."""

    def __init__(self, environment: BabyAI) -> None:
        self._environment = environment
        super().__init__(environment.simulator)

    def _process_obs(self) -> None:
        for place in self._environment.seen:
            self.vis_mask[place] = True

    def _breadth_first_search(self, initial_states: Any, accept_fn: Any, ignore_blockers: bool) -> Any:
        # The order of visits decides between paths of equal length: straight on, then the turns, then back.
        grid, seen = self._environment.simulator.grid, self.vis_mask
        queue: collections.deque[tuple[tuple[int, ...], tuple[int, int] | None]] = collections.deque()
        queue.extend((tuple(map(int, state)), None) for state in initial_states)
        came_from: dict[tuple[int, int], tuple[int, int] | None] = {}
        while queue:
            (x, y, dx, dy), before = queue.popleft()
            place = (x, y)
            if place in came_from:
                continue
            came_from[place] = before
            cell = grid.get(x, y)
            if accept_fn(place, cell):
                path: list[tuple[int, int]] = []
                step: tuple[int, int] | None = place
                while step is not None:
                    path.append(step)
                    step = came_from[step]
                return path, place, came_from
            if seen[place] and (cell is None or _passable(cell, ignore_blockers=ignore_blockers)):
                for kx, ky in ((dx, dy), (dy, dx), (-dy, -dx), (-dx, -dy)):
                    queue.append(((x + kx, y + ky, kx, ky), place))
        return None, None, came_from


def _passable(cell: Any, *, ignore_blockers: bool) -> bool:
    if cell.type == "door":
        return cell.is_open
    return ignore_blockers and cell.type != "wall"


class Expert:
    """BabyAI's bot, for the current episode of an environment that was just reset."""

    def __init__(self, environment: BabyAI) -> None:
        self._bot = _Bot(environment)
        self.failed = False

    def act(self, taken: Action | None = None) -> dict[str, int]:
        """The bot's next action; `done` once it has failed."""
        if not self.failed:
            try:
                suggested: Any = self._bot.replan(None if taken is None else int(taken["action"]))
                return {"action": int(suggested)}
            except (AssertionError, DisappearedBoxError):
                # The bot reports a broken plan by an assertion, or by this error after a box was opened.
                self.failed = True
        return {"action": _DONE}
