from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_jax.actions import BABYAI, ActionSpec
from agent_jax.config import DemonstrationsConfig
from agent_jax.data.store.store import open_store
from agent_jax.envs import collect

pytest.importorskip("minigrid")

CONFIG = DemonstrationsConfig(
    environment="babyai", episodes={"GoToObj": 7, "PutNextLocal": 5}, validation_episodes=3, noise=0.2
)


def records(directory: Path, split: str) -> list[tuple[bytes, bytes, list[int], list[bytes]]]:
    episodes = open_store(directory).split(split)
    return [
        (
            episode.value("episode_id"),
            episode.value("instruction"),
            episode.values("steps/action", 0, episode.steps).tolist(),
            episode.values("steps/observation/rgb", 0, episode.steps),
        )
        for episode in (episodes[i] for i in range(len(episodes)))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "_SHARD_EPISODES", 3)
        return collect.ensure_demonstrations(CONFIG, tmp_path_factory.mktemp("demonstrations") / "new")


def test_the_data_set_has_the_requested_episodes_and_their_metadata(made: Path) -> None:
    store = open_store(made)
    assert dict(store.splits) == {"train": 12, "test": 6}
    levels = [name.decode().split("/")[0] for name, *_ in records(made, "train")]
    assert {level: levels.count(level) for level in levels} == {"GoToObj": 7, "PutNextLocal": 5}
    assert ActionSpec.from_dict(store.metadata["action_spec"]) == BABYAI
    assert store.metadata["demonstrations"]["noise"] == 0.2
    assert store.metadata["demonstrations"]["simulator"].startswith("minigrid 3.")
    names = [name for split in store.splits for name, *_ in records(made, split)]
    assert len(set(names)) == len(names)


def test_the_number_of_processes_changes_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collect, "_SHARD_EPISODES", 3)
    other = collect.collect(dataclasses.replace(CONFIG, processes=1), tmp_path / "other")
    assert len(open_store(other).files("train")) == 5
    for split in ("train", "test"):
        assert records(other, split) == records(made, split)
    printed = capfd.readouterr()
    assert "18 of 18 episodes" in printed.out
    assert printed.err == ""


def test_an_existing_data_set_is_reused_and_another_config_makes_another(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (made / "dataset_info.json").stat()
    again = collect.ensure_demonstrations(dataclasses.replace(CONFIG, processes=1), made.parent)
    assert again == made
    assert (made / "dataset_info.json").stat() == before
    assert f"6 test and 12 train episodes from {made}" in capsys.readouterr().out
    assert sorted(path.name for path in made.parent.iterdir()) == sorted([made.name, f".{made.name}.lock"])
    changed = dataclasses.replace(CONFIG, episodes={"GoToObj": 1}, validation_episodes=0)
    other = collect.ensure_demonstrations(changed, made.parent)
    assert other != made
    assert dict(open_store(other).splits) == {"train": 1}


COLLECT = """
from agent_jax.config import DemonstrationsConfig
from agent_jax.envs import collect
collect._SHARD_EPISODES = 20
collect.collect(DemonstrationsConfig(environment="babyai", episodes={"GoToObj": 120}), "made")
"""


def test_a_killed_collection_leaves_no_data_set_and_no_process_and_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    build = tmp_path / ".made.partial"
    with subprocess.Popen([sys.executable, "-c", COLLECT], cwd=tmp_path, env=environment, start_new_session=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:  # fmt: skip
        while not list(build.glob("babyai-train.*")):
            assert running.poll() is None
            time.sleep(0.01)
        running.kill()
    until = time.monotonic() + 60
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < until:  # the workers notice at their next report
            os.killpg(running.pid, 0)
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGKILL)
        pytest.fail("workers are still running a minute after the end of their caller")
    assert not (tmp_path / "made").exists()
    whole = {path.name: path.stat().st_mtime_ns for path in build.glob("babyai-train.*")}
    assert 1 <= len(whole) < 6

    monkeypatch.setattr(collect, "_SHARD_EPISODES", 20)
    config = DemonstrationsConfig(environment="babyai", episodes={"GoToObj": 120})
    made = collect.collect(config, tmp_path / "made")
    files = {path.name: path.stat().st_mtime_ns for path in open_store(made).files("train")}
    assert whole.items() <= files.items()  # kept, not written again
    assert len({name for name, *_ in records(made, "train")}) == 120
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_worker_that_fails_ends_the_collection_with_its_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(CONFIG, episodes={"KeyInBox": 2, "GoToObj": 2}, validation_episodes=0)
    with pytest.raises(collect.DemonstrationsError, match=r"the worker for 'KeyInBox' ended early \(exit code 1\)"):
        collect.collect(config, tmp_path / "made")
    assert "its expert solved 0 of 4 episodes" in capfd.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": {}}, "expected at least one level"),
        ({"episodes": {"GoToObj": 0}}, "expected at least one level with at least one episode"),
        ({"episodes": {"GoToObjj": 3}}, "level: found 'GoToObjj'"),
        ({"image_size": 60}, "image_size=60 must be a multiple of 7"),
        ({"noise": 1.0}, r"noise=1.0 must lie in \[0, 1\)"),
        ({"processes": 0}, "processes=0 must be at least 1"),
        ({"validation_episodes": -1}, "validation_episodes has -1 episodes"),
        ({"environment": ""}, "environment '': expected MODULE"),
    ],
)
def test_an_invalid_config_is_an_error_before_anything_is_written(
    tmp_path: Path, change: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        collect.ensure_demonstrations(dataclasses.replace(CONFIG, **change), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_command_makes_a_data_set_and_refuses_to_overwrite_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["babyai", "--episodes", "2", "--validation_episodes", "1", "--out", str(tmp_path / "made")]
    collect.main([*command, "--processes", "1", "--level", "GoToObj", "GoToLocal"])
    assert dict(open_store(tmp_path / "made").splits) == {"train": 4, "test": 2}
    with pytest.raises(SystemExit) as end:
        collect.main(command)
    assert end.value.code == 2
    assert "exists; expected a new directory" in capsys.readouterr().err
