from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from agent_jax.evaluate.outcomes import RolloutRecording
from agent_jax.evaluate.rollout_video import draw_rollout, read_description, write_gif, write_mp4, write_recording

ACTIONS = ("left", "forward", "forward")
INSTRUCTION = "go to the red ball, then put the yellow box next to the purple key on your left"


def episode() -> np.ndarray:
    """Frames of one colour; the third and the fourth are equal."""
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [40, 40, 200]], np.uint8)
    return np.broadcast_to(colours[:, None, None], (4, 56, 56, 3)).copy()


def rollout(*instructions: str, actions: tuple[str, ...] = ACTIONS, success: bool = True, policy: str = "greedy"
            ) -> RolloutRecording:
    """A recording with one instruction for all frames, or one for each."""
    texts = instructions if len(instructions) == 4 else instructions * 4
    return RolloutRecording("suite/open", policy, 7, texts, episode(), actions, success)


def colour_near(picture: Image.Image, x: int, y: int) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)[y, x]


def test_a_gif_has_an_image_a_step_with_its_colours_and_durations(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", rollout(INSTRUCTION))
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.info["loop"] == 0
        pictures = [(picture.convert("RGB"), picture.info["duration"]) for picture in ImageSequence.Iterator(gif)]
    assert [duration for _, duration in pictures] == [500, 500, 500, 2000]
    for (picture, _), frame in zip(pictures, episode(), strict=True):
        assert np.abs(colour_near(picture, picture.width // 2, picture.height // 2) - frame[0, 0]).max() <= 4


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_video_holds_its_episode_without_the_images(tmp_path: Path, kind: str) -> None:
    recording = dataclasses.replace(rollout('say "\u00e4" ' * 60), probabilities=(0.5, 0.25, 1.0))
    path = write_recording(tmp_path, recording, kind=kind)
    found = read_description(path)
    assert found is not None
    assert (found["seed"], found["success"], found["probabilities"]) == (7, True, [0.5, 0.25, 1.0])
    assert found["instructions"] == list(recording.instructions)
    path.write_bytes(b"GIF")
    assert read_description(path) is None


def test_only_the_last_image_has_a_border_in_the_outcomes_colour() -> None:
    for success, channel in ((True, 1), (False, 0)):
        *before, last = draw_rollout(rollout(INSTRUCTION, success=success))
        border = colour_near(last, 5, last.height // 2)
        assert border.argmax() == channel
        assert border.max() > border.min() + 100
        for picture in before:
            assert np.ptp(colour_near(picture, 5, picture.height // 2)) == 0


def test_instruction_action_and_step_are_drawn() -> None:
    def drawn(instruction: str = INSTRUCTION, actions: tuple[str, ...] = ACTIONS, policy: str = "a") -> np.ndarray:
        return np.asarray(next(draw_rollout(rollout(instruction, actions=actions, policy=policy))))

    base = drawn()
    assert (drawn(policy="b") != base)[:30].any()
    assert (drawn(instruction=INSTRUCTION.replace("red", "tan")) != base)[30:80].any()
    assert not (drawn(actions=("right", *ACTIONS[1:])) != base)[:-40].any()
    assert (drawn(actions=("right", *ACTIONS[1:])) != base)[-40:].any()


def test_a_long_instruction_is_wrapped_and_stays_inside() -> None:
    short, long = (next(draw_rollout(rollout(text))) for text in ("go", INSTRUCTION))
    assert long.width == short.width
    assert long.height > short.height
    assert (np.asarray(long)[:60, -4:] == 250).all()


def test_frames_that_do_not_fit_the_actions_are_errors() -> None:
    good = rollout(INSTRUCTION)
    with pytest.raises(ValueError, match=r"frames: found uint8 .*\(3, 56, 56, 3\) for 3 actions, expected uint8 \(4,"):
        dataclasses.replace(good, frames=episode()[:3])
    with pytest.raises(ValueError, match="frames: found float64"):
        dataclasses.replace(good, frames=episode() / 255)
    with pytest.raises(ValueError, match="instructions: found 3 for 4 frames"):
        dataclasses.replace(good, instructions=good.instructions[:3])


def test_an_image_shows_the_instruction_of_its_step_and_all_have_one_size() -> None:
    first, second, third, last = draw_rollout(rollout("go", "go", INSTRUCTION, INSTRUCTION))
    assert first.size == second.size == third.size == last.size
    head = [np.asarray(picture)[:50] for picture in (first, second, third, last)]
    np.testing.assert_array_equal(head[0], head[1])
    np.testing.assert_array_equal(head[2], head[3])
    assert (head[1] != head[2]).any()


def test_an_mp4_shows_the_same_images_for_as_long(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    write_mp4(tmp_path / "a.mp4", rollout(INSTRUCTION))
    with av.open(str(tmp_path / "a.mp4")) as video:
        pictures = [frame.to_image() for frame in video.decode(video=0)]
    assert len(pictures) == 3 + 4  # two a second; the last one stays for two seconds
    for picture, drawn in zip(pictures, draw_rollout(rollout(INSTRUCTION)), strict=False):
        assert abs(picture.width - drawn.width) <= 1
        middle = picture.width // 2, picture.height // 2
        assert np.abs(colour_near(picture, *middle) - colour_near(drawn, *middle)).max() <= 12
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_the_file_name_has_task_policy_seed_and_outcome(tmp_path: Path) -> None:
    recording = rollout(INSTRUCTION, success=False)
    assert write_recording(tmp_path / "deep", recording).name == "suite_open-greedy-failure.gif"
    assert write_recording(tmp_path / "deep", recording, with_seed=True).name == "suite_open-greedy-7-failure.gif"
    assert len(list((tmp_path / "deep").iterdir())) == 2
