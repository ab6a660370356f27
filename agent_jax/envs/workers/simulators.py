"""Many simulators at once: in worker processes, or in this one.

    commands by number --exchange--> worker number % P --> answers by number

The distribution over workers does not change any episode. If a worker dies, the episode of its current command is lost;
its other episodes begin again in the worker that replaces it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

from agent_jax.envs.workers.simulator_pool import EpisodeStatus, SimulatorPool
from agent_jax.runtime.worker_process import WorkerProcess


@dataclasses.dataclass(frozen=True)
class Command:
    """A method of `SimulatorPool` and its arguments."""

    method: str
    arguments: Mapping[str, Any]

    def run(self, pool: SimulatorPool) -> EpisodeStatus:
        """Call the method."""
        return getattr(pool, self.method)(**self.arguments)


@dataclasses.dataclass(frozen=True)
class WorkerDied:
    """The worker ended during this command."""

    reason: str


@dataclasses.dataclass(frozen=True)
class EpisodeInterrupted:
    """The worker ended during another command and this episode was lost with it; it can begin again."""


Answer = EpisodeStatus | WorkerDied | EpisodeInterrupted


class Simulators:
    """P worker processes with simulators of one environment; P = 0: the simulators run in this process."""

    def __init__(self, environment: str, image_size: int = 0, *, processes: int = 0, keys: Sequence[str] = ()) -> None:
        """Start the workers.

        Args:
            environment: as for `envs.load`.
            image_size: pixels of the images; 0: the environment's default.
            processes: number of workers.
            keys: keys of the observation to return; empty: all.

        Raises:
            ValueError: a negative number of processes, or an unknown environment.
            RuntimeError: a worker ends before it is ready; its own message is on stderr.
        """
        if processes < 0:
            raise ValueError(f"processes={processes} must be at least 0 (0: the simulators run in this process)")
        self._arguments = environment, image_size, tuple(keys)
        self._local = None if processes else SimulatorPool(*self._arguments)
        self._workers: list[WorkerProcess] = []
        try:
            for _ in range(processes):
                self._workers.append(self._start())
            for worker in self._workers:
                self._wait_until_ready(worker)
        except BaseException:
            self.close()
            raise

    def exchange(self, commands: Mapping[int, Command]) -> dict[int, Answer]:
        """Run commands by number, in parallel over the workers and in order within a worker.

        The number is that of an episode or of its slot, and always belongs to the same worker.
        """
        if self._local is not None:
            return {number: command.run(self._local) for number, command in commands.items()}
        shares: dict[int, list[int]] = {}  # numbers by worker
        for number in commands:
            shares.setdefault(number % len(self._workers), []).append(number)
        for index, numbers in shares.items():
            with contextlib.suppress(OSError):  # the worker has died, which is noticed when its answer is read
                self._workers[index].connection.send([commands[number] for number in numbers])
        answers: dict[int, Answer] = {}
        unanswered = {self._workers[index].connection: (index, iter(numbers)) for index, numbers in shares.items()}
        expected = {connection: next(numbers) for connection, (_, numbers) in unanswered.items()}
        while expected:
            for connection in wait(list(expected)):
                assert isinstance(connection, Connection)
                index, numbers = unanswered[connection]
                number = expected.pop(connection)
                try:
                    answers[number] = connection.recv()
                except (EOFError, OSError):
                    self._replace(index, number, shares[index], answers)
                    continue
                if (following := next(numbers, None)) is not None:
                    expected[connection] = following
        return {number: answers[number] for number in commands}

    def _replace(self, index: int, died: int, numbers: Sequence[int], answers: dict[int, Answer]) -> None:
        """Complete the answers of a worker that died during command `died`, and start another in its place."""
        reason = self._workers[index].end()
        for number in numbers:
            answer = answers.get(number)
            if not (isinstance(answer, EpisodeStatus) and answer.over):  # an ended episode remains valid
                answers[number] = EpisodeInterrupted()
        answers[died] = WorkerDied(reason)
        self._workers[index] = self._start()
        self._wait_until_ready(self._workers[index])

    def _start(self) -> WorkerProcess:
        worker = WorkerProcess(serve_simulators)
        with contextlib.suppress(OSError):  # it has ended, which _wait_until_ready notices
            worker.connection.send(self._arguments)
        return worker

    def _wait_until_ready(self, worker: WorkerProcess) -> None:
        try:
            worker.connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"environment {self._arguments[0]!r}: a simulator process ended before it was ready "
                               f"({worker.end()}); its own message is above") from error

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.end()
        self._workers = []
        if self._local is not None:
            self._local.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def serve_simulators(connection: Connection) -> None:
    """Run commands until the caller closes the connection; the function of a worker process.

    Each command has its own answer, so the caller knows during which command a worker died.
    """
    pool = SimulatorPool(*connection.recv())
    connection.send(pool.module.version())  # ready
    with contextlib.closing(pool):
        while True:
            try:
                commands = connection.recv()
            except EOFError:
                return
            for command in commands:
                connection.send(command.run(pool))
