"""Collect expert demonstrations from a simulator into the canonical store.

    config -> shards to write -> worker processes (workers/demonstration_worker.py) -> data set

    python -m agent_jax.envs.collect babyai --level GoToLocal --episodes 2000 --out DIR
    python -m agent_jax.envs.collect metaworld --task MT10 --episodes 100 --out DIR
    python -m agent_jax.envs.collect clips --task caption which_way --episodes 1000 --out DIR

The episodes depend only on the config, not on the number of processes. The data set appears when it is complete; after
an interruption the same command continues with the shards already written.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agent_jax.config import DemonstrationsConfig
from agent_jax.data.store.store import open_store
from agent_jax.data.store.writer import begin_store, finish_store, shard_path
from agent_jax.envs import CLIPS, NAMES, load, tasks_of
from agent_jax.envs.custom import try_out
from agent_jax.envs.workers.demonstration_worker import (
    SEEDS,
    SEEDS_AN_EPISODE,
    Progress,
    Shard,
    demonstration_features,
    write_shard,
)
from agent_jax.runtime.progress_bar import ProgressBar
from agent_jax.runtime.worker_process import WorkerDiedError, run_tasks

FORMAT = 1  # raise it when the same config makes or stores other episodes
# Short enough to share the work evenly, long enough to keep files few. It determines the seeds of the episodes, since
# each shard has its own range of seeds.
_SHARD_EPISODES = 1000
_FIELD = "config.data.demonstrations"


class DemonstrationsError(RuntimeError):
    """A process that collected demonstrations ended early."""


def ensure_demonstrations(config: DemonstrationsConfig, directory: str | os.PathLike[str],
                          where: str = _FIELD) -> Path:
    """The data set of a config below `directory`; collected if it does not exist.

    Args:
        config: equal ones share a data set.
        directory: of all data sets.
        where: the config's field, for messages.

    Raises:
        ValueError: the config has no level, an unknown level, or another invalid value.
        ModuleNotFoundError, FileNotFoundError: the simulator is not installed, or its checkout is missing.
        DemonstrationsError: as `collect`.
    """
    target = demonstrations_directory(config, directory, where)
    with _exclusive(target):
        if target.exists():
            print(f"demonstrations: {_split_sizes(target)} from {target}", flush=True)
            return target
        return collect(config, target)


def demonstrations_directory(config: DemonstrationsConfig, directory: str | os.PathLike[str],
                             where: str = _FIELD) -> Path:
    """Where `ensure_demonstrations` keeps the data set of a config; it need not exist. Arguments, errors as there."""
    metadata = _source(config).metadata(where)
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
    return Path(directory) / f"{metadata['demonstrations']['environment']}-{digest[:12]}"


def collect(config: DemonstrationsConfig, directory: str | os.PathLike[str]) -> Path:
    """Collect the config's episodes into a new data set at `directory`.

    Raises:
        FileExistsError: `directory` exists.
        ValueError, ModuleNotFoundError, FileNotFoundError: as `ensure_demonstrations`.
        DemonstrationsError: a worker process ended early, e.g. because the expert fails at more than half of the
            episodes; its own message is on stderr.
    """
    source, directory = _source(config), Path(directory)
    build = begin_store(directory, source.metadata(_FIELD))
    shards = _shards(config, build, source.name)
    _write_shards([shard for shard in shards if not Path(shard.path).exists()], config.processes)
    finish_store(directory, source.name, source.features)
    print(f"demonstrations: {_split_sizes(directory)} in {directory}", flush=True)
    return directory


def _check(config: DemonstrationsConfig, where: str) -> None:
    if not config.episodes or min(config.episodes.values()) < 1:
        raise ValueError(f"{where}.episodes={dict(config.episodes)}: expected at least one level with at least one "
                         'episode, e.g. {"GoToLocal": 2000}')
    for name, count in (*config.episodes.items(), ("validation_episodes", config.validation_episodes)):
        if not 0 <= count <= SEEDS // SEEDS_AN_EPISODE:
            raise ValueError(f"{where}: {name} has {count} episodes, expected at most {SEEDS // SEEDS_AN_EPISODE}")
    if config.processes < 1:
        raise ValueError(f"{where}.processes={config.processes} must be at least 1")
    if not 0 <= config.noise < 1:
        raise ValueError(f"{where}.noise={config.noise} must lie in [0, 1)")


class _Simulator:
    """An environment whose expert demonstrates."""

    def __init__(self, config: DemonstrationsConfig) -> None:
        self._config, self._module = config, load(config.environment)
        self.name = self._module.NAME

    @property
    def features(self) -> Any:
        """The schema of the records."""
        return demonstration_features(self._module, self._config.image_size)

    def metadata(self, where: str) -> dict[str, Any]:
        """Check the config, the field `where`; return everything that determines the episodes."""
        config, module = self._config, self._module
        _check(config, where)
        if not module.HAS_EXPERT:
            raise ValueError(f"environment {config.environment!r} has no expert to collect demonstrations from; "
                             "prepare a recorded data set with `python -m agent_jax.data prepare`")
        for level in config.episodes:
            module.make(level, config.image_size).close()
            try_out(module, level, config.image_size)
        state = module.STATE_SPEC.to_dict() if module.STATE_SPEC else {}
        return {"action_spec": module.ACTION_SPEC.to_dict(), "state_spec": state,
                "demonstrations": _determining(config, module.NAME, module.version())}


class _Clips:
    """Made-up clips with captions, questions and labels."""

    name = CLIPS

    def __init__(self, config: DemonstrationsConfig) -> None:
        from agent_jax.envs import clips  # imports minigrid

        self._config, self._clips = config, clips

    @property
    def features(self) -> Any:
        """The schema of the records."""
        return self._clips.features(self._config.image_size)

    def metadata(self, where: str) -> dict[str, Any]:
        """As `_Simulator.metadata`."""
        _check(self._config, where)
        self._clips.check(self._config, where)
        described = self._clips.metadata()
        return {**described, "demonstrations": _determining(self._config, CLIPS, described["simulator"])}


def _source(config: DemonstrationsConfig) -> _Simulator | _Clips:
    return _Clips(config) if config.environment == CLIPS else _Simulator(config)


def _determining(config: DemonstrationsConfig, name: str, simulator: str) -> dict[str, Any]:
    """The fields of the config that determine the episodes, with the simulator's version."""
    made = dataclasses.asdict(config)
    del made["processes"]
    return made | {"environment": name, "episodes": dict(config.episodes), "simulator": simulator, "format": FORMAT}


def _shards(config: DemonstrationsConfig, build: Path, name: str) -> list[Shard]:
    """The shards of the data set, by split and level."""
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
    shards = sorted(shards, key=lambda shard: -shard.episodes)
    total, done = sum(shard.episodes for shard in shards), Progress()
    bar = ProgressBar("demonstrations", total, "episodes")

    def text() -> str:
        return f"{done.steps:,} steps, {done.steps / bar.seconds:,.0f} steps/s"

    def add(progress: Progress) -> None:
        done.episodes += progress.episodes
        done.steps += progress.steps
        done.failed += progress.failed
        bar.add(progress.episodes, text())

    try:
        with bar:
            for _ in run_tasks(write_shard, shards, processes, add):
                pass
    except WorkerDiedError as error:
        why = "it was killed, perhaps for lack of memory" if "signal" in error.reason else "its message is above"
        raise DemonstrationsError(f"demonstrations: the worker for {shards[error.task].level!r} ended early "
                                  f"({error.reason}); {why}. The shards written so far are kept: the same command "
                                  "continues with them") from error
    if total:
        print(f"demonstrations: {done.episodes:,} of {total:,} episodes, {text()}, without {done.failed} that the "
              "expert did not solve", flush=True)


def _split_sizes(directory: Path) -> str:
    return " and ".join(f"{count:,} {split}" for split, count in open_store(directory).splits.items()) + " episodes"


@contextlib.contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Lock the data set against other processes; the lock of a killed process is released by the system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"demonstrations: another process is collecting {target}; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m agent_jax.envs.collect", description="Collect expert demonstrations.")
    defaults = DemonstrationsConfig()
    parser.add_argument("environment", help=f"{', '.join(NAMES)}, {CLIPS}, or your own: MODULE, FILE.py, MODULE:CLASS "
                        "or FILE.py:CLASS")
    parser.add_argument("--task", "--level", nargs="+", default=[], help="tasks (levels) of the environment or suites, "
                        "e.g. MT10; default: its first task; of clips all questions")
    parser.add_argument("--episodes", type=int, required=True, help="of each task, for training")
    parser.add_argument("--out", required=True, help="directory of the data set; must not exist")
    parser.add_argument("--validation_episodes", type=int, default=100, help="of each task, with other seeds")
    parser.add_argument("--noise", type=float, default=defaults.noise, help="share of random actions (not imitated)")
    parser.add_argument("--image_size", type=int, help="pixels; default: the environment's")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="determines the episodes")
    parser.add_argument("--processes", type=int, default=defaults.processes, help="simulators at a time")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    out, tasks, episodes = options.pop("out"), options.pop("task"), int(options.pop("episodes"))
    try:
        if options["environment"] == CLIPS:
            from agent_jax.envs import clips

            names, size = tasks or list(clips.QUESTIONS), clips.IMAGE_SIZE
        else:
            module = load(options["environment"])
            names, size = tasks_of(module, tasks or [next(iter(module.TASKS.values()))[0]]), module.IMAGE_SIZE
        options["image_size"] = size if options["image_size"] is None else options["image_size"]
        collect(DemonstrationsConfig(episodes=dict.fromkeys(names, episodes), **options), out)
    except (ValueError, FileExistsError, FileNotFoundError, ModuleNotFoundError, RuntimeError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command continues\n")  # as in a shell


if __name__ == "__main__":
    main()
