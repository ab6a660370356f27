"""Environments of the user: loading, checks, acting; names from data are never imported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dot_world
import numpy as np
import pytest
from recorded_babyai import tiny_agent

from agent_jax.config import ClosedLoopConfig, DemonstrationsConfig
from agent_jax.data.store.store import open_store
from agent_jax.data.store.writer import write_store
from agent_jax.envs import Action, load
from agent_jax.envs.collect import collect
from agent_jax.envs.collect import main as collect_main
from agent_jax.envs.custom import same_environment, try_out
from agent_jax.envs.custom_interface import CustomModule
from agent_jax.envs.workers.demonstration_worker import demonstrate, demonstration_features
from agent_jax.evaluate.__main__ import main
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.closed_loop import closed_loop
from agent_jax.evaluate.outcomes import RolloutRecording
from agent_jax.evaluate.replay_actions import collected_from

DOTS = Path(dot_world.__file__)
PUSHT = DOTS.parent.parent.parent / "examples" / "pusht.py"


class Right:
    """Walks right."""

    def reset(self, env_ids: Any) -> None:
        pass

    def act(self, images: Any, instructions: Any, env_ids: Any, states: Any = None) -> list[Action]:
        assert all(image["rgb"].shape == (20, 20, 3) for image in images)
        assert all(re.fullmatch(r"go to cell \d", text) for text in instructions)
        return [{"action": np.int64(1)} for _ in env_ids]


def test_functions_for_other_instructions_receive_the_environment_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "dots.py"
    file.write_text(f"import sys; sys.path.append({str(DOTS.parent)!r})\nfrom dot_world import *\n"
                    "def contradict(environment, random):\n    return f'go to cell {environment.place}'\n"
                    "def goal_of(environment, instruction):\n"
                    "    return lambda action: environment.place == int(instruction[-1])\n")
    assert not hasattr(load("dot_world"), "contradict")
    report = closed_loop(ClosedLoopConfig(environment=str(file), episodes={"reach": 4}), {"greedy": Right()},
                         baselines=False, instructions=("as-is", "contradict"), log=lambda line: None)["reach"]
    assert report["greedy"]["success"] == report["greedy-contradict"]["success"]  # it does not read
    assert report["greedy"]["goals"] == report["greedy-contradict"]["goals"]
    with pytest.raises(ValueError, match=r"has no paraphrase: .* choose among as-is, empty, swap, contradict"):
        closed_loop(ClosedLoopConfig(environment=str(file), episodes={"reach": 4}), {}, instructions=("paraphrase",))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_agent(tmp_path_factory.getbasetemp() / "evaluate_main" / "agent").path)


@pytest.mark.parametrize("reference", ["dot_world", str(DOTS), f"{DOTS}:DotWorld", "dot_world:DotWorld"])
def test_a_module_a_file_and_a_class_are_the_same_environment(reference: str) -> None:
    module = load(reference)
    assert isinstance(module, CustomModule)
    assert (module.NAME, module.CAMERAS, module.STATE_SPEC, module.HAS_EXPERT) == ("dot_world", ("rgb",), None, True)
    assert (module.IMAGE_SIZE, module.IMAGE_SHAPES) == (20, {"rgb": (20, 20, 3)})
    assert module.version() == load("dot_world").version()
    environment = module.make("reach")
    observation, info = environment.reset(seed=3)
    assert (list(observation), info) == (["rgb"], {"success": False})
    assert environment.instruction == "go to cell 3"
    record = demonstrate(module, environment, 3, 0.0)
    assert record is not None
    assert record["episode_id"] == "reach/3"
    assert module.action_name({"action": 1}) == "action 1"


@pytest.mark.parametrize("processes", [0, 1])
def test_policies_experts_and_random_actions_act_in_it(processes: int) -> None:
    config = ClosedLoopConfig(environment=str(DOTS), episodes={"reach": 8}, processes=processes)
    recordings: list[RolloutRecording] = []
    report = closed_loop(config, {"greedy": Right()}, record=7, watch=recordings.append, concurrent=3,
                         per_episode=True, log=lambda line: None)["reach"]
    begun = [np.random.default_rng(config.seed + i).choice(5, 2, replace=False) for i in range(8)]
    assert report["greedy"]["success"] == np.mean([place < target for place, target in begun])
    assert (report["bot"]["success"], report["bot"]["mean_steps"]) == (
        1.0, np.mean([abs(place - target) for place, target in begun]))
    assert set(report) == {"greedy", "random", "bot"}
    right = [bool(place < target) for place, target in begun]
    assert [one["success"] for one in report["greedy"]["per_episode"]] == right
    assert 0 < right.count(False) < 7
    steps = [one["steps"] for one in report["greedy"]["per_episode"]]
    order = sorted(range(8), key=lambda i: (right[i], steps[i], i))[:7]  # failures first, and the shortest first
    assert [(one.seed, one.success) for one in recordings] == [(config.seed + i, right[i]) for i in order]
    for i, one in zip(order, recordings, strict=True):
        assert [int(frame[0, :, 0].argmax()) // 4 for frame in one.frames][:2] == [begun[i][0], min(begun[i][0] + 1, 4)]


def test_closed_loop_of_the_command_line_and_its_videos(agent: str, tmp_path: Path) -> None:
    written = tmp_path / "found.json"
    assert main(["closed-loop", "--checkpoint", agent, "--env", str(DOTS), "--task", "Dots", "--episodes", "1",
                 "--processes", "1", "--json", str(written), "--video", str(tmp_path / "v"), "--format", "gif"]) == 0
    found = json.loads(written.read_text())
    assert set(found["tasks"]) == {"reach", "stay"}
    assert found["simulator"].startswith("dot_world (")
    assert len(list((tmp_path / "v").iterdir())) == 2


def test_demonstrations_are_collected_from_it_and_have_its_name(tmp_path: Path) -> None:
    collect_main([str(DOTS), "--task", "reach", "--episodes", "3", "--validation_episodes", "1", "--processes", "1",
                  "--out", str(tmp_path / "store")])
    store = open_store(tmp_path / "store")
    assert store.splits == {"train": 3, "test": 1}
    assert store.metadata["demonstrations"]["environment"] == "dot_world"


WRONG = {
    "nothing": ("", r"lacks ACTION_SPEC .*TASKS .*IMAGE_SIZE .*make"),
    "a dict": ("ACTION_SPEC = BABYAI.to_dict()", r"ACTION_SPEC is a dict, .*ActionSpec.from_dict\(ACTION_SPEC\)"),
    "tasks": ("TASKS = {'Dots': 'reach'}", r"TASKS=.*'reach'"),
    "shapes": ("IMAGE_SIZE = 0", r"IMAGE_SHAPES has no rgb"),
    "name": ("NAME = 'My Dots'", r"NAME='My Dots'"),
    "constructor": ("def make(task, size):\n    raise RuntimeError('no display')",
                    r"make\('reach', 20\) failed: RuntimeError: no display \(.*own.py, line \d+\)"),
    "methods": ("make = lambda task, size: object()", r"a object, .*reset\(seed=...\), step\(action\), close\(\)"),
    "reset": ("DotWorld.reset = lambda self, seed: 3", r"reset\(\) returned a int, expected \(observation, info\)"),
    "instruction": ("DotWorld.reset = lambda self, seed: (self._seen(), {})", r"found instruction ''"),
    "pictures": ("DotWorld._seen = lambda self: {'rgb': np.zeros((20, 20, 3))}",
                 r"reset\(\) observed 'rgb' as float64\[20, 20, 3\], expected uint8\[20, 20, 3\]"),
    "cameras": ("CAMERAS = ('rgb', 'wrist')", r"observed 'wrist' as nothing, .*it observed rgb, unused"),
    "step": ("DotWorld.step = lambda self, action: (self._seen(), 0.0, False, {})", r"step\(\) returned a tuple of 4"),
    "success": ("DotWorld.step = lambda self, action: (self._seen(), 0, False, False, {'is_success': 1})",
                r"no 'success', only is_success"),
    "syntax": ("def make(:", r"importing it failed: SyntaxError: .*line \d+"),
    "raises": ("1 / 0", r"importing it failed: ZeroDivisionError: .*own.py, line \d+"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_in_an_environment_name_file_and_line(case: str, tmp_path: Path) -> None:
    source, message = WRONG[case]
    file = tmp_path / "own.py"
    file.write_text(f"{DOTS.read_text()}\n{source}\n" if source else "pass\n")
    with pytest.raises(ValueError, match=f"(?s)environment .*own.py.*{message}"):
        try_out(load(str(file)), "reach")


def test_a_missing_file_module_or_class_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text("import a_simulator_that_nobody_has\n")
    with pytest.raises(FileNotFoundError, match="absent.py is not a file"):
        load(str(tmp_path / "absent.py"))
    with pytest.raises(ModuleNotFoundError, match=r"no module 'my_lab'.*PYTHONPATH.*\./pusht.py"):
        load("my_lab.pusht")
    with pytest.raises(ModuleNotFoundError, match="needy.py.*No module named 'a_simulator_that_nobody_has'"):
        load(str(tmp_path / "needy.py"))
    with pytest.raises(ValueError, match="no class 'Dots'; its classes: DotWorld, Expert"):
        load(f"{DOTS}:Dots")
    with pytest.raises(ValueError, match="'babyay'; did you mean 'babyai'"):
        load("babyay")
    with pytest.raises(ValueError, match="'my lab': expected MODULE, FILE.py"):
        load("my lab")
    with pytest.raises(ValueError, match="'json' lacks ACTION_SPEC"):
        load("json")


def test_user_errors_in_the_command_are_a_line(agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.py"
    file.write_text(DOTS.read_text() + "\nDotWorld.step = lambda self, action: None\n")
    assert main(["closed-loop", "--checkpoint", agent, "--env", str(file), "--episodes", "2"]) == 2
    assert re.fullmatch(r"error: environment '.*own.py', task 'reach': step\(\) returned .*\n", capsys.readouterr().err)


def test_names_in_data_sets_and_checkpoints_are_not_imported(agent: str, tmp_path: Path) -> None:
    planted, module = tmp_path / "planted.py", load(str(DOTS))
    planted.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    record = demonstrate(module, module.make("reach"), 3, 0.0)
    assert record is not None
    store = write_store(tmp_path / "store", "dots", demonstration_features(module, 20),
                        {"train": [record], "test": [record]}, {"demonstrations": {"environment": str(planted)}})
    assert collected_from(store) == ""
    trained = TrainedRun.load(agent)
    object.__setattr__(trained.config.data, "demonstrations",
                       DemonstrationsConfig(environment=str(planted), episodes={"reach": 1}))
    with pytest.raises(ValueError, match="--data babyai=DIR"):
        trained.open_store(trained.domain())
    assert not (tmp_path / "ran").exists()


def test_two_paths_of_one_file_are_the_same_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert same_environment("own.py", f"{tmp_path}/./own.py")
    assert same_environment("own.py:A", f"{tmp_path}/own.py:A")
    assert not same_environment("own.py", "own.py:A")
    assert not same_environment("babyai", "vizdoom")


def test_the_pusht_example_runs_and_its_expert_touches_the_t(tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht")
    module = load(str(PUSHT))
    for task in ("push-t", "touch-t"):
        try_out(module, task, 64)
    environment = module.make("touch-t", 64)
    record = demonstrate(module, environment, 7, 0.0)
    assert record is not None
    assert record["instruction"] == "touch the T"
    assert record["steps"][0]["observation"]["rgb"].shape == (64, 64, 3)
    assert np.abs(record["steps"][0]["action"] - 256).max() <= 256
    assert demonstrate(module, module.make("push-t", 64), 7, 0.0) is None  # no expert of that task
    assert collect(DemonstrationsConfig(environment=str(PUSHT), episodes={"touch-t": 1}, validation_episodes=1,
                                        image_size=64, processes=1), tmp_path / "store").is_dir()
