"""The training command as several processes: the losses of one, SIGTERM, kills, other numbers of processes, damage."""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
from pathlib import Path

import pytest
from processes import Process, codes, config_file, losses, started, training_lines, wait_until
from small_runs import flip_a_bit

from agent_jax.checkpoints import checkpoint

STEPS = 6
LONG = 14  # of a run that is stopped twice: a process alone takes several steps before it is
# Of one step between meshes that differ in who adds what: float32 sums in another order. The losses are about 10.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def ran(base: Path, workdir: Path, count: int, *more: str, **changes: object) -> list[Process]:
    """A run of `count` processes on 8 devices in all, to its end."""
    config = config_file(base, workdir.name, **changes)
    with started(training_lines(config, workdir, count, *more), workdir.with_name(f"{workdir.name}-logs")) as processes:
        ended = codes(processes)
    assert ended == [0] * count, [process.complained for process in processes]
    return processes


@functools.cache
def straight(base: Path) -> Path:
    """One process of 8 devices, without a stop."""
    workdir = base / "processes" / "straight"
    workdir.parent.mkdir(exist_ok=True)
    ran(base, workdir, 1)
    return workdir


def data_states(workdir: Path) -> dict[int, dict]:
    directory = workdir / "checkpoints"
    return {step: checkpoint.read_meta(directory, step)["data_state"] for step in checkpoint.steps(directory)}


def same_course(workdir: Path, other: Path, steps: int = STEPS, *, unlogged: int | None = None) -> None:
    """Assert that two runs have the same losses, and end at the same place in the data.

    A step is logged while the next one computes, so a kill may lose the line of the step saved last: `unlogged`.
    """
    for split in ("train", "validation"):
        found, expected = losses(workdir, split), losses(other, split)
        assert expected.keys() - {unlogged} <= found.keys() <= expected.keys()
        assert found == pytest.approx({step: expected[step] for step in found}, abs=TOLERANCE)
    assert data_states(workdir)[steps] == data_states(other)[steps]


@pytest.mark.slow
def test_two_processes_stopped_by_a_sigterm_to_one_go_on_as_one_with_the_exact_next_sample(base: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    lines = training_lines(config_file(base, "stopped"), workdir, 2)
    with started(lines, tmp_path / "logs") as processes:
        wait_until(lambda: "train 1/6" in processes[0].said, "the first step", processes)
        processes[1].running.send_signal(signal.SIGTERM)
        assert codes(processes) == [0, 0], [process.complained for process in processes]
    step = int(re.findall(r"stopped by SIGTERM after step (\d)", processes[0].said)[0])
    assert 1 <= step < STEPS
    assert checkpoint.steps(workdir / "checkpoints")[-1] == step
    assert data_states(workdir)[step]["rows"] == step * 16
    assert "over 8 cpu device(s), 2 process(es)" in processes[0].said
    assert "train" not in processes[1].said  # one logger
    assert not list(workdir.glob(".hosts-*"))

    (alone,) = ran(base, workdir, 1)
    assert f"resumed from step {step} in" in alone.said
    same_course(workdir, straight(base))


@pytest.mark.slow
def test_four_processes_take_the_steps_of_one(base: Path, tmp_path: Path):
    ran(base, tmp_path / "run", 4)
    same_course(tmp_path / "run", straight(base))


@pytest.mark.slow
def test_a_sigterm_before_the_first_step_is_kept_until_after_it(base: Path, tmp_path: Path):
    lines = training_lines(config_file(base, "early"), tmp_path / "run", 2)
    with started(lines, tmp_path / "logs") as processes:
        wait_until(lambda: "the plan of this run" in processes[0].said, "the plan", processes)
        processes[1].running.send_signal(signal.SIGTERM)
        assert codes(processes) == [0, 0], [process.complained for process in processes]
    assert "stopped by SIGTERM after step 1" in processes[0].said
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [1]


@pytest.mark.slow
def test_a_run_moves_from_four_processes_to_one_and_back(base: Path, tmp_path: Path):
    """Each part ends by a SIGTERM, but for the last."""
    workdir = tmp_path / "run"
    steps, long = [], {"train.steps": LONG, "checkpoint.every": 1}
    for part, count in enumerate((4, 1)):
        lines = training_lines(config_file(base, "moves", **long), workdir, count)
        with started(lines, tmp_path / f"logs-{part}") as processes:
            wait_until(lambda: re.search(r"^train ", processes[0].said, re.M) is not None, "a step", processes)
            processes[-1].running.send_signal(signal.SIGTERM)
            assert codes(processes) == [0] * count, [process.complained for process in processes]
        steps.append(checkpoint.steps(workdir / "checkpoints")[-1])
    assert 0 < steps[0] < steps[1] < LONG
    first, *_ = ran(base, workdir, 4, **long)
    assert f"resumed from step {steps[1]}" in first.said
    ran(base, tmp_path / "straight", 1, **long)
    same_course(workdir, tmp_path / "straight", LONG)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_kill_of_one_process_the_others_end_and_the_same_command_goes_on(base: Path, tmp_path: Path,
                                                                                 victim: int):
    workdir = tmp_path / "run"
    saved = workdir / "checkpoints"
    lines = training_lines(config_file(base, "killed", **{"checkpoint.every": 1}), workdir, 2)
    with started(lines, tmp_path / "logs") as processes:
        wait_until(lambda: saved.exists() and checkpoint.steps(saved) != [], "a save", processes)
        processes[victim].running.kill()
        ended = codes(processes)
    other = processes[1 - victim]
    assert ended[victim] == -signal.SIGKILL
    assert ended[1 - victim] == 75, other.complained
    assert f"process {victim} of 2 (" in other.complained.splitlines()[-1]
    assert "Start the same command on all hosts again" in other.complained
    first, _ = ran(base, workdir, 2)
    (step,) = re.findall(r"start: resumed from step (\d)", first.said)
    same_course(workdir, straight(base), unlogged=int(step))


@pytest.mark.slow
def test_a_damaged_newest_step_is_passed_over_by_all_processes_alike(base: Path, tmp_path: Path):
    workdir = Path(shutil.copytree(straight(base), tmp_path / "run"))
    flip_a_bit(workdir / "checkpoints" / "6")
    first, _ = ran(base, workdir, 2)
    assert "start: resumed from step 4 in" in first.said
    assert (workdir / "checkpoints" / "6.damaged").is_dir()
    same_course(workdir, straight(base))


@pytest.mark.slow
def test_what_is_wrong_with_one_host_ends_all_before_the_first_step(base: Path, tmp_path: Path):
    def refusals(*lines: list[str]) -> list[str]:
        with started(lines, tmp_path / "logs") as processes:
            assert codes(processes) == [2] * len(lines), [process.complained for process in processes]
        assert not (tmp_path / "run").exists()
        return [process.complained for process in processes]

    config = config_file(base, "refused")
    first, second = training_lines(config, tmp_path / "run", 2)
    for message in refusals(first, [*second, "--config.seed=3"]):
        assert "  config.seed: 0 on process 0; 3 on process 1" in message
        assert message.count("the processes of this run differ") == 1
    first, second = training_lines(config, tmp_path / "run", 2)
    shapes = ["--config.mesh.fsdp=3", "--config.mesh.data=1"]
    for message in refusals([*first, *shapes], [*second, *shapes]):
        assert "3 CPU devices do not divide among 2 processes" in message
    first, second = training_lines(config, tmp_path / "run", 2)
    for message in refusals([*first, "--config.train.batch_size=12"], [*second, "--config.train.batch_size=12"]):
        assert "config.train.batch_size=12 does not divide by 8" in message


@pytest.mark.slow
def test_acting_in_the_course_of_a_run_is_done_by_one_process_and_the_other_waits(base: Path, tmp_path: Path):
    pytest.importorskip("minigrid")
    first, second = ran(base, tmp_path / "run", 2, **{
        "closed_loop.environment": "babyai", "closed_loop.episodes": {"GoToObj": 2}, "closed_loop.every": 3,
        "data.directory": str(tmp_path / "data"), "data.demonstrations.environment": "babyai",
        "data.demonstrations.episodes": {"GoToObj": 4}, "data.demonstrations.validation_episodes": 2,
        "data.demonstrations.processes": 1, "data.demonstrations.image_size": 56,
        "data.domains.tiles.path": "", "data.domains.tiles.max_text": 48, "model.language.positions": 128,
        "train.picture_every": 3})
    assert "closed_loop 3/6" in first.said
    assert "GoToObj" not in second.said
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 2
    figures = json.loads((tmp_path / "run" / "report.json").read_text())
    assert figures["closed_loop"]["GoToObj"]["greedy"]["episodes"] == 2
