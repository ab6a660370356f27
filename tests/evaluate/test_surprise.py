"""`evaluate surprise`: AUROC, the changes, and the command on a tiny agent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from recorded_babyai import recorded_store, tiny_agent

from agent_jax.evaluate.__main__ import main
from agent_jax.evaluate.surprise import CHANGES, auroc

pytest.importorskip("minigrid")


def test_auroc_counts_the_pairs_in_which_the_changed_value_is_larger() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, 20).astype(float), rng.integers(2, 8, 30).astype(float)
    larger, ties = (other[:, None] > one).mean(), (other[:, None] == one).mean()
    assert auroc(one, other) == pytest.approx(larger + ties / 2)
    assert auroc(np.stack([one, one + 10]), np.stack([other, other])).tolist() == pytest.approx([larger + ties / 2, 0])


def test_every_change_keeps_shape_and_type_and_changes_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    for name, (_, change) in CHANGES.items():
        changed = change(image)
        assert (changed.shape, changed.dtype) == (image.shape, np.uint8), name
        assert (changed != image).any(), name


def test_the_command_compares_held_out_images_with_changed_ones(tmp_path_factory: pytest.TempPathFactory,
                                                               tmp_path: Path,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path_factory.getbasetemp() / "evaluate_main"
    agent, store = str(tiny_agent(base / "agent").path), str(recorded_store(base / "store").directory)
    command = ["surprise", "--checkpoint", agent, "--data", f"babyai={store}"]
    assert main([*command, "--other", store, "--masks", "2", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["domain"], found["split"], found["images"], found["masks"]) == ("babyai", "test", 4, 2)
    assert set(found["changes"]) == {*CHANGES, store}
    for one in found["changes"].values():
        low, high = one["ci95"]
        assert 0 <= low <= one["auroc"] <= high <= 1
    assert found["surprise_ms"] > 0
    assert found["action_ms"] > 0
    assert "AUROC" in capsys.readouterr().out
    assert main([*command, "--images", "1"]) == 2
    assert "--images 1" in capsys.readouterr().err
