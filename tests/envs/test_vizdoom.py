from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from agent_jax.data.store.store import open_store
from agent_jax.envs import collect, load
from agent_jax.envs.doom_wad import COLORS, KINDS, scenario
from agent_jax.envs.workers.demonstration_worker import demonstrate

pytest.importorskip("vizdoom")

vizdoom = load("vizdoom")


@pytest.fixture(scope="module")
def four():
    environment = vizdoom.make("GoTo4", 64)
    yield environment
    environment.close()


def still(yaw: float = 0.0, pitch: float = 0.0, key: int = -1) -> dict[str, np.ndarray]:
    return {"buttons": np.arange(4) == key, "camera": np.array([pitch, yaw], np.float32)}


def test_an_episode_depends_only_on_its_seed(four) -> None:
    first = four.reset(seed=5)[0]["rgb"].copy()
    where, what = dict(four.objects), four.instruction
    for key in (0, 3):
        four.step(still(20.0, 5.0, key))
    other = four.reset(seed=6)[0]["rgb"]
    assert not np.array_equal(first, other)
    again = four.reset(seed=5)[0]["rgb"]
    np.testing.assert_array_equal(first, again)
    assert (four.objects, four.instruction) == (where, what)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8


def test_other_instructions_name_an_object_of_the_room_and_it_is_known_when_it_is_reached(four) -> None:
    for seed in range(4):
        four.reset(seed=seed)
        random = np.random.default_rng(seed)
        other = vizdoom.contradict(four, random)
        assert other != four.instruction
        named = tuple(other.removeprefix("go to the ").split())
        assert named in four.objects
        color, kind = four.target
        words = vizdoom.paraphrase(four.instruction, random).split()
        assert {color, kind} <= set(words)
        assert words[:2] != ["go", "to"]
        fulfilled = vizdoom.goal_of(four, other)
        assert not fulfilled(still())
        four.target = named
        expert, over = vizdoom.Expert(four), False
        while not over:
            _, _, over, truncated, info = four.step(expert.act())
            assert fulfilled(still()) == info["success"]
            over |= truncated
    assert vizdoom.goal_of(four, "go to the purple cow") is None
    alone = vizdoom.make("GoTo1", 64)
    alone.objects = {alone.target: (0.0, 0.0)}
    assert vizdoom.contradict(alone, random) == ""


def test_the_instruction_names_one_of_the_objects_and_they_have_distance(four) -> None:
    for seed in range(10):
        _, info = four.reset(seed=seed)
        assert info == {"success": False}
        assert len(four.objects) == 4
        color, kind = four.instruction.removeprefix("go to the ").split()
        assert (color, kind) in four.objects
        assert color in COLORS
        assert kind in KINDS
        places = [*four.objects.values(), four.player[:2]]
        apart = [math.dist(a, b) for i, a in enumerate(places) for b in places[:i]]
        assert min(apart) > 2 * vizdoom.REACH


def test_keys_move_and_the_mouse_turns_by_the_given_degrees(four) -> None:
    four.reset(seed=1)
    x, y, angle, pitch = four.player
    four.step(still(yaw=20.0, pitch=8.0))
    turned = four.player
    assert (angle - turned[2]) % 360 == pytest.approx(20, abs=0.1)  # to the right is clockwise
    assert turned[3] - pitch == pytest.approx(8, abs=0.2)
    assert math.dist(turned[:2], (x, y)) < 1
    ahead = np.array([math.cos(math.radians(turned[2])), math.sin(math.radians(turned[2]))])
    right = np.array([ahead[1], -ahead[0]])
    for key, direction in ((0, ahead), (1, -ahead), (2, -right), (3, right)):
        four.reset(seed=1)
        four.step(still(yaw=20.0))
        before = np.array(four.player[:2])
        four.step(still(key=key))
        moved = np.array(four.player[:2]) - before
        assert moved @ direction > 0.9 * np.linalg.norm(moved) > 1


def test_the_expert_reaches_only_the_named_object(four) -> None:
    for seed in range(15):
        record = demonstrate(vizdoom, four, seed, 0.1)
        assert record is not None
        assert record["steps"][-1]["reward"] == 1.0
        assert record["steps"][-1]["is_terminal"]
        weights = [step["action_weight"] for step in record["steps"]]
        assert set(weights) <= {0.0, 1.0}


def test_reaching_another_object_ends_the_episode_without_success(four) -> None:
    four.reset(seed=2)
    expert = vizdoom.Expert(four)
    wrong = next(pair for pair in four.objects if pair != four.target)
    named, four.target = four.target, wrong
    over = False
    while not over:
        action = expert.act()
        x, y, *_ = four.player
        if math.dist((x, y), four.objects[wrong]) < vizdoom.REACH + 40:
            four.target = named
        _, reward, over, truncated, info = four.step(action)
        assert not truncated
        four.target = wrong if not over else named
    assert (reward, info["success"]) == (0.0, False)


def test_an_episode_in_which_no_object_is_reached_is_truncated(four) -> None:
    four.reset(seed=3)
    ends = [four.step(still())[2:4] for _ in range(vizdoom.MAX_STEPS)]
    assert ends == [(False, False)] * (vizdoom.MAX_STEPS - 1) + [(False, True)]


def test_the_experts_actions_are_encoded_without_error(four) -> None:
    four.reset(seed=4)
    expert = vizdoom.Expert(four)
    camera = vizdoom.ACTION_SPEC.parts[1]
    for _ in range(6):
        turn = expert.act()["camera"].tolist()
        assert camera.value(camera.symbols(turn)) == turn
        four.step(expert.act())


def test_no_files_remain_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = vizdoom.make("GoTo1", 100)
    assert environment.reset(seed=0)[0]["rgb"].shape == (100, 100, 3)
    environment.close()
    assert list(tmp_path.iterdir()) == []
    assert scenario() == scenario()


KILLED = """
import os, signal
from agent_jax.envs import load
from agent_jax.envs.vizdoom import _temporary_directory
load("vizdoom").make("GoTo1", 64).reset(seed=0)
print(_temporary_directory(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_no_game_and_no_directory_remain(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, stdout=subprocess.PIPE, text=True,
                            check=False)
    assert killed.returncode == -signal.SIGKILL
    directory = Path(killed.stdout.strip())
    until = time.monotonic() + 60
    while directory.exists() or games_in(directory):
        assert time.monotonic() < until, (directory.exists(), games_in(directory))
        time.sleep(0.05)


def games_in(directory: Path) -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if mentions(path, str(directory).encode())]


def mentions(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:  # it has ended
        return False


def test_the_command_collects_demonstrations(tmp_path: Path) -> None:
    collect.main(["vizdoom", "--task", "GoTo2", "--episodes", "3", "--validation_episodes", "1", "--image_size", "64",
                  "--processes", "1", "--out", str(tmp_path / "made")])
    store = open_store(tmp_path / "made")
    assert dict(store.splits) == {"train": 3, "test": 1}
    episode = store.split("train")[0]
    assert np.asarray(episode.values("steps/camera", 0, episode.steps)).shape == (episode.steps, 2)
    assert np.asarray(episode.values("steps/buttons", 0, episode.steps)).dtype == bool


def test_actions_have_names_and_user_errors_name_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vizdoom.action_name(still(yaw=-7.5, key=0)) == "forward, 8 left"
    assert vizdoom.action_name(still()) == "nothing"
    with pytest.raises(ValueError, match=r"task: found 'GoTo9', expected one of GoTo1 to GoTo6"):
        vizdoom.make("GoTo9")
    with pytest.raises(ValueError, match="image_size=0 must be at least 1"):
        vizdoom.make("GoTo2", 0)
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    monkeypatch.delitem(sys.modules, "agent_jax.envs.vizdoom")
    with pytest.raises(ModuleNotFoundError, match=r'needs vizdoom, .* pip install -e "\.\[vizdoom\]"'):
        load("vizdoom")
