"""The first script of examples/ runs as a user runs it; the notebook, which is the scripts, runs as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("[1-4]_*.py"))


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, where the user stands; the package is found as if it were installed."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("AGENT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(number: int) -> str:
    """Run a script; returns what it prints."""
    [script] = EXAMPLES.glob(f"{number}_*.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_loads_and_acts(user: Path) -> None:
    said = run(1)
    [successes] = re.findall(r"agent +(\d+)% of 20 episodes", said)
    assert int(successes) >= 80
    assert "go to the yellow ball: reached by right" in said
    assert sorted(path.name for path in (user / "runs/load_and_act").iterdir()) == ["episode.gif", "episode.png"]


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_the_notebook_is_the_scripts() -> None:
    notebook: Any = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    text = "".join(script.read_text(encoding="utf-8") for script in SCRIPTS)
    assert cells(notebook) == cells(jupytext.reads(text, fmt="py:percent")), \
        "examples/tour.ipynb is not the scripts; make it again by the command of examples/README.md"
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs of examples/tour.ipynb"


@pytest.mark.slow
def test_the_notebook_trains_looks_inside_and_acts_with_torch(user: Path, capfd: pytest.CaptureFixture[str]) -> None:
    notebook: Any = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(user)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in outputs) + capfd.readouterr().out  # of commands that it runs
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    runs = {path.name: {file.name for file in path.iterdir()} for path in (user / "runs").iterdir()}
    # 2: train on robot data
    assert "nothing is wrong" in said
    accuracies = [int(percent) for percent in re.findall(r"action loss \S+, accuracy (\d+)%", said)]
    assert len(accuracies) == 5
    assert accuracies[-1] > accuracies[0] + 5
    [closed] = re.findall(r"(\d+) of 20 hands closed within 2 cm of the ball", said)
    assert int(closed) >= 8
    assert (user / "runs/train_on_robot_data/run/report.html").is_file()
    # 3: look inside
    assert "<image 3: 50 slots> [STARTACTION]" in said
    [correlation] = re.findall(r"rank correlation of attention and occlusion: (\S+)", said)
    assert float(correlation) > 0.3
    assert runs["look_inside"] > {"attention.png", "reconstruction.png", "row.html"}
    # 4: export and act with torch
    [(equal, all_of_them)] = re.findall(r"reached; (\d+) of (\d+) actions are equal", said)
    assert equal == all_of_them
    assert "torch_agent.py" in {file.name for file in (user / "runs/export_and_act_with_torch/exported").iterdir()}
