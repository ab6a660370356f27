"""StableHLO of a checkpoint computes what the network does, for every platform."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exported_agents import checkpoint_of
from jax import export

from agent_jax.convert.__main__ import main


def test_the_graphs_are_written_for_every_platform(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    made = checkpoint_of(tmp_path_factory.getbasetemp(), "images")
    assert main(["to-stablehlo", str(made.path), str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out/stablehlo.json").read_text())
    assert max(report["largest_differences"].values()) <= 1e-4
    for name in ("encoder", "prefill", "decode"):
        read = export.deserialize(bytearray((tmp_path / f"out/{name}.stablehlo").read_bytes()))
        assert read.platforms == ("cpu", "cuda", "tpu")
    assert main(["to-stablehlo", str(made.path), str(tmp_path / "out")]) == 2  # it exists
