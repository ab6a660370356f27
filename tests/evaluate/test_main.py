"""`python -m agent_jax.evaluate`, on a tiny agent with random parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recorded_babyai import recorded_store, tiny_agent

from agent_jax.checkpoints.restore import ActingCheckpoint
from agent_jax.evaluate import checkpoints, commands
from agent_jax.evaluate import rollout_video as rollout
from agent_jax.evaluate.__main__ import main

pytest.importorskip("minigrid")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "evaluate_main"


@pytest.fixture(scope="module")
def agent(base: Path) -> str:
    return str(tiny_agent(base / "agent").path)


def test_closed_loop_prints_seeds_and_a_table_and_writes_json_and_videos(
        agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, written = tmp_path / "videos", tmp_path / "deep" / "found.json"
    status = main(["closed-loop", "--checkpoint", agent, "--env", "babyai", "--task", "GoToObj", "--episodes", "3",
                   "--processes", "0", "--baselines", "--video", str(videos), "--videos", "2", "--format", "gif",
                   "--json", str(written)])
    printed = capsys.readouterr().out
    assert status == 0
    assert "seeds: 1000000000 to 1000000002" in printed
    assert "95% interval" in printed
    found = json.loads(written.read_text())
    assert (found["seed"], found["step"], found["domain"], found["environment"]) == (10**9, 7, "babyai", "babyai")
    assert set(found["tasks"]["GoToObj"]) == {"greedy", "random", "random_moves", "bot"}
    assert found["tasks"]["GoToObj"]["greedy"]["episodes"] == 3
    episodes = found["tasks"]["GoToObj"]["greedy"]["per_episode"]
    assert [one["seed"] for one in episodes] == [10**9, 10**9 + 1, 10**9 + 2]
    for one in episodes:
        assert one["instruction"].startswith("go to the ")
        assert len(one["actions"]) == len(one["probabilities"]) == one["steps"]
        assert all(set(action) == {"action"} and 0 <= action["action"] < 7 for action in one["actions"])
        assert all(1 / 7 <= value <= 1 for value in one["probabilities"])  # greedy: the most probable of seven
    failed_first = sorted(episodes, key=lambda one: (one["success"], one["seed"]))[:2]
    assert sorted(path.name for path in videos.iterdir()) == sorted(
        f"GoToObj-greedy-{one['seed']}-{'success' if one['success'] else 'failure'}.gif" for one in failed_first)
    bot = found["tasks"]["GoToObj"]["bot"]["per_episode"]
    assert [set(one) for one in bot] == [{"seed", "success", "steps", "instruction"}] * 3


def test_replay_exits_with_0_if_all_is_equal_and_1_if_not(base: Path, agent: str, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "found.json"
    common = ["replay", "--checkpoint", agent, "--processes", "0", "--episodes", "3"]
    assert main([*common, "--data", str(recorded_store(base / "store").directory), "--json", str(written)]) == 0
    found = json.loads(written.read_text())
    assert found["alike"]
    assert found["frames"]["different"] == 0
    assert found["frames"]["forward"]["exact"] == found["frames"]["forward"]["accuracy"]  # one choice an action
    assert found["tasks"][0]["raw"]["success"] == 1.0
    assert main([*common, "--data", str(recorded_store(base / "shifted", shift=1000).directory)]) == 1
    assert "MISMATCH" in capsys.readouterr().out
    assert main([*common, "--data", str(recorded_store(base / "foreign", collected=False).directory)]) == 0
    assert "actions in the simulator: not replayed" in capsys.readouterr().out


def test_offline_writes_the_scores(base: Path, agent: str, tmp_path: Path) -> None:
    written = tmp_path / "found.json"
    assert main(["offline", "--checkpoint", agent, "--data", str(recorded_store(base / "store").directory),
                 "--free_running", "--json", str(written)]) == 0
    (scores,) = json.loads(written.read_text())["domains"]
    assert 0 <= scores["action"]["accuracy"] <= 1
    assert scores["choices"] == {"choices": scores["action"]["count"] // 3, "accuracy": scores["action"]["accuracy"],
                                 "actions": scores["action"]["count"] // 3, "exact": scores["action"]["accuracy"],
                                 "errors": [], "buttons": []}
    assert scores["free_running"]["actions"] == scores["choices"]["actions"]
    assert scores["recordings"] > 1
    assert len(scores["intervals"]["action_accuracy"]) == 2


@pytest.mark.parametrize("error", [OSError("No space left on device"), ValueError("an encoder's own")])
def test_videos_that_cannot_be_written_do_not_stop_the_evaluation(
        error: Exception, agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(commands, "write_recording", full)
    written = tmp_path / "found.json"
    assert main(["closed-loop", "--checkpoint", agent, "--env", "babyai", "--task", "GoToObj", "--episodes", "1",
                 "--processes", "0", "--video", str(tmp_path), "--format", "gif", "--json", str(written)]) == 2
    assert json.loads(written.read_text())["tasks"]["GoToObj"]["greedy"]["episodes"] == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_an_impossible_format_or_directory_of_videos_is_an_error_before_anything_runs(
        agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["closed-loop", "--checkpoint", agent, "--env", "babyai", "--processes", "0"]
    (tmp_path / "file").touch()
    assert main([*common, "--format", "gif", "--video", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
    monkeypatch.setattr(rollout, "default_format", lambda: "gif")  # as without PyAV
    assert main([*common, "--format", "mp4", "--video", str(tmp_path / "videos")]) == 2
    printed = capsys.readouterr()
    assert "an MP4 needs av" in printed.err
    assert "checkpoint:" not in printed.out


@pytest.mark.parametrize("command", [["closed-loop", "--env", "babyai"], ["replay"]], ids=["closed-loop", "replay"])
def test_the_reported_step_acts_even_if_the_run_saves_another_meanwhile(
        agent: str, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    class StopError(Exception):
        """Ends the command."""

    def of(loaded: ActingCheckpoint, **options: Any) -> None:
        raise StopError(loaded.taken.step)

    monkeypatch.setattr(checkpoints.Policy, "of", of)
    with pytest.raises(StopError, match="^7$"):
        main([*command, "--checkpoint", agent])


def test_user_errors_are_one_line_before_anything_runs(agent: str, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--checkpoint", str(tmp_path), "--env", "babyai"], "no checkpoint in"),
        (["--checkpoint", agent, "--env", "babyay"], "did you mean 'babyai'?"),
        (["--checkpoint", agent, "--env", "babyai", "--task", "GoToNowhere"], "'GoToNowhere'"),
        (["--checkpoint", agent, "--env", "babyai", "--domain", "table"], "was trained on babyai"),
        (["--checkpoint", agent, "--env", "babyai", "--episodes", "0"], "found 0 episodes"),
        (["--checkpoint", agent, "--env", "babyai", "--concurrent", "0"], "concurrent=0: expected at least 1"),
    ):
        assert main(["closed-loop", *arguments, "--processes", "0"]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.startswith("error: ")
        assert "Traceback" not in printed
