"""Made-up clips: what a record says is true of its images, and no answer is frequent."""

from __future__ import annotations

import collections
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agent_jax.config import DemonstrationsConfig
from agent_jax.data.store.store import open_store
from agent_jax.envs import CLIPS, load
from agent_jax.envs.collect import ensure_demonstrations, main

clips: Any = pytest.importorskip("agent_jax.envs.clips")

CONFIG = DemonstrationsConfig(environment=CLIPS, episodes={"caption": 5, "which_first": 7}, validation_episodes=3,
                              image_size=56, processes=1)
SEEDS = range(150)


def kinds_and_colors(image: np.ndarray) -> dict[tuple[int, int], tuple[str, str]]:
    """The objects of an image by their cell: its pixels compared with MiniGrid's drawings."""
    from minigrid.core.constants import COLOR_NAMES

    size = len(image) // 7
    drawn = {clips._tile(thing, size).tobytes(): thing
             for thing in (None, *((kind, color) for kind in clips.KINDS for color in COLOR_NAMES))}
    assert len(drawn) == 1 + 3 * 6
    cells = {(row, column): drawn[image[row * size :][:size, column * size :][:, :size].tobytes()]
             for row in range(7) for column in range(7)}
    return {place: thing for place, thing in cells.items() if thing}


def seen(question: str, seed: int) -> tuple[dict[str, Any], list[dict[tuple[int, int], tuple[str, str]]]]:
    record = clips.record(question, seed, 56)
    return record, [kinds_and_colors(step["observation"]["rgb"]) for step in record["steps"]]


def moved(images: list[dict[tuple[int, int], tuple[str, str]]]) -> tuple[tuple[str, str], str]:
    """The only object whose first cell is not its last, and the way it went."""
    (start,), (end,) = set(images[0]) - set(images[-1]), set(images[-1]) - set(images[0])
    assert images[0][start] == images[-1][end]
    ways = {(0, 2): "right", (2, 0): "down", (0, -2): "left", (-2, 0): "up"}
    return images[0][start], ways[end[0] - start[0], end[1] - start[1]]


def test_captions_ways_and_classes_are_true_of_the_images() -> None:
    for question in ("caption", "which_way", "which_object", "how_many"):
        for seed in SEEDS:
            record, images = seen(question, seed)
            assert len(images) == 9
            (kind, color), way = moved(images)
            assert record["label"] == clips.KINDS.index(kind)
            assert question != "caption" or record["answer"] == f"a {color} {kind} that moves {way}"
            assert question != "which_way" or record["answer"] == way
            assert question != "which_object" or record["answer"] == kind


def test_counts_are_those_of_every_image() -> None:
    for seed in SEEDS:
        record, images = seen("how_many", seed)
        asked = next(kind for kind in clips.KINDS if clips._plural(kind) in record["instruction"])
        for image in images:
            count = sum(kind == asked for kind, _ in image.values())
            assert clips.NUMBERS[count - 1] == record["answer"]


def test_the_object_that_comes_first_is_the_answer_and_both_stay_equally_long() -> None:
    for seed in SEEDS:
        record, images = seen("which_first", seed)
        mover = clips.KINDS[record["label"]]
        times = {kind: [t for t, image in enumerate(images) if kind in {of for of, _ in image.values()}]
                 for kind in clips.KINDS}
        assert len(times.pop(mover)) == 9
        assert {len(shown) for shown in times.values()} == {3}
        assert record["answer"] == min(times, key=lambda kind: times[kind][0])
        assert all(kind in record["instruction"] for kind in times)


@pytest.mark.parametrize(("question", "answers"), [("which_object", 3), ("which_way", 4), ("how_many", 4),
                                                   ("which_first", 3)])
def test_every_answer_and_class_is_equally_frequent(question: str, answers: int) -> None:
    records = [clips.record(question, seed, 7) for seed in range(1500)]
    for key, expected in (("answer", answers), ("label", 3)):
        counts = collections.Counter(record[key] for record in records)
        assert len(counts) == expected
        assert max(counts.values()) < 1.2 * len(records) / expected


def test_the_order_of_the_names_in_a_question_does_not_tell_the_answer() -> None:
    records = [clips.record("which_first", seed, 7) for seed in range(1000)]
    first = [f"the {record['answer']} or" in record["instruction"] for record in records]
    assert 0.45 < np.mean(first) < 0.55


def test_one_image_hardly_tells_the_way() -> None:
    counts = collections.Counter()
    for seed in range(6000):
        scene = clips._Scene(np.random.default_rng(seed))
        counts[next(iter(scene.places[0])), scene.way] += 1
    best = collections.Counter()
    for (place, _), count in counts.items():
        best[place] = max(best[place], count)
    assert sum(best.values()) / 6000 < 0.4  # 0.35 in the limit


def test_no_scene_of_the_test_split_is_in_the_training_split() -> None:
    """Captions have 2,520 scenes in all, so that equal ones are drawn by chance if nothing keeps the splits apart."""
    def scenes(held_out: bool) -> set[bytes]:
        records = (clips.record("caption", seed, 7, held_out=held_out) for seed in range(500 + held_out, 1000))
        return {b"".join(step["observation"]["rgb"].tobytes() for step in record["steps"]) for record in records}

    training, test = scenes(False), scenes(True)
    assert 200 < len(test) < len(training) < 500
    assert not training & test


def test_clips_are_gathered_like_demonstrations_and_say_that_they_are_made_up(tmp_path: Path) -> None:
    made = ensure_demonstrations(CONFIG, tmp_path)
    assert ensure_demonstrations(dataclasses.replace(CONFIG, processes=2), tmp_path) == made
    store = open_store(made)
    assert dict(store.splits) == {"train": 12, "test": 6}
    assert store.metadata["made_up"] is True
    assert "agent_jax.envs.clips" in store.metadata["made_by"]
    assert set(store.metadata["questions"]) == set(clips.QUESTIONS)
    assert len(store.metadata["classes"]) == 3
    names = {split: {bytes(episode.value("recording_id")) for episode in map(store.split(split).__getitem__, range(n))}
             for split, n in store.splits.items()}
    assert len(names["train"]) == 12
    assert not names["train"] & names["test"]
    episode = store.split("test")[0]
    question, _, seed = bytes(episode.value("episode_id")).decode().partition("/")
    expected = clips.record(question, int(seed), 56, held_out=True)
    assert bytes(episode.value("answer")).decode() == expected["answer"]
    assert int(np.ravel(episode.value("label"))[0]) == expected["label"]
    images = episode.values("steps/observation/rgb", 0, 9)
    for png, step in zip(images, expected["steps"], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(bytes(png)))), step["observation"]["rgb"])


@pytest.mark.parametrize(("change", "message"), [
    ({"episodes": {"which_ways": 2}}, r"config\.x\.episodes: found the question 'which_ways', .*mean 'which_way'"),
    ({"image_size": 50}, r"config\.x\.image_size=50 must be a multiple of 7.*try 49"),
    ({"noise": 0.1}, r"config\.x\.noise=0\.1: clips have no actions"),
    ({"episodes": {}}, r"config\.x\.episodes=\{\}: expected at least one"),
])
def test_an_impossible_set_of_clips_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ensure_demonstrations(dataclasses.replace(CONFIG, **change), tmp_path / "data", "config.x")
    assert not (tmp_path / "data").exists()


def test_nothing_acts_in_clips() -> None:
    with pytest.raises(ValueError, match="found 'clips', made-up clips in which nothing acts; expected one of"):
        load(CLIPS)


def test_the_command_makes_clips_of_every_question(tmp_path: Path) -> None:
    main([CLIPS, "--episodes", "1", "--validation_episodes", "1", "--processes", "1", "--out", str(tmp_path / "made")])
    assert dict(open_store(tmp_path / "made").splits) == {"train": 5, "test": 5}
