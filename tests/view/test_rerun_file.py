"""Recordings for the Rerun viewer, read back by its SDK."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import store_directory

from agent_jax.evaluate.outcomes import RolloutRecording
from agent_jax.evaluate.rerun_file import RerunFile
from agent_jax.view.__main__ import main


def rows_of(path: Path) -> dict[str, int]:
    """Rows by entity of a recording."""
    chunk: Any = pytest.importorskip("rerun.chunk")
    found: dict[str, int] = {}
    for one in chunk.RrdReader(path).stream().to_chunks():
        found[one.entity_path] = found.get(one.entity_path, 0) + one.num_rows
    return found


def test_a_rollout_is_read_back_by_the_sdk(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs the extra rerun")
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    with RerunFile(tmp_path / "new" / "a.rrd") as file:
        file.log_rollout(RolloutRecording("GoTo", "greedy", 7, ("go",) * 4, frames, ("left", "forward", "forward"),
                                          success=True, probabilities=(0.5, 0.25, 1.0)))
    found = rows_of(tmp_path / "new" / "a.rrd")
    place = "/GoTo/greedy/seed\\ 7/"
    assert {name.removeprefix(place): count for name, count in found.items() if name.startswith(place)} == {
        "image": 4, "instruction": 4, "action": 3, "probability": 3, "outcome": 1}


def test_a_row_of_a_data_set_is_read_back_by_the_sdk(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs the extra rerun")
    assert main(["row", str(store_directory(base)), "--rerun", str(tmp_path / "row.rrd"),
                 "--out", str(tmp_path / "row.html")]) == 0
    names = {name.split("/", 3)[-1] for name in rows_of(tmp_path / "row.rrd")}
    assert {"images/rgb", "action/action", "instruction"} <= names


def test_a_missing_sdk_and_a_wrong_name_are_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    command = ["row", str(store_directory(base)), "--out", str(tmp_path / "row.html"), "--rerun"]
    assert main([*command, str(tmp_path / "row.rrd")]) == 2
    assert "row.rrd needs rerun-sdk, which is not installed: pip install" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "row.mp4")])
    assert "row.mp4: expected a name that ends in .rrd" in capsys.readouterr().err
