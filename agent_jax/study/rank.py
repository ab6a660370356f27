"""`python -m agent_jax.study rank`: do offline metrics rank checkpoints as the closed loop does?

    every checkpoint of a few runs --offline--> BLEU-4, action accuracy, NLL --.
                                   --closed loop--> success -------------------+--> Kendall's tau by domain and metric

The paper reports BLEU-4 for its games. tau is 1 if the metric orders all pairs of checkpoints as success does, 0 if it
says nothing, -1 if it orders them the other way round.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_jax.checkpoints import checkpoint
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.closed_loop import closed_loop, means
from agent_jax.evaluate.in_training import ActingDomain, acting_domains
from agent_jax.evaluate.offline import evaluate_offline
from agent_jax.runtime.host_memory import tune_heap
from agent_jax.study.statistics import kendall_summary
from agent_jax.study.verify_episodes import check_environments
from agent_jax.text_table import ruled
from agent_jax.train.report import machine

METRICS = {"bleu4": "BLEU-4", "action_accuracy": "action accuracy", "negative_nll": "-NLL of actions"}


def rank(workdirs: Sequence[Path], *, domain: str = "", episodes: int = 100, rows: int = 256, steps: Sequence[int] = (),
         seed: int = 0, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Score the checkpoints of runs offline and in their simulators.

    Args:
        workdirs: of the runs.
        domain: to act in; "": every one that the runs evaluate in a simulator.
        episodes: of each task, on the seeds of the run's own evaluation.
        rows: of the validation split, at most; 0: all.
        steps: checkpoints to score; (): all.
        seed: of the bootstrap.
        log: called with a line for each checkpoint.

    Returns:
        {"points": [...], "tau": {DOMAIN: {METRIC: `kendall_summary`}}, ...}.

    Raises:
        FileNotFoundError, ValueError: no checkpoint or data there, or a run without a simulator.
    """
    for flag, value, least in (("--episodes", episodes, 1), ("--rows", rows, 0), ("--seed", seed, 0)):
        if value < least:
            raise ValueError(f"{flag} {value}: expected {least} or more")
    tune_heap()
    points = []
    for workdir in workdirs:
        directory, named = checkpoint.locate(workdir)
        found = [named] if named is not None else checkpoint.steps(directory)
        chosen = [step for step in found if not steps or step in steps]
        if not chosen:
            raise ValueError(f"--steps {' '.join(map(str, steps))}: {directory} has the checkpoints {found}, expected "
                             "one of them")
        for step in chosen:
            trained = TrainedRun.load(str(directory / str(step)))
            for acting in _acting(trained, domain):
                points.append(_point(workdir, trained, acting, episodes, rows))
                log(_line(points[-1]))
    by_domain: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        by_domain.setdefault(point["domain"], []).append(point)
    return {"points": points, "tau": {name: _taus(members, seed) for name, members in by_domain.items()},
            "episodes": episodes, "rows": rows, "seed": seed, "machine": machine(), "command": " ".join(sys.argv),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def _acting(trained: TrainedRun, domain: str) -> list[ActingDomain]:
    """The domains of a run to act in, with their simulators."""
    check_environments(trained.config, trained.directory)
    every = acting_domains(trained.config) if trained.config.closed_loop.acts else []
    found = [one for one in every if not domain or domain == trained.domain(one.domain).name]
    if not found:
        names = [trained.domain(one.domain).name for one in every]
        raise ValueError(f"{trained.directory}: the run evaluates {', '.join(names) or 'nothing'} in a simulator, "
                         f"expected {domain or 'config.closed_loop to name one'}")
    return found


def _point(workdir: Path, trained: TrainedRun, acting: ActingDomain, episodes: int, rows: int) -> dict[str, Any]:
    """Offline metrics and success of one checkpoint in one domain."""
    domain = trained.domain(acting.domain)
    scores = evaluate_offline(trained, trained.params(), domain, rows_limit=rows)
    loop = dataclasses.replace(acting.config, episodes=dict.fromkeys(acting.config.episodes, episodes))
    report = closed_loop(loop, {"greedy": trained.policy(domain.name)}, domain=domain, baselines=False,
                         image_size=acting.image_size, log=lambda line: None)
    action = scores.action
    return {"workdir": str(workdir), "step": trained.step, "domain": domain.name, "bleu4": scores.bleu4,
            "action_accuracy": action.accuracy if action else None,
            "negative_nll": -math.log(action.perplexity) if action else None,
            "success": means(report)["greedy"]["success"],
            "tasks": {task: policies["greedy"] for task, policies in report.items()}}


def _taus(points: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """By metric; a metric that some checkpoint lacks is left out."""
    success = [point["success"] for point in points]
    return {name: kendall_summary([point[name] for point in points], success, seed)
            for name in METRICS if all(point[name] is not None for point in points)}


def _line(point: Mapping[str, Any]) -> str:
    metrics = ", ".join(f"{label} {point[name]:.4g}" for name, label in METRICS.items() if point[name] is not None)
    return f"{point['workdir']}, step {point['step']:,}, {point['domain']}: {metrics}; success {point['success']:.1%}"


def format_ranks(result: Mapping[str, Any]) -> str:
    """The result as text."""
    rows = [("domain", "metric", "Kendall's tau", "95% interval", "p", "checkpoints")]
    for domain, metrics in result["tau"].items():
        for name, found in metrics.items():
            tau = "undefined" if found["tau"] is None else f"{found['tau']:+.2f}"
            interval = "{:+.2f} to {:+.2f}".format(*found["ci95"]) if found["ci95"] else ""
            p = "" if found["p"] is None else f"{found['p']:.2g}"
            rows.append((domain, METRICS[name], tau, interval, p, str(found["checkpoints"])))
    lacking = [f"{domain}: no {label}" + ("; BLEU-4 needs sacrebleu" if name == "bleu4" else "")
               for domain, metrics in result["tau"].items() for name, label in METRICS.items() if name not in metrics]
    return "\n".join([ruled(rows, words=2), *lacking,
                      "intervals: bootstrap over checkpoints; undefined: all checkpoints have the same value"])
