"""Pages about rollouts and reconstructions."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from small_runs import straight_run

from agent_jax.evaluate.outcomes import RolloutRecording
from agent_jax.evaluate.rollout_video import write_recording
from agent_jax.evaluate.statistics import success_summary
from agent_jax.view.__main__ import main
from agent_jax.view.episodes import write_rollout_page


def test_a_page_of_rollouts_shows_failures_first_and_each_action_with_its_probability(tmp_path: Path) -> None:
    for seed, length, success in ((1, 2, True), (2, 4, False), (3, 1, False)):
        write_recording(tmp_path / "videos", RolloutRecording(
            "GoTo", "greedy", seed, ("go <b>",) * (length + 1), np.zeros((length + 1, 8, 8, 3), np.uint8),
            ("left",) * length, success, (0.25,) * length), with_seed=True)
    figures = {**success_summary(np.asarray([True, False, False])), "mean_steps": 2.0, "per_episode": [
        {"seed": 3, "success": False, "steps": 1, "instruction": "go <b>", "actions": [{"action": 0}],
         "probabilities": [0.25]}]}
    write_rollout_page(tmp_path / "page.html", {"environment": "babyai", "seed": 1, "tasks": {"GoTo": {
        "greedy": figures}}}, tmp_path / "videos")
    page = (tmp_path / "page.html").read_text()
    assert re.findall(r"<b>GoTo, greedy, seed (\d)</b>", page) == ["3", "2", "1"]
    assert page.count("data:image/gif") == 3
    assert "go &lt;b&gt;" in page
    assert "33.3%" in page
    assert page.count("25%</td>") == 8  # 7 steps of videos, and one of the report


def test_reconstructions_of_a_checkpoint_are_pictures_of_every_domain(
        base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, page = str(straight_run(base).workdir), tmp_path / "page.html"
    assert main(["reconstruction", run, "--images", "2", "--out", str(page)]) == 0
    assert page.read_text().count("data:image/png") == 1
    assert "<h2>tiles</h2>" in page.read_text()
    assert main(["reconstruction", run, "--domain", "none", "--out", str(page)]) == 2
    assert "--domain=none: expected one of tiles" in capsys.readouterr().err
