"""What a run leaves for a reader: pictures, a rollout to watch, and report.json with every figure it printed.

report.json: {"closed_loop": {TASK: {POLICY: {"success", "episodes", "ci95", "mean_steps", "lost", "per_episode":
[{"seed", "success", "steps", "instruction", "actions", "probabilities"}]}}}, or {DOMAIN: {TASK: ...}} of several
simulators; "evaluation": {DOMAIN: scores as of `evaluate offline`} if config.evaluation.rows is set; "data": [LINE],
the table of the mixture; "losses": {...}, "steps", "parameters",
"seconds": {PHASE: ...}, "seconds_to_first_step", "data_wait_share", "peak_rss_bytes", "machine": {...}, "config", ...}
"""

from __future__ import annotations

import datetime
import platform
import resource
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath

from agent_jax import __version__
from agent_jax.config import Config
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.closed_loop import Report, closed_loop
from agent_jax.evaluate.in_training import ActingDomain
from agent_jax.evaluate.offline import DomainScores, evaluate_offline
from agent_jax.evaluate.outcomes import RolloutRecording
from agent_jax.evaluate.rollout_video import write_recording
from agent_jax.json_files import write_json
from agent_jax.policy import Policy
from agent_jax.runtime.distributed import progress
from agent_jax.runtime.processor import cores, processor_name
from agent_jax.train.phases import Phases
from agent_jax.view.run import write_run_page

_TRACED = 3  # episodes of a task and policy whose actions and probabilities are in report.json


def peak_rss_bytes() -> int:
    """Largest resident memory of this process or of one of its ended children, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts KiB on Linux
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def act_in_simulator(config: Config, acting: ActingDomain, workdir: Path | epath.Path, directory: Path,
                     step: int) -> Report:
    """Load a checkpoint as a user would, act on the tasks of one simulator, and write rollouts.

    Args:
        config: of the run.
        acting: the domain that acts, with its simulator and tasks.
        workdir: holds the checkpoints.
        directory: gets the rollouts, in `rollouts/` or, of several simulators, `rollouts/DOMAIN`.
        step: of the checkpoint.

    Returns:
        The report of the tasks: {TASK: {POLICY: figures}}.
    """
    greedy = Policy.load(workdir, domain=acting.domain, step=step)
    sampled = greedy.with_temperature(config.closed_loop.temperature, seed=config.seed)

    def say(line: str) -> None:
        print(line)
        progress("acting in the simulator")

    def watch(recording: RolloutRecording) -> None:
        write_recording(directory / "rollouts" / acting.name, recording)

    return closed_loop(acting.config, {"greedy": greedy, "sampled": sampled}, domain=greedy.domain,
                       image_size=acting.image_size, watch=watch if config.closed_loop.video else None,
                       per_episode=True, traced=_TRACED, baselines=config.closed_loop.baselines, log=say)


def score_held_out(config: Config, workdir: Path | epath.Path, step: int) -> list[DomainScores]:
    """Score the answers and classes of a checkpoint on the validation splits, as `evaluate offline`.

    Returns:
        The scores of each domain of the layouts "answer" and "label"; [] if `config.evaluation.rows` is 0.

    Raises:
        ValueError: a recording is both in the training and in the validation split.
    """
    domains = [name for name, entry in config.data.domains.items() if entry.layout != "actions"]
    if not config.evaluation.rows or not domains:
        return []
    trained = TrainedRun.load(str(workdir), step)
    params, scores = trained.params(), []
    for name in domains:
        domain = trained.domains[name]
        policy = trained.policy(name) if domain.layout == "answer" else None  # generates the answers
        scores.append(evaluate_offline(trained, params, domain, rows_limit=config.evaluation.rows, policy=policy))
        progress(f"scoring {name}")
    return scores


def write_page(directory: Path, workdir: Path | epath.Path) -> bool:
    """Write report.html; a failure is logged, since no training may be lost by it.

    Args:
        directory: of the run's small files, and of the page.
        workdir: holds the checkpoints.

    Returns:
        Whether it was written.
    """
    name = str(workdir) if "://" in str(workdir) else ""
    try:
        write_run_page(directory / "report.html", [directory], epath.Path(workdir) / "checkpoints", name)
        return True
    except Exception as error:  # noqa: BLE001 - a page about the run is less than the run
        logging.debug("where it was found:", exc_info=True)
        logging.warning("%s was not written (%s: %s); python -m agent_jax.view run makes it from the workdir",
                        directory / "report.html", type(error).__name__, error)
        return False


def machine() -> dict[str, Any]:
    """This machine and the versions that decide on the bits of a result."""
    return {"cpu": processor_name(), "cores": cores(), "devices": [device.device_kind for device in jax.devices()],
            "python": platform.python_version(), "agent_jax": __version__,
            **{package: version(package) for package in ("jax", "flax", "optax")}}


def write_report(paths: list[Path], figures: Mapping[str, Any], phases: Phases) -> None:
    """Write the figures with time, memory and machine, to each path in one rename."""
    content = {
        **figures,
        **phases.to_json(),
        "peak_rss_bytes": peak_rss_bytes(),
        "command": " ".join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }
    for path in paths:
        write_json(path, content)
