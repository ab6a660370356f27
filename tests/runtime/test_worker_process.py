"""Worker processes: results and progress of tasks, and the end of a worker or of its caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from agent_jax.runtime.worker_process import WorkerDiedError, WorkerProcess, run_tasks


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this file importable in a worker."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def square(number: int, report: Callable[[Any], None]) -> int:
    print("printed by a task")
    report({"half": number / 2})
    if number < 0:
        raise ValueError(f"found {number}")
    if number > 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def echo(connection: Connection) -> None:
    connection.send(("jax" in sys.modules, "pytest" in sys.modules))
    while True:
        connection.send(connection.recv())


def wait_forever(number: int, report: Callable[[Any], None]) -> None:
    while True:
        report(os.getpid())
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [1, 3])
def test_every_task_has_one_result_and_its_progress_reaches_the_caller(
        processes: int, capfd: pytest.CaptureFixture[str]) -> None:
    progress: list[dict[str, float]] = []
    results = dict(run_tasks(square, [3, 1, 2, 5], processes, progress.append))
    assert results == {0: 9, 1: 1, 2: 4, 3: 25}
    assert sorted(one["half"] for one in progress) == [0.5, 1.0, 1.5, 2.5]
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("printed by a task") == 4
    assert dict(run_tasks(square, [], processes, progress.append)) == {}


@pytest.mark.parametrize(("bad", "reason"), [(-1, "exit code 1"), (101, "signal 9")])
def test_a_worker_that_dies_is_reported_with_its_task(
        bad: int, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerDiedError) as raised:
        dict(run_tasks(square, [1, bad], 1, lambda progress: None))
    assert (raised.value.task, raised.value.reason) == (1, reason)
    assert ("found -1" in capfd.readouterr().err) == (bad == -1)


def test_an_error_of_the_caller_ends_the_workers() -> None:
    seen: list[int] = []

    def stop(process: int) -> None:
        seen.append(process)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dict(run_tasks(wait_forever, [0, 1], 2, stop))
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


def end_of_file(task: int, report: Any) -> None:
    raise EOFError(f"the file of task {task} ends early")


def test_an_end_of_file_in_a_task_is_its_error_and_not_the_end_of_the_caller(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerDiedError, match=r"task 0 \(exit code 1\)"):
        dict(run_tasks(end_of_file, [0], 1, print))
    assert "the file of task 0 ends early" in capfd.readouterr().err


def test_a_worker_imports_only_its_function_and_ignores_ctrl_c() -> None:
    worker = WorkerProcess(echo)
    assert worker.connection.recv() == (False, True)
    worker.process.send_signal(signal.SIGINT)
    worker.connection.send("still there")
    assert worker.connection.recv() == "still there"
    assert worker.end() == "exit code 1"  # echo does not catch the EOFError
    assert worker.end() == "exit code 1"


CALLER = """
import os
from test_worker_process import wait_forever
from agent_jax.runtime.worker_process import run_tasks
dict(run_tasks(wait_forever, [0, 1], 2, lambda process: print(process, flush=True)))
"""


def test_workers_end_when_their_caller_is_killed(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{Path(__file__).parent}"}
    with subprocess.Popen([sys.executable, "-c", CALLER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env=environment) as caller:
        assert caller.stdout is not None
        processes = {int(caller.stdout.readline()) for _ in range(20)}
        caller.kill()
    until = time.monotonic() + 30
    for process in processes:
        while Path(f"/proc/{process}/status").exists():
            assert time.monotonic() < until, f"worker {process} is still running"
            time.sleep(0.02)
