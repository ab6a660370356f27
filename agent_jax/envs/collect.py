"""Expert demonstrations from a simulator into the canonical store, once.

    config -> shards to write -> worker processes (workers/demonstration_worker.py) -> data set

    python -m agent_jax.envs.collect babyai --level GoToLocal --episodes 2000 --out DIR
    python -m agent_jax.envs.collect metaworld --task MT10 --episodes 100 --out DIR

Which episodes are made depends on the config alone, not on the number of processes. A data set appears when it is
whole; what was killed is taken up again with the shards that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import agent_jax
from agent_jax.config import DemonstrationsConfig
from agent_jax.data.store.store import open_store
from agent_jax.data.store.writer import begin_store, finish_store, shard_path
from agent_jax.envs import NAMES, EnvironmentModule, load, tasks_of, try_out
from agent_jax.envs.workers.demonstration_worker import SEEDS, SEEDS_AN_EPISODE, Progress, Shard, demonstration_features

FORMAT = 1  # of how episodes are made and stored: raise it where the same config comes to make others
# Short enough to share the work evenly, long enough to keep files few. Each shard has its own range of seeds, so
# another number makes other episodes.
_SHARD_EPISODES = 1000


def ensure_demonstrations(config: DemonstrationsConfig, directory: str | os.PathLike[str]) -> Path:
    """The data set of a config, under `directory`: the one that is there, or a new one.

    Raises:
        ValueError: the config names no level, or an unknown one, or the expert fails at more than half the episodes.
        ModuleNotFoundError, FileNotFoundError: the simulator is not installed, or not where it should be.
    """
    metadata = _metadata(config, load(config.environment))
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
    target = Path(directory) / f"{metadata['demonstrations']['environment']}-{digest[:12]}"
    with _alone(target):
        if target.exists():
            print(f"demonstrations: {_sizes(target)} from {target}", flush=True)
            return target
        return collect(config, target)


def collect(config: DemonstrationsConfig, directory: str | os.PathLike[str]) -> Path:
    """Gather the config's episodes into a new data set at `directory`.

    Raises:
        FileExistsError: `directory` exists.
        ValueError, ModuleNotFoundError, FileNotFoundError: as `ensure_demonstrations`.
        RuntimeError: a worker process ended early; its own message is on stderr.
    """
    module, directory = load(config.environment), Path(directory)
    build = begin_store(directory, _metadata(config, module))
    shards = _shards(config, build, module.NAME)
    _write_shards([shard for shard in shards if not Path(shard.path).exists()], config.processes)
    finish_store(directory, module.NAME, demonstration_features(module, config.image_size))
    print(f"demonstrations: {_sizes(directory)} in {directory}", flush=True)
    return directory


def _metadata(config: DemonstrationsConfig, module: EnvironmentModule) -> dict[str, Any]:
    """What decides about every byte of the episodes; checks the config."""
    if not config.episodes or min(config.episodes.values()) < 1:
        raise ValueError(
            f"config.data.demonstrations.episodes={dict(config.episodes)}: expected at least one level with at least "
            'one episode, e.g. {"GoToLocal": 2000}'
        )
    for name, count in (*config.episodes.items(), ("validation_episodes", config.validation_episodes)):
        if not 0 <= count <= SEEDS // SEEDS_AN_EPISODE:
            raise ValueError(
                f"config.data.demonstrations: {name} has {count} episodes, expected at most {SEEDS // SEEDS_AN_EPISODE}"
            )
    if config.processes < 1:
        raise ValueError(f"config.data.demonstrations.processes={config.processes} must be at least 1")
    if not 0 <= config.noise < 1:
        raise ValueError(f"config.data.demonstrations.noise={config.noise} must lie in [0, 1)")
    if not module.HAS_EXPERT:
        raise ValueError(f"environment {config.environment!r} has no expert to gather demonstrations from; prepare a "
                         "recorded data set by `python -m agent_jax.data prepare`")
    for level in config.episodes:
        module.make(level, config.image_size).close()
        try_out(module, level, config.image_size)
    made = dataclasses.asdict(config)
    del made["processes"]
    made |= {"environment": module.NAME, "episodes": dict(config.episodes), "simulator": module.version(),
             "format": FORMAT}
    state = module.STATE_SPEC.to_dict() if module.STATE_SPEC else {}
    return {"action_spec": module.ACTION_SPEC.to_dict(), "state_spec": state, "demonstrations": made}


def _shards(config: DemonstrationsConfig, build: Path, name: str) -> list[Shard]:
    """The shards of the data set: of each split, its levels in order."""
    shards = []
    for split in ("train", "test"):
        parts = []
        for level, training in sorted(config.episodes.items()):
            total = training if split == "train" else config.validation_episodes
            parts += [
                (level, first, min(_SHARD_EPISODES, total - first)) for first in range(0, total, _SHARD_EPISODES)
            ]
        for number, (level, first, episodes) in enumerate(parts):
            path = shard_path(build, name, split, number, len(parts))
            shards.append(
                Shard(
                    str(path), config.environment, level, config.image_size, config.noise, split, config.seed, first,
                    episodes,
                )
            )  # fmt: skip
    return shards


def _write_shards(shards: Sequence[Shard], processes: int) -> None:
    waiting: queue.SimpleQueue[Shard] = queue.SimpleQueue()
    for shard in sorted(shards, key=lambda shard: -shard.episodes):
        waiting.put(shard)
    line = _ProgressLine(sum(shard.episodes for shard in shards))
    workers = min(processes, len(shards))
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        running = [pool.submit(_drive_worker, waiting, line) for _ in range(workers)]
        try:
            for worker in running:
                worker.result()
        finally:
            line.failed |= not all(worker.done() for worker in running)  # Ctrl-C, or another worker's error
    line.end()


def _drive_worker(waiting: queue.SimpleQueue[Shard], line: _ProgressLine) -> None:
    """Feed one worker process until no shard is waiting, or one of the workers has failed."""
    # The package may have been found by the caller's sys.path alone.
    path = os.pathsep.join(filter(None, [str(Path(agent_jax.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "agent_jax.envs.workers.demonstration_worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            while not line.failed:
                try:
                    shard = waiting.get_nowait()
                except queue.Empty:
                    return
                worker.stdin.write(json.dumps(dataclasses.asdict(shard)) + "\n")
                worker.stdin.flush()
                for message in worker.stdout:
                    progress = Progress(**json.loads(message))
                    line.add(progress)
                    if progress.done or line.failed:
                        break
                else:
                    raise RuntimeError(
                        f"demonstrations: the worker for {shard.level!r} ended early (exit code {worker.wait()}); its "
                        "message is above. Nothing is lost: the same command goes on where this one ended"
                    )
        except BaseException:
            line.failed = True
            raise
        finally:
            if line.failed:
                worker.kill()
            worker.stdin.close()


class _ProgressLine:
    """Counts what the workers report and prints it: one line on a terminal, one every 10 seconds elsewhere."""

    def __init__(self, total: int) -> None:
        self.failed = False  # one worker failed: the others are to stop
        self._total, self._sum = total, Progress()
        self._begun = self._printed = time.monotonic()
        self._lock, self._terminal = threading.Lock(), sys.stdout.isatty()

    def add(self, progress: Progress) -> None:
        with self._lock:
            self._sum.episodes += progress.episodes
            self._sum.steps += progress.steps
            self._sum.failed += progress.failed
            now = time.monotonic()
            if now - self._printed >= (0.5 if self._terminal else 10):
                self._printed = now
                left = (now - self._begun) * (self._total / max(self._sum.episodes, 1) - 1)
                ahead = f"ETA {left // 60:.0f}:{left % 60:02.0f}"
                print(f"{self._text(now)}, {ahead}", end="   \r" if self._terminal else "\n", flush=True)

    def end(self) -> None:
        if self._total:
            failed = f", {self._sum.failed} more that the expert did not solve were left out"
            print(self._text(time.monotonic()) + failed, flush=True)

    def _text(self, now: float) -> str:
        seconds = max(now - self._begun, 1e-9)
        return (
            f"demonstrations: {self._sum.episodes:,} of {self._total:,} episodes, {self._sum.steps:,} steps, "
            f"{self._sum.steps / seconds:,.0f} steps/s"
        )


def _sizes(directory: Path) -> str:
    return " and ".join(f"{count:,} {split}" for split, count in open_store(directory).splits.items()) + " episodes"


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold back other processes that want to make the same data set; a killed one lets go by itself."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"demonstrations: another process is gathering {target}; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m agent_jax.envs.collect", description="Gather expert demonstrations.")
    defaults = DemonstrationsConfig()
    parser.add_argument("environment", help=f"{', '.join(NAMES)}, or one of your own: MODULE, FILE.py, or either with "
                        ":CLASS behind it")
    parser.add_argument("--task", "--level", nargs="+", default=[], help="tasks (levels) of the environment, or suites "
                        "of them, such as MT10; by default its first")
    parser.add_argument("--episodes", type=int, required=True, help="of each task, in training")
    parser.add_argument("--out", required=True, help="directory of the data set; must not exist")
    parser.add_argument("--validation_episodes", type=int, default=100, help="of each task, from other seeds")
    parser.add_argument("--noise", type=float, default=defaults.noise, help="share of random actions, not imitated")
    parser.add_argument("--image_size", type=int, help="pixels; by default what is usual in the environment")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="other seeds make other episodes")
    parser.add_argument("--processes", type=int, default=defaults.processes, help="simulators at a time")
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    out, tasks, episodes = given.pop("out"), given.pop("task"), int(given.pop("episodes"))
    try:
        module = load(given["environment"])
        names = tasks_of(module, tasks or [next(iter(module.TASKS.values()))[0]])
        given["image_size"] = module.IMAGE_SIZE if given["image_size"] is None else given["image_size"]
        collect(DemonstrationsConfig(episodes=dict.fromkeys(names, episodes), **given), out)
    except (ValueError, FileExistsError, FileNotFoundError, ModuleNotFoundError, RuntimeError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
