"""Rooms of BabyAI as plain data, for a player that has neither the simulator nor its level generator.

`rooms` returns a dict of these, and the names of the actions:

    rooms   level, seed, width, cells (kinds, row by row), agent [x, y, direction], max_steps, and instructions, the
            level's own first: text, and the kinds of the objects that it names
    kinds   what a cell may hold; 0: nothing. walk, see, take: whether the agent walks onto it, sees past it, picks it
            up; toggles: whether `toggle` destroys it
    wall    the kind of a wall, which cells outside the room look like
    tiles   by size in pixels, drawn by minigrid: uint8 (3 n + 4, size, size, 3) for n kinds
              0 to n - 1    each kind in the dark; cells that are not seen look like 0
              n ..          each kind in the agent's view
              2 n ..        the agent in its own view, facing up, above each kind that it may carry
              3 n ..        the agent in the room, facing right, down, left, up
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from agent_jax.envs import requires
from agent_jax.envs.babyai import ACTION_NAMES, BabyAI

with requires("babyai", "minigrid"):
    from minigrid.core.grid import Grid
    from minigrid.envs.babyai.core.verifier import GoToInstr, ObjDesc

_KNOWN = {"wall", "ball", "box", "key"}
_LIKE = "expected a level of one room without doors in which the agent goes to an object, such as GoToLocal"


def rooms(levels: Sequence[str], seeds: Iterable[int], sizes: Sequence[int]) -> dict[str, Any]:
    """The rooms of each level's seeds, with the tiles of these sizes.

    Raises:
        ValueError: an unknown level, or one with doors or other instructions.
    """
    kinds: dict[Any, tuple[int, Any]] = {None: (0, None)}  # by code: number, and an object of that kind

    def kind(cell: Any) -> int:
        return kinds.setdefault(cell.encode() if cell else None, (len(kinds), cell))[0]

    found = []
    for level in levels:
        with contextlib.closing(BabyAI(level)) as environment:
            simulator = environment.simulator
            for seed in seeds:
                environment.reset(seed=seed)
                cells, own = simulator.grid.grid, simulator.instrs
                if strange := sorted({cell.type for cell in cells if cell} - _KNOWN):
                    raise ValueError(f"level {level!r}: has a {strange[0]}; {_LIKE}")
                if type(own) is not GoToInstr or own.desc.loc:
                    raise ValueError(f"level {level!r}: has the instruction {simulator.mission!r}; {_LIKE}")
                texts = {simulator.mission: {kind(cell) for cell in own.desc.obj_set}}
                for cell in cells:
                    if cell and cell.type != "wall":
                        text = GoToInstr(ObjDesc(cell.type, cell.color)).surface(simulator)
                        texts.setdefault(text, {kind(cell)})
                found.append({
                    "level": level, "seed": seed, "max_steps": int(simulator.max_steps),
                    "width": simulator.grid.width, "cells": [kind(cell) for cell in cells],
                    "agent": [*map(int, simulator.agent_pos), int(simulator.agent_dir)],
                    "instructions": [{"text": text, "kinds": sorted(named)} for text, named in texts.items()]})
    cells = [cell for _, cell in kinds.values()]
    return {"actions": list(ACTION_NAMES), "rooms": found, "kinds": [_kind(cell) for cell in cells],
            "wall": next(number for number, cell in kinds.values() if cell and cell.type == "wall"),
            "tiles": {size: _tiles(cells, size) for size in sizes}}


def _kind(cell: Any) -> dict[str, Any]:
    """The properties of one kind of cell; a box is destroyed by toggling it, as those of one room are empty."""
    return {"name": f"{cell.color} {cell.type}" if cell else "nothing", "walk": cell is None or cell.can_overlap(),
            "see": cell is None or cell.see_behind(), "take": cell is not None and cell.can_pickup(),
            "toggles": cell is not None and cell.type == "box"}


def _tiles(cells: Sequence[Any], size: int) -> np.ndarray:
    wanted = [*((cell, None, shown) for shown in (False, True) for cell in cells), *((cell, 3, True) for cell in cells),
              *((None, direction, True) for direction in range(4))]
    return np.stack([Grid.render_tile(cell, agent_dir=direction, highlight=shown, tile_size=size).astype(np.uint8)
                     for cell, direction, shown in wanted])
