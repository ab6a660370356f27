"""An agent is pushed to a hub and loaded from it by its name; it acts as its checkpoint does, to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_agents import exported, images
from fake_hub import TOKEN, fake_hub

from agent_jax.checkpoints.restore import load_to_act
from agent_jax.config import Config, DataConfig, DomainConfig
from agent_jax.convert.__main__ import main
from agent_jax.convert.card_of_run import run_lines
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.policy import Policy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, Any]]]:
    with fake_hub(monkeypatch, tmp_path / "cache") as repositories:
        yield repositories


def test_a_pushed_agent_acts_as_its_checkpoint_to_the_bit(base: Path, hub, monkeypatch, capsys):
    made, folder, _ = exported(base, "images")
    assert main(["push-to-hub", str(folder), "lab/agent"]) == 2
    assert "lab/agent: found no token" in capsys.readouterr().err
    assert not hub
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (folder / "optimizer.bin").write_bytes(b"a file of the user")
    try:
        assert main(["push-to-hub", str(folder), "lab/agent"]) == 0
    finally:
        (folder / "optimizer.bin").unlink()
    assert "/lab/agent/commit/" in capsys.readouterr().out
    assert hub["lab/agent"]["private"]
    assert {"README.md", "agent.json", "language/model.safetensors"} < hub["lab/agent"]["files"].keys()
    assert "optimizer.bin" not in hub["lab/agent"]["files"]

    before, after = Policy.load(made.path, domain="table"), Policy.from_pretrained("lab/agent", domain="table")
    assert after.taken is not None
    assert after.taken.step == 7
    assert before.domain.state is not None
    state = {key: np.zeros(shape, dtype) for key, (shape, dtype) in before.domain.state.spec.fields.items()}
    prepared = [before.prepare(images(made, 1)[0], "go", state)]
    [ours], [theirs] = before.step(prepared, [0]), after.step(prepared, [0])
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    [logits], [other] = (policy.follow(prepared, [1], [before.last_ids[0]]) for policy in (before, after))
    assert logits.dtype == np.float32
    assert logits.tobytes() == other.tobytes()

    assert main(["push-to-hub", str(folder), "lab/agent", "--public"]) == 2
    assert "lab/agent: the repository exists and is private; leave out --public" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no such revision"):
        Policy.from_pretrained("lab/agent", revision="v9")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match="lab/other.*no such repository.*`hf auth login`"):
        Policy.from_pretrained("lab/other")


def test_an_exported_folder_is_evaluated_like_a_checkpoint(base: Path):
    made, folder, _ = exported(base, "images")
    trained = TrainedRun.load(folder)
    assert {name: domain.to_meta() for name, domain in trained.domains.items()} == {
        name: domain.to_meta() for name, domain in made.domains.items()}
    with pytest.raises(ValueError, match="step=3: .*exported at step 7"):
        load_to_act(folder, 3)


def test_what_is_no_agent_is_refused_by_name(base: Path, hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    folder = Path(shutil.copytree(exported(base, "images")[1], tmp_path / "folder"))
    for name in ("no-slash", "a/b/c", str(tmp_path / "none")):
        with pytest.raises(FileNotFoundError, match=f"{name}: not found; expected a workdir.*ORG/NAME"):
            Policy.from_pretrained(name)
    with pytest.raises(ValueError, match="revision='v1': .*folder is a path"):
        Policy.from_pretrained(folder, revision="v1")
    assert main(["push-to-hub", str(folder), "no-slash"]) == 2
    assert "no-slash: expected ORG/NAME" in capsys.readouterr().err
    hub["lab/opt"] = {"private": False, "files": {"config.json": b"{}"}}
    with pytest.raises(FileNotFoundError, match=r"lab/opt.*it has no agent\.json"):
        Policy.from_pretrained("lab/opt")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match="lab/agent: .*not available from the hub.*hf download lab/agent"):
        Policy.from_pretrained("lab/agent")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push-to-hub", str(folder), "lab/agent"]) == 2
    assert "lab/agent: cannot push" in capsys.readouterr().err
    (folder / "agent.safetensors").write_bytes((folder / "agent.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"agent\.safetensors: damaged"):
        Policy.from_pretrained(folder)


def test_the_card_has_the_figures_of_the_run_with_their_intervals(tmp_path: Path):
    config = Config(data=DataConfig(domains={"arm": DomainConfig(path="/data/my|arm/1.0.0")}))
    assert "Not measured: this run acted in no simulator." in run_lines(tmp_path / "checkpoints", 400, config)
    success = {"GoTo": {"greedy": {"success": 0.5, "episodes": 100, "ci95": [0.404, 0.596]}}}
    records = [{"step": 200, "split": "validation", "losses": {"action": 0.5, "mae": None}},
               {"step": 300, "split": "closed_loop", "success": success}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n{"step": 4')
    scores = {"classes": {"accuracy": 0.9}, "intervals": {"class_accuracy": [0.8, 0.95]}, "recordings": 50}
    (tmp_path / "report.json").write_text(json.dumps({
        "steps": 400, "evaluation": {"ward": scores}, "parameters": 1234, "start": "fresh parameters, seed 0",
        "command": "/x/agent_jax/train/__main__.py --config a.py", "machine": {"jax": "0.10.2"},
        "data": ["a mixture"]}))
    text = "\n".join(run_lines(tmp_path / "checkpoints", 400, config))
    for expected in ("| arm | my\\|arm/1.0.0 | train |",
                     "## Success (of step 300; the parameters here are of step 400)",
                     "| GoTo | greedy | 50.0% | 40.4% to 59.6% | 100 |", "| domain | action |", "| all | 0.5 |",
                     "| ward | class_accuracy | 0.9 | 0.8 to 0.95 | 50 |", "jax 0.10.2", "a mixture",
                     "python -m agent_jax.train --config a.py", "1,234 parameters, 400 steps, from fresh parameters"):
        assert expected in text
