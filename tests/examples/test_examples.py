"""The numbered scripts of examples/ run as a user runs them, and the notebook is the same."""

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


@pytest.mark.slow
def test_it_trains_on_robot_data(user: Path) -> None:
    said = run(2)
    assert "nothing is wrong" in said
    accuracies = [int(percent) for percent in re.findall(r"action loss \S+, accuracy (\d+)%", said)]
    assert len(accuracies) == 5
    assert accuracies[-1] > accuracies[0] + 5
    [closed] = re.findall(r"(\d+) of 20 hands closed within 2 cm of the ball", said)
    assert int(closed) >= 8
    assert (user / "runs/train_on_robot_data/run/report.html").is_file()


@pytest.mark.slow
def test_it_looks_inside(user: Path) -> None:
    said = run(3)
    assert "</s> g o   t o" in said
    assert "<image 3: 50 slots> [STARTACTION]" in said
    [correlation] = re.findall(r"rank correlation of attention and occlusion: (\S+)", said)
    assert float(correlation) > 0.3
    made = {"attention.png", "reconstruction.png", "row.html"}
    assert made < {path.name for path in (user / "runs/look_inside").iterdir()}


@pytest.mark.slow
def test_it_acts_with_torch_as_with_jax(user: Path) -> None:
    said = run(4)
    [(equal, all_of_them)] = re.findall(r"reached; (\d+) of (\d+) actions are equal", said)
    assert equal == all_of_them
    assert (user / "runs/export_and_act_with_torch/exported/torch_agent.py").is_file()


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_the_notebook_is_the_scripts() -> None:
    notebook: Any = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    text = "".join(script.read_text(encoding="utf-8") for script in SCRIPTS)
    assert cells(notebook) == cells(jupytext.reads(text, fmt="py:percent")), \
        "examples/tour.ipynb is not the scripts; make it again by the command of examples/README.md"
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs of examples/tour.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(user: Path) -> None:
    notebook: Any = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(user)}}).execute()
    images = [output for cell in notebook.cells for output in cell.get("outputs", ())
              if "image/png" in output.get("data", {})]
    assert len(images) == 5
    assert len(list((user / "runs").iterdir())) == 4
