"""Many simulators at once: in worker processes, or in this one.

    commands by number --exchange--> worker number % P --> answers by number

Which worker has which episode decides nothing about it. A worker that dies takes one episode with it, the one it was
at; the others it had are begun anew in the worker that replaces it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import agent_jax
from agent_jax.envs.workers.messages import receive, send
from agent_jax.envs.workers.simulator_pool import EpisodeStatus, SimulatorPool
from agent_jax.envs.workers.simulator_worker import execute


@dataclasses.dataclass(frozen=True)
class Command:
    """What a simulator is to do: a method of `SimulatorPool`, its plain arguments, and an action or actions."""

    do: str
    arguments: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Died:
    """The worker ended while it was at this command."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """The worker ended at another command; this episode was lost with it, and may be begun anew."""


Answer = EpisodeStatus | Died | Interrupted


class Simulators:
    """P worker processes with simulators of one environment; 0: this process has them."""

    def __init__(self, environment: str, image_size: int = 0, *, processes: int = 0, keys: Sequence[str] = ()) -> None:
        """Start the workers.

        Args:
            environment: as for `envs.load`.
            image_size: pixels of the observations; 0: the environment's default.
            processes: how many workers.
            keys: of the observations that are wanted; none: all.

        Raises:
            ValueError: a negative number of processes, or no such environment.
            RuntimeError: a worker ends before it is ready; its own message is above.
        """
        if processes < 0:
            raise ValueError(f"processes={processes} must be at least 0 (0: the simulators run in this process)")
        self._opening = {"environment": environment, "image_size": image_size, "keys": list(keys)}
        self._local = None if processes else SimulatorPool(environment, image_size, keys)
        self._workers: list[_Worker] = []
        self._pool = ThreadPoolExecutor(max(1, processes))
        try:
            self._workers = [_Worker(self._opening) for _ in range(processes)]
            for worker in self._workers:
                worker.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def exchange(self, commands: Mapping[int, Command]) -> dict[int, Answer]:
        """Carry out commands, by number: those of one worker one after another, those of different ones at a time.

        The number is that of an episode or of its place, and always leads to the same worker.
        """
        if self._local is not None:
            stage = self._local
            return {number: execute(stage, _plain(command), command.arrays) for number, command in commands.items()}
        shares: list[dict[int, Command]] = [{} for _ in self._workers]
        for number, command in commands.items():
            shares[number % len(shares)][number] = command
        done = self._pool.map(self._exchange_with, range(len(shares)), shares)
        found = {number: answer for answers in done for number, answer in answers.items()}
        return {number: found[number] for number in commands}

    def _exchange_with(self, index: int, commands: Mapping[int, Command]) -> dict[int, Answer]:
        """The answers of one worker; where it died, those that still hold, and a new worker in its place."""
        answers: dict[int, Answer] = {}
        if not commands:
            return answers
        worker = self._workers[index]
        try:
            worker.ask(list(commands.values()))
            for number in commands:
                answers[number] = worker.answer()
        except (EOFError, OSError):
            reason = worker.end()
            died = next(number for number in commands if number not in answers)
            # What had ended before holds; every other episode was in the dead process.
            kept = {number: answer for number, answer in answers.items()
                    if isinstance(answer, EpisodeStatus) and answer.over}
            answers = {number: kept.get(number, Interrupted()) for number in commands} | {died: Died(reason)}
            self._workers[index] = _Worker(self._opening)
            self._workers[index].wait_until_ready()
        return answers

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.end()
        self._workers = []
        if self._local is not None:
            self._local.close()
        self._pool.shutdown()

    def __enter__(self) -> Self:
        """Themselves."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """End the workers, whatever happened."""
        self.close()


class _Worker:
    """One worker process, from this side."""

    def __init__(self, opening: Mapping[str, Any]) -> None:
        # The package may have been found by the caller's sys.path alone.
        found = [str(Path(agent_jax.__file__).parent.parent), os.environ.get("PYTHONPATH")]
        path = os.pathsep.join(filter(None, found))
        command = [sys.executable, "-m", "agent_jax.envs.workers.simulator_worker"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env={**os.environ, "PYTHONPATH": path})
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._commands, self._answers = self.process.stdin, self.process.stdout
        self._opening = opening

    def wait_until_ready(self) -> None:
        try:
            send(self._commands, self._opening)  # pyright: ignore[reportArgumentType] (a pipe is a BinaryIO)
            receive(self._answers)  # pyright: ignore[reportArgumentType]
        except (EOFError, OSError) as error:
            raise RuntimeError(f"environment {self._opening['environment']!r}: a simulator process ended before it was "
                               f"ready ({self.end()}); its own message is above") from error

    def ask(self, commands: Sequence[Command]) -> None:
        """Send commands, without waiting."""
        arrays = {f"{number}/{name}": np.asarray(array) for number, command in enumerate(commands)
                  for name, array in command.arrays.items()}
        fields = {"commands": [_plain(command) for command in commands]}
        send(self._commands, fields, arrays)  # pyright: ignore[reportArgumentType]

    def answer(self) -> EpisodeStatus:
        """The next answer."""
        fields, observation = receive(self._answers)  # pyright: ignore[reportArgumentType]
        chain = fields.pop("chain")
        return EpisodeStatus(observation, **fields, chain=tuple(chain) if chain else None)

    def end(self) -> str:
        """End the process if it has not ended; says how it ended."""
        for stream in (self._commands, self._answers):
            with contextlib.suppress(OSError):  # what was not sent yet cannot be
                stream.close()
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _plain(command: Command) -> dict[str, Any]:
    return {"do": command.do, **command.arguments}
