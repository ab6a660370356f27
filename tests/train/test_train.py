"""The training command: stopped and resumed to the bit, damaged checkpoints, refusals, and what a run leaves behind."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from small_runs import (
    ROOT,
    STEPS,
    STOPPED_AT,
    Smoke,
    Trained,
    command,
    copied,
    differing,
    environment,
    flip_a_bit,
    listing,
    open_run,
    small_config,
    smoke_run,
    stopped_run,
    store_directory,
    straight_run,
    trained,
)
from terminals import Terminal, terminal

from agent_jax.batch import Batch
from agent_jax.checkpoints import checkpoint
from agent_jax.config import CheckpointConfig, ClosedLoopConfig, Config, TrainConfig
from agent_jax.data.pipeline.loader import PackedRows
from agent_jax.runtime.directory_lock import DirectoryLock, LockedError
from agent_jax.train.loop import Due, train
from agent_jax.train.optimizer import learning_rate_schedule
from agent_jax.train.run import Run
from agent_jax.train.run_files import LOCK_FILE
from agent_jax.train.state import TrainState
from agent_jax.train.step import StepMetrics

# Orbax 0.12 abandons coroutines when it fails to read a damaged file; nothing of ours is left unfinished.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. <coroutine:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def straight(base: Path) -> Trained:
    return straight_run(base)


@pytest.fixture(scope="module")
def stopped(base: Path) -> Trained:
    return stopped_run(base)


@pytest.fixture(scope="module")
def resumed(stopped: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Terminal]:
    """The stopped run, resumed on a terminal."""
    workdir = copied(stopped.workdir, tmp_path_factory.mktemp("terminal") / "resumed")
    with terminal() as seen:
        return trained(stopped.config, workdir), seen


@pytest.fixture(scope="module")
def smoke(base: Path) -> Smoke:
    return smoke_run(base)


def records(workdir: Path, split: str) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def data_state(workdir: Path, step: int) -> dict:
    return checkpoint.read_meta(workdir / "checkpoints", step)["data_state"]


@pytest.mark.parametrize(("step", "stopped", "expected"), [
    (0, False, Due(validate=False, act=False, picture=False, save=False)),  # where the process began
    (2, False, Due(validate=True, act=False, picture=False, save=False)),
    (6, False, Due(validate=True, act=True, picture=False, save=True)),
    (6, True, Due(validate=False, act=False, picture=False, save=True)),  # nothing that takes long
    (7, True, Due(validate=False, act=False, picture=False, save=True)),
    (12, False, Due(validate=True, act=False, picture=True, save=True)),  # acting follows the last step
])
def test_what_is_due_before_the_next_step(step: int, stopped: bool, expected: Due):
    config = Config(train=TrainConfig(steps=12, validate_every=2, picture_every=0),
                    closed_loop=ClosedLoopConfig(every=3), checkpoint=CheckpointConfig(every=6))
    assert Due.at(step, config, begun=0, stopped=stopped) == expected



def test_a_sigterm_ends_a_run_between_two_steps_with_a_checkpoint_and_no_validation(stopped: Trained):
    assert stopped.validation is None
    assert int(stopped.state.step) == STOPPED_AT
    assert checkpoint.steps(stopped.workdir / "checkpoints") == [STOPPED_AT]
    assert [record["step"] for record in records(stopped.workdir, "train")] == list(range(1, STOPPED_AT + 1))


def test_twenty_steps_equal_seven_and_a_restart_and_thirteen_to_the_bit(straight: Trained, stopped: Trained,
                                                                        resumed: tuple[Trained, Terminal]):
    again, workdir = resumed[0], resumed[0].workdir
    assert again.run.first.source == f"resumed from step {STOPPED_AT} in {workdir / 'checkpoints'}"
    assert again.run.first.data_state == data_state(stopped.workdir, STOPPED_AT)
    assert list(differing(again.state, straight.state)) == []
    assert data_state(workdir, STEPS) == data_state(straight.workdir, STEPS)
    for split in ("train", "validation"):
        losses = [[(record["step"], record["loss"]) for record in records(run.workdir, split)]
                  for run in (again, straight)]
        assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [STEPS]


def test_on_a_terminal_a_bar_takes_the_place_of_the_lines_of_steps(resumed: tuple[Trained, Terminal]):
    _, seen = resumed
    assert f"training {STOPPED_AT}/{STEPS} |" in seen.text
    assert re.search(rf"training {STEPS}/{STEPS} \|\S+\| ETA 00:00, loss \d", seen.text)
    validation, last, end = seen.lines[-3:]
    assert validation.startswith(f"validation {STEPS}/{STEPS}  loss ")
    assert last.startswith(f"train {STEPS}/{STEPS}  loss ")
    assert end == ""
    assert sum(line.startswith("train ") for line in seen.lines) == 1


def test_a_finished_run_goes_on_as_a_longer_one_whose_learning_rate_is_the_longer_runs(straight: Trained,
                                                                                       tmp_path: Path):
    workdir = copied(straight.workdir, tmp_path / "longer")
    config = dataclasses.replace(straight.config, train=dataclasses.replace(straight.config.train, steps=STEPS + 2))
    longer = trained(config, workdir)
    assert int(longer.state.step) == STEPS + 2
    lines = records(workdir, "train")
    assert lines[:STEPS] == records(straight.workdir, "train")
    schedule = learning_rate_schedule(config.optimizer, STEPS + 2)
    assert [line["learning_rate"] for line in lines[STEPS:]] == pytest.approx(
        [float(schedule(STEPS)), float(schedule(STEPS + 1))])
    assert [record["step"] for record in records(workdir, "validation")] == [STEPS, STEPS + 2]
    assert checkpoint.read_meta(workdir / "checkpoints")["config"]["train"]["steps"] == STEPS + 2


def test_two_runs_in_one_workdir_are_refused_and_the_lock_goes_with_the_run(base: Path, straight: Trained,
                                                                                   tmp_path: Path):
    workdir = copied(straight.workdir, tmp_path / "shared")
    before = (workdir / "metrics.jsonl").read_text()
    with DirectoryLock(workdir / LOCK_FILE, "", ""):
        holder = f"process {os.getpid()} on host "
        with pytest.raises(LockedError, match=f"shared is in use by {holder}.*another --workdir"):
            open_run(straight.config, workdir)  # which might set a damaged step aside
        run = open_run(small_config(store_directory(base)), tmp_path / "new")
    assert (workdir / "metrics.jsonl").read_text() == before
    with DirectoryLock(tmp_path / "new" / LOCK_FILE, "", ""), pytest.raises(LockedError, match="new is in use by"):
        run.open_streams()
    assert not (tmp_path / "new" / "metrics.jsonl").exists()
    trained(straight.config, workdir)
    assert not (workdir / LOCK_FILE).exists()


def test_a_run_that_lost_its_lock_saves_nothing_more(straight: Trained, tmp_path: Path):
    workdir = copied(straight.workdir, tmp_path / "lost")
    (workdir / "checkpoints" / "20").rename(tmp_path / "20")
    run = open_run(straight.config, workdir)
    streams = run.open_streams()
    (workdir / LOCK_FILE).write_text(json.dumps({"host": "node7", "pid": 4711, "token": "theirs", "since": 0.0}))
    with pytest.raises(LockedError, match="taken over by process 4711 on host node7"):
        train(run, *streams)
    assert checkpoint.steps(workdir / "checkpoints") == [10]


def test_a_workdir_that_another_run_wrote_to_in_the_meantime_is_refused(straight: Trained, tmp_path: Path):
    workdir = copied(straight.workdir, tmp_path / "raced")
    (workdir / "checkpoints" / "20").rename(tmp_path / "20")
    run = open_run(straight.config, workdir)
    (tmp_path / "20").rename(workdir / "checkpoints" / "20")
    with pytest.raises(ValueError, match=r"another run has written to it .*\[10\] then, \[10, 20\] now"):
        run.open_streams()
    assert not (workdir / LOCK_FILE).exists()


def test_a_run_learns_and_keeps_the_steps_it_should(straight: Trained):
    losses = [record["loss"] for record in records(straight.workdir, "train")]
    assert len(losses) == STEPS
    assert losses[-1] < 0.7 * losses[0]
    assert checkpoint.steps(straight.workdir / "checkpoints") == [10, 20]
    assert straight.validation is not None
    assert straight.validation.step == STEPS
    assert list((straight.workdir / "pictures").iterdir()) == [straight.workdir / "pictures" / "reconstruction-20.png"]


def test_a_finished_run_started_again_takes_no_step(straight: Trained, tmp_path: Path):
    workdir = copied(straight.workdir, tmp_path / "again")
    again = trained(straight.config, workdir)
    assert list(differing(again.state, straight.state)) == []
    assert again.validation is not None
    assert straight.validation is not None
    assert again.validation.loss == straight.validation.loss
    assert listing(workdir / "checkpoints").keys() == listing(straight.workdir / "checkpoints").keys()
    assert [record["step"] for record in records(workdir, "validation")] == [STEPS]


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_run_goes_on_from_the_one_before(straight: Trained,
                                                                                         tmp_path: Path):
    workdir = copied(straight.workdir, tmp_path / "damaged")
    flip_a_bit(workdir / "checkpoints" / "20")
    run = trained(straight.config, workdir)
    assert run.run.first.source == f"resumed from step 10 in {workdir / 'checkpoints'}"
    assert checkpoint.steps(workdir / "checkpoints") == [10, 20]
    assert (workdir / "checkpoints" / "20.damaged").is_dir()
    assert list(differing(run.state, straight.state)) == []


def test_a_loss_that_is_no_number_ends_the_run_and_the_checkpoint_before_it_stays(straight: Trained, tmp_path: Path,
                                                                                  monkeypatch: pytest.MonkeyPatch):
    workdir = copied(straight.workdir, tmp_path / "nan")
    for step in ("20",):
        (workdir / "checkpoints" / step).rename(tmp_path / step)  # as if the run were at step 10
    run = open_run(straight.config, workdir)
    before = listing(workdir / "checkpoints")
    laid_out = PackedRows.row

    def spoilt(self: PackedRows, epoch: int, number: int) -> dict:
        row = laid_out(self, epoch, number)
        row["action_weight_BT"][:] = float("nan")
        return row

    monkeypatch.setattr(PackedRows, "row", spoilt)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 11; the last checkpoint in .*nan/check"):
        train(run, *run.open_streams())
    run.checkpoints.close()
    assert listing(workdir / "checkpoints") == before


def test_the_command_stopped_by_sigterm_exits_with_0_and_a_checkpoint(smoke: Smoke):
    assert smoke.stopped.returncode == 0, smoke.stopped.stderr
    assert "stopped by SIGTERM after step" in smoke.stopped.stdout
    assert "start: fresh parameters, seed 0" in smoke.stopped.stdout
    assert len(smoke.steps_after_stop) == 1
    assert smoke.steps_after_stop[0] in {"1", "2", "3"}


def test_the_same_command_finishes_the_run(smoke: Smoke):
    assert smoke.finished.returncode == 0, smoke.finished.stderr
    assert f"resumed from step {smoke.steps_after_stop[0]}" in smoke.finished.stdout
    assert checkpoint.steps(smoke.workdir / "checkpoints")[-1] == 4
    assert [record["step"] for record in records(smoke.workdir, "train")] == [1, 2, 3, 4]


def test_a_run_that_is_started_again_reads_its_compiled_step_from_the_workdir(smoke: Smoke):
    def steps(names: list[str]) -> list[str]:
        return [name for name in names if name.startswith("jit_step-")]

    assert len(steps(smoke.compiled)) == 1  # it was stopped before its first validation
    names = [path.name for path in (smoke.workdir / "compiled").rglob("*-cache")]
    assert len(steps(names)) == 2  # the step of training was not compiled anew, that of validation came to it


def test_a_run_keeps_orbax_quiet(smoke: Smoke):
    assert "Started load checkpoint" not in smoke.finished.stderr
    assert "Finished async_save" not in smoke.stopped.stderr


def test_a_run_leaves_a_picture_and_a_rollout_of_each_policy(smoke: Smoke):
    assert (smoke.workdir / "pictures" / "reconstruction-4.png").read_bytes().startswith(b"\x89PNG")
    rollouts = {path.name: path.read_bytes()[:3] for path in (smoke.workdir / "rollouts").iterdir()}
    report = json.loads((smoke.workdir / "report.json").read_text())["closed_loop"]["GoToObj"]
    names = {f"GoToObj-{name}-{'success' if report[name]['success'] == 1 else 'failure'}.gif"  # failures first
             for name in ("greedy", "sampled")}
    assert rollouts == dict.fromkeys(names, b"GIF")
    assert {key for one in report["greedy"]["per_episode"] for key in one} == {
        "seed", "success", "steps", "instruction", "actions", "probabilities"}
    assert 'src="data:image/gif' in (smoke.workdir / "report.html").read_text()
    assert "per_episode" not in (smoke.workdir / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_the_tpu_config_takes_its_two_smoke_steps_on_eight_devices_in_a_mesh_of_three_axes(base: Path, tmp_path: Path):
    line = command("--config", str(ROOT / "configs" / "tpu_v4.py:smoke"), "--workdir", str(tmp_path / "run"))
    done = subprocess.run(line, env=environment(base), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "mesh: {'replica': 1, 'data': 2, 'fsdp': 2, 'tensor': 2} over 8 cpu device(s)" in done.stdout
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [2]
    figures = json.loads((tmp_path / "run" / "report.json").read_text())
    assert figures["steps"] == 2
    assert figures["losses"]["total"] > 0


def refused(base: Path, *arguments: str, limit: float = 120) -> str:
    """The message of a command that must end with code 2."""
    done = subprocess.run(command(*arguments), env=environment(base), capture_output=True, text=True, check=False,
                          timeout=limit)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "start:" not in done.stdout  # no state was made
    return done.stderr


def test_the_tpu_config_elsewhere_says_at_once_what_is_missing_and_what_it_would_do(base: Path, tmp_path: Path):
    message = refused(base, "--config", str(ROOT / "configs" / "tpu_v4.py"), "--workdir", str(tmp_path / "run"))
    for expected in ("config.mesh.platform='tpu'", "--config.mesh.platform=cpu", "the plan of this run:", "fsdp 4",
                     "309,500 steps of 768 rows", "config.vocabulary.tokenizer=",
                     *(f"--config.data.domains.{name}.path=DIR"
                       for name in ("language_table", "calvin", "minecraft", "bleeding_edge"))):
        assert expected in message
    assert message.count("agent_jax.train:") == 1
    assert not (tmp_path / "run").exists()


def test_a_mistyped_command_is_answered_with_what_was_meant(base: Path, tmp_path: Path):
    """Other mistakes: tests/runtime/test_command_line.py."""
    message = refused(base, "--config", str(ROOT / "configs" / "babyai.py:smoke"), "--config.train.stepz=3",
                      "--workdir", str(tmp_path / "run"))
    assert all(part in message for part in ("stepz", "did you mean", "steps")), message
    assert not (tmp_path / "run").exists()


def test_a_killed_demonstrations_worker_ends_the_run_with_one_message(base: Path, tmp_path: Path):
    line = command("--config", str(ROOT / "configs" / "babyai.py:smoke"), "--config.data.demonstrations.seed=77",
                   "--workdir", str(tmp_path / "run"))
    with subprocess.Popen(line, env=environment(base), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                          ) as running:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")

        def workers() -> list[int]:
            return [int(child) for child in children.read_text().split()
                    if b"worker_process" in Path(f"/proc/{child}/cmdline").read_bytes()]

        while not workers():
            assert running.poll() is None
            time.sleep(0.01)
        os.kill(workers()[0], signal.SIGKILL)
        _, stderr = running.communicate(timeout=120)
    assert running.returncode == 2, stderr
    assert "Traceback" not in stderr
    assert re.search("demonstrations: the worker for 'GoToObj' ended early .signal 9.; it was killed", stderr), stderr


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused_before_anything_is_written(base: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"config.train.batch_size=6 does not divide by 8"):
        open_run(small_config(store_directory(base), **{"train.batch_size": 6}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_begins_with_the_devices_batch_parameters_and_rung_in_its_log(base: Path, tmp_path: Path,
                                                                           capsys: pytest.CaptureFixture[str]):
    run: Run = open_run(small_config(store_directory(base)), tmp_path / "run")
    said = capsys.readouterr().out
    assert f"mesh: {dict(run.mesh.shape)} over {jax.device_count()} cpu device(s), 1 process(es)" in said
    assert "batch: 8 rows = 8 shard(s) x 1 rows x 1 microbatch(es)\nrow: " in said
    assert "start: fresh parameters, seed 0" in said
    assert not (tmp_path / "run").exists()  # nothing is written before there is something to keep


def test_a_gradient_that_is_no_number_ends_the_run_before_what_it_made_is_saved(straight: Trained, tmp_path: Path):
    workdir = copied(straight.workdir, tmp_path / "inf")
    (workdir / "checkpoints" / "20").rename(tmp_path / "20")
    run = open_run(straight.config, workdir)
    taken = run.train_step

    def spoilt(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        state, metrics = taken(state, batch)
        if int(jax.device_get(state.step)) == 20:  # whose loss is still that of step 19's parameters
            metrics = dataclasses.replace(metrics, gradient_norm=jax.device_put(np.float32(np.inf)))
        return state, metrics

    run.train_step = spoilt
    with pytest.raises(FloatingPointError, match="the gradient's norm is inf at step 20; the last checkpoint in"):
        train(run, *run.open_streams())
    run.checkpoints.close()
    assert checkpoint.steps(workdir / "checkpoints") == [10]


def test_on_cpus_a_step_is_called_when_the_one_before_has_ended(straight: Trained, tmp_path: Path):
    """Each call takes memory of its own for temporaries, at once."""
    workdir = copied(straight.workdir, tmp_path / "again")
    (workdir / "checkpoints" / "20").rename(tmp_path / "20")
    run = open_run(straight.config, workdir)
    taken = run.train_step
    before: list[StepMetrics] = []

    def watched(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        assert all(leaf.is_ready() for leaf in jax.tree.leaves((state, before[-1:])))
        state, metrics = taken(state, batch)
        before.append(metrics)
        return state, metrics

    run.train_step = watched
    train(run, *run.open_streams())
    assert len(before) == 10


@pytest.mark.parametrize(("changes", "message"), [
    ({"closed_loop.environment": "babyia"}, "found 'babyia'; did you mean 'babyai'"),
    ({"closed_loop.environment": "babyai", "closed_loop.episodes.NoSuchTask": 1}, "NoSuchTask"),
])
def test_what_is_to_act_at_the_end_is_looked_for_before_the_first_step(base: Path, tmp_path: Path,
                                                                       changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        open_run(small_config(store_directory(base), **changes), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("metrics.jsonl"))


def test_a_log_of_something_else_is_refused_before_the_first_step(base: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("not ours\n" * 3)
    run = open_run(small_config(store_directory(base)), tmp_path / "run")
    with pytest.raises(ValueError, match="metrics.jsonl"):
        run.open_streams()
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "not ours\n" * 3
