"""The smoke runs of configs/pretrain_mini.py and configs/finetune/mini.py.

Three simulators, made-up clips, and scores of each at the end; then a task that was not among them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_smoke_run_trains_acts_and_scores_every_domain(root: Path, tmp_path: Path) -> None:
    missing = [name for name in ("minigrid", "metaworld", "vizdoom") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    config = root / "configs" / "pretrain_mini.py"
    command = [sys.executable, "-m", "agent_jax.train", "--config", f"{config}:smoke", "--workdir", str(tmp_path),
               f"--config.data.directory={tmp_path / 'data'}", "--config.data.leave_out=('language_table',)"]
    subprocess.run(command, cwd=root, check=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: list(tasks) for name, tasks in report["closed_loop"].items()} == {
        "babyai": ["GoToObj"], "metaworld": ["drawer-close@16hz"], "vizdoom": ["GoTo1"]}
    for tasks in report["closed_loop"].values():
        for policies in tasks.values():
            assert {"greedy", "sampled", "random", "bot"} <= policies.keys()
    assert report["evaluation"]["clips"]["generated"]["texts"] > 0
    assert "exact" in report["evaluation"]["clips"]["generated"]["baseline"]
    assert report["evaluation"]["clip_classes"]["classes"]["count"] > 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (validation,) = [line for line in lines if line["split"] == "validation"]
    losses = {name: {kind for kind in ("language", "action", "label", "mae") if math.isfinite(of[kind] or math.nan)}
              for name, of in validation["domains"].items()}
    acting = {"language", "action", "mae"}
    assert losses == {"babyai": acting, "metaworld": acting, "vizdoom": acting, "clips": {"language", "mae"},
                      "clip_classes": {"label", "mae"}}
    assert len(list((tmp_path / "rollouts").iterdir())) == 3

    tuned = [sys.executable, "-m", "agent_jax.train", "--config", f"{root / 'configs' / 'finetune' / 'mini.py'}:smoke",
             "--workdir", str(tmp_path / "tuned"), f"--config.data.directory={tmp_path / 'data'}",
             f"--config.init.checkpoint={tmp_path}"]
    done = subprocess.run(tuned, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    assert "babyai 9 carried" in done.stdout
    assert list(json.loads((tmp_path / "tuned" / "report.json").read_text())["closed_loop"]) == ["PickupLoc"]
