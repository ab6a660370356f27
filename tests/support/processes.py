"""Several processes on this machine, each with fake CPU devices, that run the training command or a short script."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from small_runs import ROOT, command, environment, small_config, store_directory

LIMIT_S = 400  # of any run here; whoever needs longer hangs


@dataclasses.dataclass
class Process:
    """One process of a run, and what it has said so far."""

    running: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def said(self) -> str:
        return self.out.read_text()

    @property
    def complained(self) -> str:
        return self.err.read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(lines: Sequence[Sequence[str]], logs: Path,
            variables: Sequence[dict[str, str]] = ()) -> Iterator[list[Process]]:
    """The commands, running side by side, each with its variables; those still there at the end are killed."""
    logs.mkdir(parents=True, exist_ok=True)
    processes = []
    with contextlib.ExitStack() as files:
        for number, line in enumerate(lines):
            out, err = logs / f"{number}.out", logs / f"{number}.err"
            own = variables[number] if variables else {}
            running = subprocess.Popen(line, env={**environment(logs), **own},
                                       stdout=files.enter_context(out.open("wb")),
                                       stderr=files.enter_context(err.open("wb")))
            processes.append(Process(running, out, err))
        try:
            yield processes
        finally:
            for process in processes:
                process.running.kill()
                process.running.wait()


def wait_until(true: Callable[[], bool], what: str, processes: Sequence[Process] = ()) -> None:
    """Wait until something is true, which it will not become once one of the processes has ended."""
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        ended = [process.complained for process in processes if process.running.poll() is not None]
        assert not ended or true(), f"ended before {what}: {ended}"
        time.sleep(0.1)


def codes(processes: Sequence[Process]) -> list[int]:
    """The exit codes, once all have ended."""
    wait_until(lambda: all(process.running.poll() is not None for process in processes), "all processes to end")
    return [process.running.returncode for process in processes]


def cluster_flags(count: int, **timeouts: float) -> list[list[str]]:
    """The flags of each process of a run."""
    port = free_port()
    more = [f"--{name}={value}" for name, value in {"join_timeout": 120, "heartbeat_timeout": 15, **timeouts}.items()]
    return [[f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={number}", *more]
            for number in range(count)]


def script_lines(body: str, count: int, **timeouts: float) -> list[list[str]]:
    """Processes that join and then execute `body`, which sees `distributed` and its number `me`."""
    script = "\n".join([
        "import os, signal, sys, time, jax",
        "from agent_jax.runtime import distributed",
        "jax.config.update('jax_num_cpu_devices', 2)",
        "values = dict(flag.removeprefix('--').split('=') for flag in sys.argv[1:])",
        "kinds = {'coordinator': str, 'processes': int, 'process': int}",
        "fields = {name: kinds.get(name, float)(value) for name, value in values.items()}",
        "distributed.join(distributed.Cluster(**fields))",
        "me = distributed.index()",
        "with distributed.ending_together():",
        textwrap.indent(textwrap.dedent(body), "    "),
    ])
    return [[sys.executable, "-c", script, *flags] for flags in cluster_flags(count, **timeouts)]


def without_flags(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """The same commands, which must find each other by the environment."""
    return [[part for part in line if not part.startswith(("--coordinator", "--process"))] for line in lines]


def config_file(base: Path, name: str, **changes: object) -> Path:
    """A config file of `small_config` on 8 CPU devices, with these fields."""
    draft = {"mesh.platform": "cpu", "mesh.data": 2, "mesh.fsdp": 4, "mesh.tensor": 1, "train.batch_size": 16,
             "train.steps": 6, "checkpoint.every": 2, **changes}
    path = base / f"{name}.py"
    path.with_suffix(".json").write_text(json.dumps(dataclasses.asdict(small_config(store_directory(base), **draft))))
    path.write_text(textwrap.dedent("""
        import json
        from pathlib import Path

        from agent_jax.config import from_config_dict, to_config_dict


        def get_config(variant=""):
            return to_config_dict(from_config_dict(json.loads(Path(__file__).with_suffix(".json").read_text())))
    """))
    return path


def training_lines(config: Path, workdir: Path, count: int, *more: str, **timeouts: float) -> list[list[str]]:
    """The training command of each process of a run."""
    flags = cluster_flags(count, **timeouts) if count > 1 else [[]]
    return [command("--config", str(config), "--workdir", str(workdir), *more, *its) for its in flags]


def losses(workdir: Path, split: str = "train") -> dict[int, float]:
    """The logged loss of each step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["split"] == split}


__all__ = ["ROOT", "Process", "cluster_flags", "codes", "config_file", "free_port", "losses", "script_lines", "started",
           "training_lines", "wait_until", "without_flags"]
