"""A process of simulators, at the other end of a pair of pipes.

    python -m agent_jax.envs.workers.simulator_worker        # started by simulators.py

A message holds commands; each is answered by a message of its own, in order, so that whoever waits knows at which
command a worker died. No jax is imported here, and none of the caller's modules: a fork would not survive the caller's
threads, and a spawn would import its main module.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from agent_jax.envs.workers.messages import receive, send
from agent_jax.envs.workers.simulator_pool import EpisodeStatus, SimulatorPool


def execute(stage: SimulatorPool, command: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> EpisodeStatus:
    """Carry out one command: {"do": name of a method of Stage, ... its arguments}; arrays are the action or actions."""
    arguments = {name: value for name, value in command.items() if name != "do"}
    if command["do"] == "begin":
        return stage.begin(**arguments)
    if command["do"] == "step":
        return stage.step(**arguments, action=arrays)
    if command["do"] == "play":
        return stage.play(**arguments)
    if command["do"] == "replay":
        return stage.replay(**arguments, actions=arrays)
    raise ValueError(f"worker: unknown command {command['do']!r}")


def serve(commands: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the caller is gone. The first message says which simulators; its answer, that they are there."""
    (opening, _) = receive(commands)
    stage = SimulatorPool(opening["environment"], opening["image_size"], opening["keys"])
    send(answers, {"ready": stage.module.version()})
    while True:
        try:
            fields, arrays = receive(commands)
        except EOFError:
            break
        for number, command in enumerate(fields["commands"]):
            prefix = f"{number}/"
            own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            seen = execute(stage, command, own)
            told = {"instruction": seen.instruction, "steps": seen.steps, "over": seen.over, "success": seen.success,
                    "chain": seen.chain}
            send(answers, told, seen.observation)
    stage.close()


def main() -> None:
    """Serve the pipes of stdin and stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller as well, which then ends its workers
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a simulator prints must not come between
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
