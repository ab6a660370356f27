"""Small data sets that the tests of agent_jax.data write and read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from agent_jax.actions import BABYAI, LANGUAGE_TABLE, LANGUAGE_TABLE_STATE, MINECRAFT, ActionSpec, BoundSpec
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.store.store import Store
from agent_jax.data.store.writer import episode_features, write_store

BABYAI_FEATURES = episode_features((16, 16, 3), BABYAI.fields)


def babyai_episodes(lengths: Sequence[int], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Records in the canonical schema: 16-px images of 4 tiles, random actions, one of three instructions."""
    rng = np.random.default_rng(seed)
    for number, length in enumerate(lengths):
        steps = [
            {"observation": {"rgb": np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((8, 8, 1))).astype(np.uint8)},
             "action": int(rng.integers(0, 7)), "action_weight": 1.0, "reward": float(t == length - 1),
             "is_first": t == 0, "is_last": t == length - 1, "is_terminal": t == length - 1}
            for t in range(length)
        ]
        yield {"episode_id": f"{seed}-{number}", "recording_id": f"{seed}-{number}", "start": 0,
               "instruction": f"go to {('red', 'blue', 'grey')[number % 3]}", "steps": steps}


def babyai_store(directory: Path, lengths: Sequence[int] = (6, 1, 4, 5, 9, 2), test: Sequence[int] = (3, 5)) -> Store:
    """A store of `babyai_episodes` in splits train and test."""
    episodes = {"train": babyai_episodes(lengths), "test": babyai_episodes(test, seed=1)}
    return write_store(directory, "tiles", BABYAI_FEATURES, episodes, {"action_spec": BABYAI.to_dict()})


def language_table_store(directory: Path, lengths: Sequence[int] = (6, 8, 3), *, whole: bool = True,
                         change: int = 999) -> Store:
    """A foreign store in the public Language-Table schema: instructions as 0-padded codes, no specs of its own.

    Records are whole episodes, or else segments without an end. From step `change` on, the instruction is "stop".
    """
    rng = np.random.default_rng(0)
    features = tfds.features.FeaturesDict({
        "episode_id": tfds.features.Text(),
        "steps": tfds.features.Dataset({
            "action": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "is_first": np.bool_, "is_last": np.bool_, "is_terminal": np.bool_, "reward": np.float32,
            "observation": {
                "effector_target_translation": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                "effector_translation": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                "instruction": tfds.features.Tensor(shape=(512,), dtype=np.int32),
                "rgb": tfds.features.Image(shape=(18, 32, 3), encoding_format="jpeg"),
            },
        }),
    })

    def episode(number: int, length: int) -> dict[str, Any]:
        codes = np.zeros(512, np.int32)
        text = f"push block {number} left \N{RIGHTWARDS ARROW}".encode()
        codes[: len(text)] = list(text)
        stop = np.asarray([*b"stop", *[0] * 508], np.int32)
        steps = [
            {"action": rng.uniform(-0.03, 0.03, 2).astype(np.float32), "is_first": t == 0,
             "is_last": whole and t == length - 1, "is_terminal": whole and t == length - 1, "reward": 0.0,
             "observation": {"effector_target_translation": rng.uniform(0.2, 0.3, 2).astype(np.float32),
                             "effector_translation": rng.uniform(0.2, 0.3, 2).astype(np.float32),
                             "instruction": codes if t < change else stop,
                             "rgb": rng.integers(0, 256, (18, 32, 3), dtype=np.uint8)}}
            for t in range(length)
        ]
        return {"episode_id": f"episode {number}", "steps": steps}

    episodes = {"train": [episode(number, length) for number, length in enumerate(lengths)]}
    return write_store(directory, "table", features, episodes, {})


def game_store(directory: Path, lengths: Sequence[int] = (20, 9, 13), test: Sequence[int] = (9,),
               spec: ActionSpec = MINECRAFT) -> Store:
    """A store of play in segments: few buttons at a time, and in half of the steps a turn of camera or sticks."""
    rng = np.random.default_rng(2)
    features = episode_features((16, 16, 3), spec.fields)

    def value(key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key == "buttons":
            return rng.random(shape) < 0.06
        drawn = rng.integers(-9, 10, shape) if key == "camera" else rng.uniform(-0.7, 0.7, shape)
        return (drawn * (rng.random() < 0.5)).astype(np.float32)

    def episode(name: str, length: int) -> dict[str, Any]:
        steps = [
            {"observation": {"rgb": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)},
             **{key: value(key, shape) for key, (shape, _) in spec.fields.items()}, "action_weight": 1.0,
             "reward": 0.0, "is_first": t == 0, "is_last": t == length - 1, "is_terminal": False}
            for t in range(length)
        ]
        return {"episode_id": name, "recording_id": name, "start": 0, "instruction": "play", "steps": steps}

    episodes = {split: [episode(f"{split} {number}", length) for number, length in enumerate(lengths_of)]
                for split, lengths_of in (("train", lengths), ("test", test))}
    return write_store(directory, "game", features, episodes, {"action_spec": spec.to_dict()})


def arm_store(directory: Path, actions: Sequence[np.ndarray], states: Sequence[np.ndarray] = (),
              metadata: Mapping[str, Any] | None = None) -> Store:
    """A store of one episode for each array of actions (steps, D), which are also the field observation/state."""
    states = states or actions
    shapes = ({"action": (actions[0].shape[1:], np.float32)}, {"state": (states[0].shape[1:], np.float32)})
    features = episode_features((8, 8, 3), *shapes)

    def episode(number: int) -> dict[str, Any]:
        length = len(actions[number])
        image = np.full((8, 8, 3), 10 * number, np.uint8)
        steps = [{"observation": {"rgb": image, "state": np.asarray(states[number][t], np.float32)},
                  "action": np.asarray(actions[number][t], np.float32), "action_weight": 1.0, "reward": 0.0,
                  "is_first": t == 0, "is_last": t == length - 1, "is_terminal": False} for t in range(length)]
        return {"episode_id": f"{number}", "recording_id": f"{number}", "start": 0, "instruction": "lift",
                "steps": steps}

    episodes = [episode(number) for number in range(len(actions))]
    return write_store(directory, "arm", features, {"train": episodes, "test": episodes[:1]}, dict(metadata or {}))


CAMERAS = ("steps/observation/front", "steps/observation/wrist")


def clip_store(directory: Path, lengths: Sequence[int] = (6, 3, 9), test: Sequence[int] = (4,)) -> Store:
    """Clips of two cameras, each with a question, an answer and a class; nothing is done in them."""
    rng = np.random.default_rng(3)
    shape = (16, 16, 3)
    features = episode_features({"front": shape, "wrist": shape}, {}, answers=True, labels=True)

    def episode(name: str, number: int, length: int) -> dict[str, Any]:
        steps = [{"observation": {camera: rng.integers(0, 256, shape, dtype=np.uint8) for camera in ("front", "wrist")},
                  "action_weight": 0.0, "reward": 0.0, "is_first": t == 0, "is_last": t == length - 1,
                  "is_terminal": False} for t in range(length)]
        return {"episode_id": name, "recording_id": name, "start": 0, "instruction": ("", "who?")[number % 2],
                "answer": ("a nurse", "nobody")[number % 2], "label": (2, 0, 2)[number % 3], "steps": steps}

    episodes = {split: [episode(f"{split} {number}", number, length) for number, length in enumerate(lengths_of)]
                for split, lengths_of in (("train", lengths), ("test", test))}
    return write_store(directory, "clips", features, episodes, {})


def clip_domain(layout: str, **changes: Any) -> Domain:
    """The domain of `clip_store`, in the layout "answer" or "label"."""
    vocabulary = Vocabulary.build("bytes", ("babyai", "iafm"))
    asked = {"answer": "answer", "max_answer": 10} if layout == "answer" else {"label": "label"}
    domain = Domain("clips", 3, None, None, vocabulary, window=3, stride=3, max_text=6, cameras=CAMERAS[:1],
                    instruction="instruction", image_size=16, video=True, layout=layout, **asked)
    return dataclasses.replace(domain, **changes)


def babyai_domain(**changes: Any) -> Domain:
    """The domain of `babyai_store`."""
    vocabulary = Vocabulary.build("bytes", ("babyai", "iafm"))
    domain = Domain("babyai", 0, BoundSpec(BABYAI, vocabulary), None, vocabulary, window=4, stride=4, max_text=16,
                    cameras=("steps/observation/rgb",), instruction="instruction", image_size=16)
    return dataclasses.replace(domain, **changes)


def language_table_domain(**changes: Any) -> Domain:
    """The domain of `language_table_store` and of the real set."""
    vocabulary = Vocabulary.build("bytes", ("babyai", "iafm"))
    domain = Domain("table", 1, BoundSpec(LANGUAGE_TABLE, vocabulary), BoundSpec(LANGUAGE_TABLE_STATE, vocabulary),
                    vocabulary, window=4, stride=4, max_text=80, cameras=("steps/observation/rgb",),
                    instruction="steps/observation/instruction", image_size=16)
    return dataclasses.replace(domain, **changes)


def game_domain(**changes: Any) -> Domain:
    """The domain of `game_store`."""
    vocabulary = Vocabulary.build("bytes", ("babyai", "iafm"))
    domain = Domain("game", 2, BoundSpec(MINECRAFT, vocabulary), None, vocabulary, window=9, stride=9, max_text=16,
                    cameras=("steps/observation/rgb",), instruction="instruction", image_size=16)
    return dataclasses.replace(domain, **changes)
