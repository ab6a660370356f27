"""Made-up clips of MiniGrid's objects with a known answer: captions, questions and classes to learn from video.

    seed -> a scene of 7 x 7 cells in 9 images, a question, its answer, and a class

    image 0      image 4      image 8
    . . . . .    . . . . .    . . . . .     A video of                        -> a red ball that moves left
    . . o . .    . o . . .    o . . . .     Which object moves?               -> ball             class 0
    . k . . .    . k . . .    . k . . .     Which way does the object move?   -> left

In every clip one object moves two cells, after the third and the sixth image, and its kind is the class. The other
objects stay, or come for three images and go. Answers and classes are drawn uniformly. One image is enough to count; it
does not show which object moves, and the place of an object in it tells the way in at most 35% of the clips (25% by
chance). No scene of the test split is in the training split. Nothing acts in clips: they are gathered like
demonstrations (collect.py).

    config.data.domains.clips.demonstrations.environment = "clips"
    config.data.domains.clips.demonstrations.episodes = {"caption": 1000, "which_way": 1000}
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agent_jax.config import DemonstrationsConfig
from agent_jax.data.store.writer import episode_features
from agent_jax.envs import requires

with requires("babyai", "minigrid"):
    from minigrid.core.constants import COLOR_NAMES
    from minigrid.core.grid import Grid
    from minigrid.core.world_object import Ball, Box, Key

IMAGE_SIZE = 56
IMAGES = 9  # of a clip
CELLS = 7  # a side
CAPTION = "A video of"  # the instruction of captions (agent_jax.data.prepare.sources.video.video_text)
KINDS = ("ball", "box", "key")  # in the order of the classes
WAYS = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}  # rows and columns of a move
NUMBERS = ("one", "two", "three", "four")
MOVES = (3, 6)  # images at which the moving object is one cell further
SHOWN = 3  # images for which an object of `which_first` is there
HELD_OUT = 8  # one scene in so many, by its checksum, is kept for the test split

_CLASSES = {"ball": Ball, "box": Box, "key": Key}
_Object = tuple[str, str]  # kind and colour
_Places = list[dict[tuple[int, int], _Object]]  # objects by row and column, for each image


def check(config: DemonstrationsConfig, where: str) -> None:
    """Check the config of a data set; `where` is its field.

    Raises:
        ValueError: an unknown question, an image size that does not divide into cells, or noise.
    """
    for question in config.episodes:
        if question not in QUESTIONS:
            near = difflib.get_close_matches(question, QUESTIONS, n=1)
            raise ValueError(f"{where}.episodes: found the question {question!r}, expected one of "
                             f"{', '.join(QUESTIONS)}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if config.noise:
        raise ValueError(f"{where}.noise={config.noise}: clips have no actions; expected 0")
    image_size = config.image_size
    if image_size <= 0 or image_size % CELLS:
        raise ValueError(f"{where}.image_size={image_size} must be a multiple of {CELLS}: a clip shows "
                         f"{CELLS} x {CELLS} cells; try {max(1, round(image_size / CELLS)) * CELLS}")


def metadata() -> dict[str, Any]:
    """What a data set of clips says about itself."""
    return {
        "made_up": True,
        "made_by": "agent_jax.envs.clips: scenes drawn at random, of the objects of MiniGrid; not recordings",
        "simulator": f"minigrid {importlib.metadata.version('minigrid')}",
        "images": IMAGES,
        "held_out": f"for the test split: scenes whose CRC-32 is a multiple of {HELD_OUT}",
        "questions": {question: {"instruction": instruction, "answers": answers}
                      for question, (instruction, answers, _) in QUESTIONS.items()},
        "classes": [f"a {kind} moves" for kind in KINDS],
    }


def features(image_size: int) -> Any:
    """The schema of the records."""
    return episode_features((image_size, image_size, 3), {}, answers=True, labels=True)


def record(question: str, seed: int, image_size: int, *, held_out: bool = False) -> dict[str, Any]:
    """The clip of a seed as a record of the store.

    Args:
        question: a key of `QUESTIONS`.
        seed: determines the clip.
        image_size: pixels, a multiple of 7.
        held_out: whether its scene is one of those for the test split.
    """
    random = np.random.default_rng([seed, *question.encode()])
    while True:
        scene = _Scene(random)
        instruction, answer = QUESTIONS[question][2](scene)
        if scene.held_out == held_out:
            break
    name = f"{question}/{seed}"
    steps = [{"observation": {"rgb": _draw(places, image_size // CELLS)}, "action_weight": 1.0, "reward": 0.0,
              "is_first": number == 0, "is_last": number == IMAGES - 1, "is_terminal": False}
             for number, places in enumerate(scene.places)]
    return {"episode_id": name, "recording_id": name, "start": 0, "instruction": instruction, "answer": answer,
            "label": KINDS.index(scene.moving[0]), "steps": steps}


class _Scene:
    """The objects of a clip: one that moves, and those that are put to it."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self.way = self.choose(list(WAYS))
        self.moving: _Object = (self.choose(KINDS), self.choose(COLOR_NAMES))
        (down, right), moves = WAYS[self.way], len(MOVES)
        # Uniform over the starts from which it stays inside.
        row, column = (int(random.integers(moves * (step < 0), CELLS - moves * (step > 0))) for step in (down, right))
        self.places: _Places = []
        for image in range(IMAGES):
            done = sum(image >= at for at in MOVES)
            self.places.append({(row + done * down, column + done * right): self.moving})
        self._taken = {place for places in self.places for place in places}

    @property
    def held_out(self) -> bool:
        """Whether the scene, as it is now, is one of those for the test split."""
        content = [sorted(places.items()) for places in self.places]
        return zlib.crc32(repr(content).encode()) % HELD_OUT == 0

    def choose(self, options: Any) -> Any:
        """One of the options, uniformly."""
        return options[int(self._random.integers(len(options)))]

    def chosen(self, options: Any, count: int) -> list[Any]:
        """Different options, in a random order."""
        return [options[i] for i in self._random.permutation(len(options))[:count]]

    def put(self, kind: str, first: int = 0, stop: int = IMAGES) -> None:
        """An object of a random colour in a free cell, in the images from `first` to before `stop`."""
        free = [(row, column) for row in range(CELLS) for column in range(CELLS) if (row, column) not in self._taken]
        place = self.choose(free)
        self._taken.add(place)
        thing = (kind, self.choose(COLOR_NAMES))
        for places in self.places[first:stop]:
            places[place] = thing


def _caption(scene: _Scene) -> tuple[str, str]:
    kind, color = scene.moving
    return CAPTION, f"a {color} {kind} that moves {scene.way}"


def _which_object(scene: _Scene) -> tuple[str, str]:
    for kind in KINDS:  # each kind once: one moves, the others stay
        if kind != scene.moving[0]:
            scene.put(kind)
    return "Which object moves?", scene.moving[0]


def _which_way(scene: _Scene) -> tuple[str, str]:
    scene.put(scene.choose(KINDS))
    return "Which way does the object move?", scene.way


def _how_many(scene: _Scene) -> tuple[str, str]:
    kind, count = scene.choose(KINDS), scene.choose(range(len(NUMBERS)))
    for _ in range(count + 1 - (kind == scene.moving[0])):
        scene.put(kind)
    for other in KINDS:
        if other not in (kind, scene.moving[0]):
            scene.put(other)
    return f"How many {_plural(kind)} are there?", NUMBERS[count]


def _which_first(scene: _Scene) -> tuple[str, str]:
    first, second = scene.chosen([kind for kind in KINDS if kind != scene.moving[0]], 2)
    begins = scene.chosen(range(IMAGES - SHOWN + 1), 2)
    for kind, begin in zip((first, second), sorted(begins), strict=True):
        scene.put(kind, begin, begin + SHOWN)
    one, other = scene.chosen((first, second), 2)
    return f"Which comes first, the {one} or the {other}?", first


def _plural(kind: str) -> str:
    return {"box": "boxes"}.get(kind, f"{kind}s")


# Name -> the instruction in words, the answers, and what completes a scene.
QUESTIONS: Mapping[str, tuple[str, list[str], Callable[[_Scene], tuple[str, str]]]] = {
    "caption": (CAPTION, [f"a COLOR {kind} that moves WAY" for kind in KINDS], _caption),
    "which_object": ("Which object moves?", list(KINDS), _which_object),
    "which_way": ("Which way does the object move?", list(WAYS), _which_way),
    "how_many": ("How many KINDs are there?", list(NUMBERS), _how_many),
    "which_first": ("Which comes first, the KIND or the KIND?", list(KINDS), _which_first),
}


def _draw(places: Mapping[tuple[int, int], _Object], size: int) -> np.ndarray:
    """uint8 (7 size, 7 size, 3): one image."""
    image = np.tile(_tile(None, size), (CELLS, CELLS, 1))
    for (row, column), thing in places.items():
        image[row * size : (row + 1) * size, column * size : (column + 1) * size] = _tile(thing, size)
    return image


@functools.cache
def _tile(thing: _Object | None, size: int) -> np.ndarray:
    """One cell as MiniGrid draws it."""
    cell = None if thing is None else _CLASSES[thing[0]](thing[1])
    return np.asarray(Grid.render_tile(cell, tile_size=size)).astype(np.uint8)
