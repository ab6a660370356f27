"""The page benchmarks/results/evidence.md: does the agent read its instruction, notice new images, repeat its record?

    python -m agent_jax.evaluate closed-loop --instruction as-is empty swap contradict ... --json grounding.json
    python -m agent_jax.evaluate surprise ... --json surprise.json
    python -m agent_jax.study verify ... --json verify.json
    python -m agent_jax.study rank ... --json rank.json
    python benchmarks/evidence_page.py grounding.json surprise.json verify.json rank.json

adds these results to benchmarks/results/evidence.json, outcomes of episodes packed as 0 and 1 in the order of their
seeds, and writes the page from that file. Without arguments it writes the page again. Rates, intervals and tests are
computed from the outcomes, not copied.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from agent_jax.evaluate.statistics import paired_summary, success_summary
from agent_jax.json_files import read_json_object, write_json

RESULTS = Path(__file__).resolve().parent / "results"
HEAD = """# Evidence

Written by `python benchmarks/evidence_page.py` from [evidence.json](evidence.json); do not edit. Intervals are 95%.
"""
KINDS = {"tasks": "grounding", "changes": "surprise", "validations": "verify", "tau": "rank"}  # by a key of the result


def packed(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without what the page does not use; the episodes of each policy as a text of 0 and 1."""
    kept = {key: value for key, value in result.items() if key not in ("mean_of_tasks", "points")}
    if "tasks" in kept:
        kept["tasks"] = {task: {name: {
            "instruction": policy["instruction"], "goals": policy.get("goals", {}),
            "seeds": [policy["per_episode"][0]["seed"], policy["per_episode"][-1]["seed"]],
            "outcomes": "".join(str(int(one["success"])) for one in policy["per_episode"])}
            for name, policy in policies.items()} for task, policies in kept["tasks"].items()}
    command = re.sub(r"^\S*/agent_jax/(\w+)/__main__\.py", r"python -m agent_jax.\1", kept["command"])
    kept["command"] = re.sub(r" --json \S+", "", command)
    return kept


def percent(summary: Mapping[str, Any]) -> str:
    """A rate with its interval."""
    return f"{summary['success']:.1%} ({100 * summary['ci95'][0]:.1f} to {100 * summary['ci95'][1]:.1f})"


def grounding(result: Mapping[str, Any]) -> list[str]:
    """A table of success by what the agent was told."""
    lines = []
    for task, policies in result["tasks"].items():
        first = next(iter(policies.values()))
        before = outcomes(first)
        lines += [f"{result['environment']} {task}, {len(before)} episodes, seeds {first['seeds'][0]} to "
                  f"{first['seeds'][1]}:", "",
                  "| instruction | success | minus as-is | p | does what the wrong one says | so with the right one |",
                  "|---|---:|---:|---:|---:|---:|"]
        for policy in policies.values():
            cells = [policy["instruction"], percent(success_summary(outcomes(policy))), "", "", "", ""]
            if policy is not first:
                pair = paired_summary(before, outcomes(policy))
                cells[2] = f"{pair['difference']:+.1%} ({100 * pair['ci95'][0]:+.1f} to {100 * pair['ci95'][1]:+.1f})"
                cells[3] = f"{pair['p']:.1g}"
                if goal := policy["goals"].get(policy["instruction"]):
                    cells[4] = f"{goal['success']:.1%}"
                    cells[5] = f"{first['goals'][policy['instruction']]['success']:.1%}"
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return lines


def outcomes(policy: Mapping[str, Any]) -> np.ndarray:
    """The success of each episode, as booleans."""
    return np.array([one == "1" for one in policy["outcomes"]])


def surprise(result: Mapping[str, Any]) -> list[str]:
    """A table of how well the error of the MAE decoder tells changed images from held-out ones."""
    lines = [f"{result['images']} held-out images of `{result['domain']}`, {result['masks']} masks each; "
             f"{result['surprise_ms']:.1f} ms for one observation, an action took {result['action_ms']:.1f} ms.", "",
             "| images | change | AUROC | images |", "|---|---|---:|---:|"]
    for name, change in result["changes"].items():
        shown = "/".join(Path(name).parts[-2:])  # of a data set's folder
        lines.append(f"| {shown} | {change['kind']} | {change['auroc']:.3f} ({change['ci95'][0]:.3f} to "
                     f"{change['ci95'][1]:.3f}) | {change['images']} |")
    return [*lines, ""]


def verify(result: Mapping[str, Any]) -> list[str]:
    """What was executed again, and how much of it was equal."""
    lines = ["| executed again | number | equal |", "|---|---:|---:|"]
    for part in ("steps", "validations", "episodes"):
        equal = sum(one["verdict"] == "equal" for one in result[part])
        named = {"steps": "lines of training steps"}.get(part, part)
        lines.append(f"| {named} | {len(result[part])} | {equal} |")
    return [*lines, "", "On the machine of the run, so to the bit." if result["same_machine"] else
            f"On another machine, within {result['tolerance']:g}.", ""]


def rank(result: Mapping[str, Any]) -> list[str]:
    """Kendall's tau of offline metrics with success."""
    lines = ["| domain | metric | Kendall's tau | p | checkpoints |", "|---|---|---:|---:|---:|"]
    for domain, metrics in result["tau"].items():
        for name, found in metrics.items():
            tau = "undefined" if found["tau"] is None else f"{found['tau']:+.2f}"
            if found["tau"] is not None and found["ci95"]:
                tau += f" ({found['ci95'][0]:+.2f} to {found['ci95'][1]:+.2f})"
            p = "" if found["p"] is None else f"{found['p']:.1g}"
            lines.append(f"| {domain} | {name} | {tau} | {p} | {found['checkpoints']} |")
    return [*lines, ""]


TITLES = {
    "grounding": ("Does the agent read its instruction?", grounding),
    "surprise": ("Does it notice what it has not seen?", surprise),
    "verify": ("Is a run what it recorded?", verify),
    "rank": ("Do offline metrics rank agents as success does?", rank),
}


def page(evidence: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    lines = [HEAD]
    for kind, (title, tables) in TITLES.items():
        if found := [one for one in evidence.values() if one["kind"] == kind]:
            lines += [f"## {title}", ""]
            for one in found:
                lines += [f"    {one['command']}", "", f"{one['on']}, {one['date'][:10]}.", "", *tables(one)]
    return "\n".join(lines)


def main() -> None:
    """Add results, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="JSON files of the commands above")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of evidence.json and evidence.md")
    options = parser.parse_args()
    path = options.out / "evidence.json"
    evidence = read_json_object(path) if path.exists() else {}
    for file in options.results:
        result = read_json_object(file)
        kind = next((kind for key, kind in KINDS.items() if key in result), None)
        if kind is None:
            parser.error(f"{file}: found the keys {', '.join(result)}; expected a result of one of the commands of "
                         "--help, with one of " + ", ".join(KINDS))
        evidence[file.stem] = {"kind": kind, "on": describe(accelerators=False)["cpu"], **packed(result)}
    write_json(path, evidence)
    (options.out / "evidence.md").write_text(page(evidence), encoding="utf-8")


if __name__ == "__main__":
    main()
