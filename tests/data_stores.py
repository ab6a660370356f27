"""Small data sets that the tests of agent_jax.data write and read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from agent_jax.actions import BABYAI, LANGUAGE_TABLE, LANGUAGE_TABLE_STATE
from agent_jax.data.domains import Domain
from agent_jax.data.store import Store
from agent_jax.data.writer import episode_features, write_store
from agent_jax.vocabulary import Vocabulary

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


def babyai_domain(**changes: Any) -> Domain:
    """The domain of `babyai_store`."""
    vocabulary = Vocabulary.build("bytes", ("babyai", "iafm"))
    domain = Domain("babyai", 0, BABYAI.bind(vocabulary), None, vocabulary, window=4, stride=4, max_text=16,
                    image="steps/observation/rgb", instruction="instruction", image_size=16)
    return dataclasses.replace(domain, **changes)


def language_table_domain(**changes: Any) -> Domain:
    """The domain of `language_table_store` and of the real set."""
    vocabulary = Vocabulary.build("bytes", ("babyai", "iafm"))
    domain = Domain("table", 1, LANGUAGE_TABLE.bind(vocabulary), LANGUAGE_TABLE_STATE.bind(vocabulary), vocabulary,
                    window=4, stride=4, max_text=80, image="steps/observation/rgb",
                    instruction="steps/observation/instruction", image_size=16)
    return dataclasses.replace(domain, **changes)
