"""Child processes that run functions of this package and exchange Python objects with the caller.

    WorkerProcess(function)                       function(connection) in a child
    run_tasks(function, tasks, processes, ...)    function(task, report) for many tasks in a few children

A child is a new interpreter that imports only the function's module. A fork is unsafe in a process with threads, such
as jax's, and multiprocessing's spawn would import the caller's main module, jax included, in every child.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

_END_S = 5  # until a child whose connection is closed is killed


class WorkerDiedError(RuntimeError):
    """A child ended before it returned the result of task number `task`; its own message is on stderr."""

    def __init__(self, task: int, reason: str) -> None:
        super().__init__(f"a worker process ended at task {task} ({reason})")
        self.task, self.reason = task, reason


class WorkerProcess:
    """A child that runs `function(connection)` of a module; Ctrl-C reaches only the caller, which ends it."""

    def __init__(self, function: Callable[[Connection], None]) -> None:
        self.connection, theirs = Pipe()
        # The caller may have found the package through sys.path, which a child does not inherit.
        path = [str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH")]
        with theirs:
            command = [sys.executable, "-m", "agent_jax.runtime.worker_process", str(theirs.fileno()),
                       function.__module__, function.__name__]
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))})

    def end(self, *, kill: bool = False) -> str:
        """Close the connection and wait for the child, or kill it; returns "exit code N" or "signal N"."""
        self.connection.close()
        if kill:
            self.process.kill()
        try:
            code = self.process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def run_tasks(function: Callable[[Any, Callable[[Any], None]], Any], tasks: Sequence[Any], processes: int,
              on_progress: Callable[[Any], None], *, kill: bool = True) -> Generator[tuple[int, Any]]:
    """Run `function(task, report)` for every task in child processes; yields (task number, result) as they finish.

    Args:
        function: of a module; whatever it passes to `report` goes to `on_progress` in the caller.
        tasks: arguments, begun in this order.
        processes: at most so many children.
        on_progress: called in the caller's thread.
        kill: whether children are killed at an exception, here or in the caller; else each ends at its next `report`,
            by SystemExit, so that it can remove what is half-written.

    Raises:
        WorkerDiedError: a child ended early, e.g. by an exception.
    """
    waiting = collections.deque(enumerate(tasks))
    workers: list[WorkerProcess] = []
    running: dict[Connection, tuple[WorkerProcess, int]] = {}
    complete = False
    try:
        workers += [WorkerProcess(_serve_tasks) for _ in range(min(processes, len(tasks)))]
        free = list(workers)
        while waiting or running:
            while waiting and free:
                worker, (number, task) = free.pop(), waiting.popleft()
                running[worker.connection] = worker, number
                with contextlib.suppress(OSError):  # it has ended, which is noticed when its result is read
                    worker.connection.send((function, task))
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                worker, number = running[connection]
                try:
                    finished, value = connection.recv()
                except (EOFError, OSError) as error:
                    raise WorkerDiedError(number, worker.end()) from error
                if not finished:
                    on_progress(value)
                    continue
                del running[connection]
                free.append(worker)
                yield number, value
        complete = True
    finally:
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.end(kill=kill and not complete)


def _serve_tasks(connection: Connection) -> None:
    def send(finished: bool, value: Any) -> None:
        try:
            connection.send((finished, value))
        except OSError:  # the caller wants no more, or has ended
            sys.exit(1)

    while True:
        try:
            function, task = connection.recv()
        except EOFError:
            return
        send(True, function(task, lambda progress: send(False, progress)))


def main() -> None:
    """Run the function named on the command line; for `WorkerProcess` alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor, module, name = sys.argv[1:]
    os.set_inheritable(int(descriptor), False)  # a process of the simulator must not keep the connection open
    with Connection(int(descriptor)) as connection:
        getattr(importlib.import_module(module), name)(connection)


if __name__ == "__main__":
    main()
