"""`python -m agent_jax.study verify`: are the losses and outcomes of a run those that it recorded?

    metrics.jsonl  <-- steps and validations again (verify_steps.py)
    report.json    <-- episodes again (verify_episodes.py)

On the machine of the run every bit counts; on another one, or an unknown one, losses count as verified within a
tolerance, which the result names.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.checkpoints import checkpoint
from agent_jax.json_files import read_json_object
from agent_jax.runtime.host_memory import tune_heap
from agent_jax.runtime.processor import processor_fingerprint
from agent_jax.study.agreement import DIFFERENT, EQUAL, NEAR, machine_difference, worst
from agent_jax.study.verify_episodes import verify_episodes
from agent_jax.study.verify_steps import StepVerifier, config_of, read_lines
from agent_jax.text_table import ruled
from agent_jax.train.preflight import set_platform
from agent_jax.train.report import machine

TOLERANCE = 1e-3  # relative; of accuracies absolute
_SHOWN = 4  # fields of a difference in the table; all are in the JSON


def verify(workdir: Path, *, steps: int, episodes: int, validations: int, seed: int, tolerance: float = TOLERANCE
           ) -> dict[str, Any]:
    """Verify a workdir; nothing is written into it.

    Args:
        workdir: of the run.
        steps: training steps to execute again, at least, if so many have log lines.
        episodes: evaluation episodes to repeat, at most.
        validations: validations to repeat, at most.
        seed: of the draws.
        tolerance: of losses on another machine.

    Returns:
        The result as JSON. Its "verdict" is "equal", "within tolerance" or "different".

    Raises:
        FileNotFoundError, ValueError, DamagedCheckpointError: a user error, in one message.
    """
    for flag, value in (("--steps", steps), ("--episodes", episodes), ("--validations", validations), ("--seed", seed)):
        if value < 0:
            raise ValueError(f"{flag} {value}: expected 0 or more")
    if not workdir.is_dir():
        raise FileNotFoundError(f"{workdir}: no such directory; expected the workdir of a run")
    directory, _ = checkpoint.locate(workdir)
    lines = read_lines(workdir)
    config = config_of(checkpoint.read_meta(directory), directory)
    report_path = workdir / "report.json"
    report = read_json_object(report_path) if report_path.is_file() else {}
    set_platform(config)
    tune_heap()
    recorded, here = report.get("machine"), machine()
    difference = machine_difference(recorded, here) if recorded else _by_processor(workdir)
    same = not difference if recorded else None
    rng = np.random.default_rng(seed)
    verifier = StepVerifier(workdir, directory, lines, rng, 0.0 if same else tolerance)
    result: dict[str, Any] = {
        "workdir": str(workdir), "seed": seed, "same_machine": same, "machine_difference": difference,
        "tolerance": 0.0 if same else tolerance,
        "steps": verifier.verify_steps(steps) if steps else [],
        "validations": verifier.verify_validations(validations) if validations else [],
        "episodes": verify_episodes(workdir, report, episodes, rng) if episodes and report.get("closed_loop") else [],
    }
    compared = [one["verdict"] for kind in ("steps", "validations", "episodes") for one in result[kind]]
    if not compared:
        raise ValueError(f"{workdir}: nothing was compared: found no validation at a checkpoint and no episodes in "
                         "report.json; use --steps 1 or more")
    return {**result, "verdict": worst(compared), "machine": here, "command": " ".join(sys.argv),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def _by_processor(workdir: Path) -> dict[str, list[Any]]:
    """A run without a report names its processors by its compiled programs alone."""
    known = sorted(path.name for path in (workdir / "compiled").glob("*") if path.is_dir())
    here = processor_fingerprint()
    return {"processor (compiled/)": [known, here]} if known and known != [here] else {}


def format_result(result: Mapping[str, Any]) -> str:
    """The result as text."""
    rows = [("what", "where", "verdict", "recorded, found")]
    for one in result["steps"]:
        rows.append((f"steps {one['steps'][0]:,} to {one['steps'][1]:,}",
                     f"metrics.jsonl:{one['line']}, from checkpoint {one['checkpoint']:,}", *_verdict(one)))
    for one in result["validations"]:
        rows.append((f"validation after step {one['checkpoint']:,}", f"metrics.jsonl:{one['line']}", *_verdict(one)))
    for one in result["episodes"]:
        rows.append((f"{one['domain']} {one['task']}, {one['policy']}", f"seed {one['seed']}", *_verdict(one)))
    same = {True: "the machine and versions of the run", False: "another machine or other versions than the run's",
            None: "the run recorded no machine (no report.json)"}[result["same_machine"]]
    fields = "; ".join(f"{name}: {there!r} there, {here!r} here"
                       for name, (there, here) in result["machine_difference"].items())
    counts = ", ".join(f"{len(result[kind])} {what}" for kind, what in (
        ("steps", "lines of training"), ("validations", "validations"), ("episodes", "episodes")))
    verdict = {EQUAL: "equal to the bit", NEAR: f"equal within a relative tolerance of {result['tolerance']:g}",
               DIFFERENT: "DIFFERENT from what was recorded"}[result["verdict"]]
    return "\n".join([ruled(rows, words=4), f"machine: {same}{f' ({fields})' if fields else ''}",
                      f"{counts}: {verdict}"])


def _verdict(one: Mapping[str, Any]) -> tuple[str, str]:
    unequal = [f"{name} {there!r}, {here!r}" for name, (there, here) in one["differences"].items()]
    more = f"; {len(unequal) - _SHOWN} more" if len(unequal) > _SHOWN else ""
    return one["verdict"], "; ".join(unequal[:_SHOWN]) + more
