"""What a run leaves for a reader: pictures, a rollout to watch, and report.json with every figure it printed.

report.json: {"closed_loop": {TASK: {POLICY: {"success", "episodes", "ci95", "mean_steps", "lost", "per_episode":
[{"seed", "success", "steps", "instruction", "actions", "probabilities"}]}}}, or {DOMAIN: {TASK: ...}} of several
simulators; "evaluation": {DOMAIN: scores as of `evaluate offline`} if config.evaluation.rows is set; "data": [LINE],
the table of the mixture; "losses": {...}, "steps", "parameters",
"seconds": {PHASE: ...}, "seconds_to_first_step", "data_wait_share", "peak_rss_bytes", "machine": {...}, "config", ...}
"""

from __future__ import annotations

import datetime
import functools
import platform
import resource
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from agent_jax import __version__
from agent_jax.batch import Batch
from agent_jax.config import Config, ModelConfig
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.closed_loop import Report, closed_loop
from agent_jax.evaluate.in_training import ActingDomain
from agent_jax.evaluate.offline import DomainScores, evaluate_offline
from agent_jax.evaluate.outcomes import RolloutRecording
from agent_jax.evaluate.rollout_video import write_recording
from agent_jax.json_files import write_json
from agent_jax.models.agent import Agent, Params
from agent_jax.models.vision import PIXEL_MEAN, PIXEL_STD
from agent_jax.policy import Policy
from agent_jax.runtime.distributed import leads, progress
from agent_jax.runtime.processor import cores, processor_name
from agent_jax.runtime.sharding import on_host
from agent_jax.train.phases import Phases
from agent_jax.train.reconstruction import write_reconstruction
from agent_jax.train.state import VALIDATION_KEY, purpose_key
from agent_jax.train.step import MASK_KEY, row_keys
from agent_jax.view.run import write_run_page

PICTURED_IMAGES = 6
_TRACED = 3  # episodes of a task and policy whose actions and probabilities are in report.json


def peak_rss_bytes() -> int:
    """Largest resident memory of this process or of one of its ended children, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts KiB on Linux
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@functools.cache
def _masked_and_predicted(model: ModelConfig, seed: int) -> Any:
    """The program params, rows -> hidden patches, what is predicted for them; of a run, so that it compiles once."""
    def masked_and_predicted(params: Params, rows: Batch) -> tuple[jax.Array, jax.Array]:
        keys_B = row_keys(purpose_key(seed, VALIDATION_KEY), rows.seed_B, MASK_KEY)
        output: Any = Agent(model).apply({"params": params}, rows, mask_keys_B=keys_B)
        return output.mask.hide_BFI, output.predicted_BFIX
    return jax.jit(masked_and_predicted)


def write_picture(path: Path, config: Config, params: Params, rows: Batch) -> None:
    """PNG of the first images of some rows: input, masked input, reconstruction.

    All processes compute it together, and process 0 writes it.

    Args:
        path: of the PNG; its directory is made.
        config: of the run.
        params: of the agent.
        rows: on the host, laid out for all visual tokens.
    """
    output = on_host(_masked_and_predicted(config.model, config.seed)(params, rows))
    if not leads():
        return
    shown = np.flatnonzero(np.asarray(rows.clip_BF).reshape(-1) >= 0)[:PICTURED_IMAGES]
    flat = lambda array: np.asarray(array).reshape(-1, *array.shape[2:])[shown]  # noqa: E731
    hidden_FI, painted_FIX = (flat(part) for part in output)
    hidden_FP = np.zeros((len(shown), config.model.vision.patches), bool)
    painted_FPX = np.zeros((*hidden_FP.shape, painted_FIX.shape[-1]), np.float32)
    np.put_along_axis(hidden_FP, hidden_FI, True, axis=1)
    np.put_along_axis(painted_FPX, hidden_FI[..., None], painted_FIX, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_reconstruction(path, flat(rows.frames_BFHWC), hidden_FP, painted_FPX, mean=PIXEL_MEAN, std=PIXEL_STD)


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
                       per_episode=True, traced=_TRACED, log=say)


def score_held_out(config: Config, workdir: Path | epath.Path, step: int) -> list[DomainScores]:
    """Score the answers and classes of a checkpoint on the validation splits, as `evaluate offline`.

    Args:
        config: of the run.
        workdir: holds the checkpoints.
        step: of the checkpoint.

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
    except Exception:  # noqa: BLE001 - a page about the run is less than the run
        logging.warning("%s was not written; python -m agent_jax.view run makes it from the workdir",
                        directory / "report.html", exc_info=True)
        return False


def write_report(paths: list[Path], figures: Mapping[str, Any], phases: Phases) -> None:
    """Write the figures with time, memory and machine, to each path in one rename."""
    content = {
        **figures,
        **phases.to_json(),
        "peak_rss_bytes": peak_rss_bytes(),
        "command": " ".join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": processor_name(), "cores": cores(),
                    "devices": [device.device_kind for device in jax.devices()],
                    "python": platform.python_version(),
                    "agent_jax": __version__,
                    **{package: version(package) for package in ("jax", "flax", "optax")}},
    }
    for path in paths:
        write_json(path, content)
