"""The page of evidence follows from the outcomes that are committed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import evidence_page
import numpy as np

from agent_jax.evaluate.statistics import paired_summary, success_summary

RESULTS = Path(evidence_page.__file__).parent / "results"


def test_the_committed_page_is_that_of_the_committed_outcomes():
    evidence = json.loads((RESULTS / "evidence.json").read_text())
    assert {one["kind"] for one in evidence.values()} == set(evidence_page.TITLES)
    assert (RESULTS / "evidence.md").read_text() == evidence_page.page(evidence)


def test_rates_and_differences_are_computed_from_the_outcomes(tmp_path: Path):
    before, after = np.arange(40) < 36, np.arange(40) % 2 == 0
    policies = {
        name: {"instruction": told, "success": 0.123, "goals": {},
               "per_episode": [{"seed": seed, "success": bool(one)} for seed, one in enumerate(successes)]}
        for name, told, successes in (("greedy", "as-is", before), ("greedy-empty", "empty", after))}
    result = {"environment": "rooms", "tasks": {"GoTo": policies}, "date": "2026-01-02T03:04:05+00:00",
              "command": "/somewhere/agent_jax/evaluate/__main__.py closed-loop --json x.json --seed 3"}
    (tmp_path / "one.json").write_text(json.dumps(result))
    script = [sys.executable, evidence_page.__file__, "--out", str(tmp_path)]
    subprocess.run([*script, str(tmp_path / "one.json")], check=True)
    page = (tmp_path / "evidence.md").read_text()
    assert "    python -m agent_jax.evaluate closed-loop --seed 3\n" in page
    assert evidence_page.percent(success_summary(before)) in page
    assert evidence_page.percent(success_summary(after)) in page
    assert f"{paired_summary(before, after)['difference']:+.1%}" in page
    assert "12.3%" not in page
    (tmp_path / "other.json").write_text("{}")
    refused = subprocess.run([*script, str(tmp_path / "other.json")], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "other.json: found the keys" in refused.stderr
