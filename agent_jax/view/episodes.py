"""A closed loop for pages: the table of success, recorded videos, and the shortest failures step by step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_jax.evaluate.in_training import by_task
from agent_jax.evaluate.rollout_video import read_description
from agent_jax.view.page import data_uri, write_page

_MOST_VIDEOS = 12
_MOST_BYTES = 6 * 2**20  # of a video in a page
_MOST_FAILURES = 3  # of a task and policy


def success_rows(closed_loop: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the table of success: task, policy, success, low, high, episodes, steps."""
    return [{"task": f"{domain} {task}".strip(), "policy": policy, "success": figures["success"],
             "low": figures["ci95"][0], "high": figures["ci95"][1], "episodes": figures["episodes"],
             "steps": figures.get("mean_steps")}
            for domain, task, policies in by_task(closed_loop) for policy, figures in policies.items()]


def write_rollout_page(path: Path, results: Mapping[str, Any], videos: Path) -> None:
    """Write the page of a closed loop."""
    names = ("checkpoint", "step", "domain", "simulator", "seed", "temperature", "history", "command", "date")
    write_page(path, "rollout.html", title=f"Rollouts: {results['environment']}",
               facts=[(name, results[name]) for name in names if name in results],
               success=success_rows(results["tasks"]), videos=videos_of(videos),
               failures=episodes_of_report(results["tasks"]))


def videos_of(directory: Path) -> list[dict[str, Any]]:
    """The videos below a directory: failures first, and the shortest first.

    Returns:
        Each with caption, file, success (None if unknown), steps [(number, action, probability or None)], uri (empty
        for a video that is too large to embed) and is_image.
    """
    found = []
    for path in sorted([*directory.rglob("*.gif"), *directory.rglob("*.mp4")]):
        of_video = read_description(path) or {}
        actions, probabilities = of_video.get("actions", ()), of_video.get("probabilities", ())
        success = of_video.get("success", None if "failure" not in path.stem else False)
        caption = (f"{of_video['task']}, {of_video['policy']}, seed {of_video['seed']}" if of_video else path.stem)
        domain = path.parent.relative_to(directory).as_posix().removeprefix(".")
        found.append({
            "caption": f"{domain} {caption}".strip(), "file": path, "success": success,
            "instruction": "; ".join(dict.fromkeys(of_video.get("instructions", ()))),
            "steps": [(number + 1, action, probabilities[number] if probabilities else None)
                      for number, action in enumerate(actions)], "is_image": path.suffix == ".gif"})
    found.sort(key=lambda one: (one["success"] is not False, len(one["steps"])))
    for number, one in enumerate(found):
        path = one["file"]
        fits = number < _MOST_VIDEOS and path.stat().st_size <= _MOST_BYTES
        one["uri"] = data_uri(path.read_bytes(), path.name) if fits else ""
    return found


def episodes_of_report(closed_loop: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The shortest failures of each task and policy, with actions and probabilities where the report has them."""
    found = []
    for domain, task, policies in by_task(closed_loop):
        for policy, figures in policies.items():
            failed = [one for one in figures.get("per_episode", ()) if not one["success"] and "actions" in one]
            for one in sorted(failed, key=lambda one: one["steps"])[:_MOST_FAILURES]:
                probabilities = one.get("probabilities", ())
                found.append({
                    "caption": f"{f'{domain} {task}'.strip()}, {policy}, seed {one['seed']}",
                    "instruction": one.get("instruction", ""), "length": one["steps"],
                    "steps": [(number + 1, _action(action), probabilities[number] if probabilities else None)
                              for number, action in enumerate(one["actions"])]})
    return found


def _action(action: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in action.items())
