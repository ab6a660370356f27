"""`python -m agent_jax.demo.finetune JOB.json`: learn from a person's demonstrations, and compare on the same seeds.

    run's config + domain "demo" of the demonstrations -> agent_jax.train from the run's parameters -> WORKDIR
    run, WORKDIR -> closed loop on the same seeds -> success before and after, in WORKDIR/demo.json

The run's own data are mixed in, so that the agent keeps what it knows. Demonstrations of the simulator's expert that
are not on this machine any more are gathered again, a small share of them. The last line of the output is the result.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.config import ClosedLoopConfig, Config, DataConfig, DemonstrationsConfig, InitConfig
from agent_jax.config.load import to_config_dict
from agent_jax.data.pipeline.run_data import open_data
from agent_jax.envs.collect import demonstrations_directory
from agent_jax.evaluate.checkpoints import TrainedRun, gathered_data
from agent_jax.evaluate.closed_loop import closed_loop
from agent_jax.evaluate.in_training import simulator_image_size
from agent_jax.evaluate.statistics import paired_summary
from agent_jax.fields import build_field
from agent_jax.json_files import read_json_object, write_json, write_text

RESULT_FILE = "demo.json"
_DOMAIN = "demo"  # followed by a number, if there are several data sets
_SMALLER = 20  # of demonstrations that have to be gathered again
_RATE = 0.3  # of the run's learning rate
_CONFIG = '''"""Written by agent_jax.demo: the run's config with a person's demonstrations."""

import json
from pathlib import Path

from ml_collections import ConfigDict


def get_config():
    """The config in config.json."""
    return ConfigDict(json.loads(Path(__file__).with_name("config.json").read_text(encoding="utf-8")))
'''


@dataclasses.dataclass(frozen=True)
class Job:
    """What to learn from, and where."""

    checkpoint: str  # of the agent
    domain: str  # in which it acts
    environment: str
    task: str  # to compare success in
    demonstrations: tuple[str, ...]  # directories of data sets
    workdir: str  # of the new run
    steps: int = 100
    share: float = 0.25  # of the windows that are a person's
    episodes: int = 50  # of the comparison
    seed: int = 2_000_000_000  # the first one; neither training nor the run's evaluation has these


def finetune_config(trained: TrainedRun, job: Job) -> Config:
    """The config of the new run.

    Raises:
        FileNotFoundError, ValueError: data that cannot be opened.
    """
    own = trained.config
    entry = own.data.domains[job.domain]
    domains = dict(own.data.domains)
    names = []
    for number, path in enumerate(job.demonstrations, 1):
        names.append(_DOMAIN if len(job.demonstrations) == 1 else f"{_DOMAIN}_{number}")
        # A person's few episodes are all learned from, so their validation loss says nothing about other ones.
        domains[names[-1]] = dataclasses.replace(entry, path=path, demonstrations=DemonstrationsConfig(),
                                                 cameras=tuple(f"steps/observation/{name}" for name in
                                                               trained.domains[job.domain].camera_names),
                                                 instruction="instruction", train_split="train",
                                                 validation_split="train")
    data = _less_to_gather(dataclasses.replace(own.data, domains=domains))
    optimizer = dataclasses.replace(own.optimizer, learning_rate=_RATE * own.optimizer.learning_rate,
                                    end_learning_rate=_RATE * own.optimizer.end_learning_rate)
    train = dataclasses.replace(own.train, steps=job.steps, log_every=min(own.train.log_every, max(1, job.steps // 10)),
                                validate_every=0, patience=0)
    model = dataclasses.replace(own.model, language=dataclasses.replace(own.model.language, vocabulary_size=0))
    config = dataclasses.replace(
        own, model=model, data=data, optimizer=optimizer, train=train, init=InitConfig(checkpoint=job.checkpoint),
        checkpoint=dataclasses.replace(own.checkpoint, every=0), closed_loop=ClosedLoopConfig())
    opened = open_data(config, gathered_data(config))
    counts = dict(zip((domain.name for domain in opened.domains), opened.train.counts, strict=True))
    others = sum(domains[name].weight * count for name, count in counts.items() if name not in names)
    persons = sum(counts[name] for name in names)
    weight = job.share / (1 - job.share) * others / persons if others else 1.0
    weighted = {name: dataclasses.replace(found, weight=weight) if name in names else found
                for name, found in data.domains.items()}
    return dataclasses.replace(config, data=dataclasses.replace(data, domains=weighted))


def _less_to_gather(data: DataConfig) -> DataConfig:
    """The data, with fewer demonstrations of the expert where they would have to be gathered again."""
    def smaller(found: DemonstrationsConfig, where: str) -> DemonstrationsConfig:
        if not found.environment or demonstrations_directory(found, Path(data.directory).expanduser(), where).exists():
            return found
        episodes = {level: max(1, count // _SMALLER) for level, count in found.episodes.items()}
        return dataclasses.replace(found, episodes=episodes,
                                   validation_episodes=max(1, found.validation_episodes // _SMALLER))

    domains = {name: dataclasses.replace(entry, demonstrations=smaller(entry.demonstrations, data.demonstrations_field(
        name))) for name, entry in data.domains.items()}
    return dataclasses.replace(data, domains=domains,
                               demonstrations=smaller(data.demonstrations, "config.data.demonstrations"))


def outcomes(trained: TrainedRun, job: Job) -> np.ndarray:
    """Success of every episode (episodes,)."""
    domain = trained.domain(job.domain)
    config = ClosedLoopConfig(environment=job.environment, episodes={job.task: job.episodes}, seed=job.seed)
    image_size = simulator_image_size(trained.config, job.environment, job.domain)
    report = closed_loop(config, {"greedy": trained.policy(job.domain)}, domain=domain, image_size=image_size,
                         baselines=False, per_episode=True, log=lambda line: None)
    found = {one["seed"]: one["success"] for one in report[job.task]["greedy"]["per_episode"]}
    return np.array([found.get(job.seed + number, False) for number in range(job.episodes)])


def finetune(job: Job) -> dict[str, Any]:
    """Train and compare; returns the content of `RESULT_FILE`.

    Raises:
        FileNotFoundError, ValueError: data or checkpoint that cannot be opened.
        RuntimeError: the training failed; its own messages are on stderr.
    """
    trained, workdir = TrainedRun.load(job.checkpoint), Path(job.workdir)
    print(f"success of {job.checkpoint} on {job.episodes} episodes of {job.task} ...", flush=True)
    before = outcomes(trained, job)
    print(f"before: {before.mean():.1%}", flush=True)
    config = finetune_config(trained, job)
    write_json(workdir / "config.json", to_config_dict(config).to_dict())
    write_text(workdir / "config.py", _CONFIG)
    done = subprocess.run([sys.executable, "-m", "agent_jax.train", "--config", str(workdir / "config.py"),
                           "--workdir", str(workdir)], stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise RuntimeError(f"the training ended with exit code {done.returncode}; its message is above")
    after = outcomes(TrainedRun.load(workdir), job)
    paired = paired_summary(before, after)
    result = {**dataclasses.asdict(job), "before": float(before.mean()), "after": float(after.mean()), **paired}
    write_json(workdir / RESULT_FILE, result)
    print(f"success {before.mean():.1%} -> {after.mean():.1%} on the same {job.episodes} seeds; {paired['gained']} "
          f"gained, {paired['lost']} lost, p = {paired['p']:.3f}", flush=True)
    return result


def main(arguments: Sequence[str]) -> int:
    """Run a job; returns the exit status."""
    if len(arguments) != 1:
        print("error: expected one argument: the file of the job", file=sys.stderr)
        return 2
    try:
        finetune(build_field(Job, read_json_object(Path(arguments[0])), "job"))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
