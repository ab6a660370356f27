"""A run with adapters: what its checkpoints hold, what acts, resuming, and its adapters as one file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open
from small_runs import Trained, differing, open_run, small_config, store_directory, straight_run, trained

from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.checkpoint import read_meta
from agent_jax.checkpoints.exported.folder import read_params
from agent_jax.checkpoints.restore import load_to_act
from agent_jax.config import LoraConfig
from agent_jax.convert.__main__ import main as convert
from agent_jax.convert.pytorch import torch_agent
from agent_jax.models.lora import LORA
from agent_jax.policy import Policy

CHANGES = {"lora.patterns": ("(vision|language)/blocks/attention/.*", "language/token_embedding"), "lora.rank": 4,
           "lora.scale": 2.0, "optimizer.freeze": ("(?!lora/|connector/).*",), "train.steps": 4, "checkpoint.every": 2,
           "train.validate_every": 0, "optimizer.learning_rate": 0.1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return straight_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def tuned(base: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config = small_config(store_directory(tmp_path_factory.getbasetemp()), **CHANGES,
                          **{"init.checkpoint": str(base.workdir)})
    return trained(config, tmp_path_factory.mktemp("lora") / "run")


def assert_close(one: Any, other: Any) -> None:
    """Merged by two programs: the last bit may differ."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), one, other)


def test_only_adapters_and_what_is_not_frozen_change(base: Trained, tuned: Trained):
    before = read_meta(base.workdir / "checkpoints")["fingerprint"]
    after = read_meta(tuned.workdir / "checkpoints")["fingerprint"]
    changed = {path for path in before if path.startswith("params/") and before[path] != after[path]}
    assert changed == {"params/connector/kernel", "params/connector/bias"}
    adapters = [path for path in after if path.startswith(f"params/{LORA}/")]
    assert len(adapters) == 10  # A and B of two kernels in each of two stacks, and of the token table
    early = read_meta(tuned.workdir / "checkpoints", 2)["fingerprint"]
    assert all(early[path] != after[path] for path in adapters)


def test_acting_and_a_new_run_take_the_merged_parameters(tuned: Trained):
    expected = tuned.run.acting_params(tuned.state)
    assert LORA not in expected
    acting = load_to_act(tuned.workdir).params
    assert_close(acting, jax.device_get(expected))
    last = {name: part for name, part in tuned.state.params.items() if name != LORA}
    raw = load_to_act(tuned.workdir, averaged=False).params
    assert {path.split("'")[-2] for path in differing(raw, last)} == {"kernel", "token_embedding"}


@pytest.mark.slow
def test_a_run_with_adapters_resumes_to_the_bit(tuned: Trained, tmp_path: Path):
    workdir = Path(shutil.copytree(tuned.workdir, tmp_path / "resumed"))
    shutil.rmtree(workdir / "checkpoints" / "4")
    run = trained(tuned.config, workdir)
    assert run.run.first.source.startswith("resumed from step 2 ")
    assert list(differing(run.state, tuned.state)) == []


def test_other_adapters_are_another_run(tuned: Trained):
    other = dataclasses.replace(tuned.config, lora=dataclasses.replace(tuned.config.lora, rank=2))
    with pytest.raises(ValueError, match=r"config.lora.rank: 4 there, 2 here"):
        open_run(other, tuned.workdir)


def test_a_file_of_adapters_and_the_base_make_the_run_again(base: Trained, tuned: Trained, tmp_path: Path,
                                                            capsys: pytest.CaptureFixture[str]):
    file, out = tmp_path / "adapters.safetensors", tmp_path / "merged"
    assert convert(["adapters", str(tuned.workdir), str(file)]) == 0
    with safe_open(file, framework="numpy") as content:
        assert {path.split("/")[0] for path in content.keys()} == {LORA, "connector"}  # noqa: SIM118 - it is no mapping
    assert convert(["with-adapters", str(base.workdir), str(file), str(out)]) == 0
    made = load_to_act(out)
    assert made.config.lora == LoraConfig()
    assert made.meta["domains"].keys() == {"tiles"}
    assert_close(made.params, load_to_act(tuned.workdir).params)
    shutil.rmtree(out)
    assert convert(["with-adapters", str(base.workdir / "checkpoints" / "10"), str(file), str(out)]) == 2
    assert "differs from it in" in capsys.readouterr().err
    assert convert(["adapters", str(base.workdir), str(tmp_path / "none")]) == 2
    assert "has no adapters: its config.lora.patterns is empty" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    (tmp_path / "text").write_text("no tensors")
    assert convert(["with-adapters", str(base.workdir), str(tmp_path / "text"), str(out)]) == 2
    assert "text: not a file of `convert adapters`" in capsys.readouterr().err
    assert checkpoint.steps(base.workdir / "checkpoints") == [10, 20]


def test_an_exported_run_acts_as_the_run_itself(tuned: Trained, tmp_path: Path):
    assert convert(["to-pytorch", str(tuned.workdir), str(tmp_path / "out")]) == 0  # compares logits and choices
    loaded = load_to_act(tuned.workdir)
    merged, size = loaded.params, loaded.config.model.language.vocabulary_size
    exported = read_params(tmp_path / "out", loaded.config.model)
    for params in (merged, exported):  # without the rows that pad the token table
        params["language"]["token_embedding"] = params["language"]["token_embedding"][:size]
    assert list(differing(exported, merged)) == []
    ours, theirs = Policy.load(tuned.workdir), torch_agent.Policy(tmp_path / "out")
    random = np.random.default_rng(0)
    for _ in range(3):  # beyond the window of 2
        images = list(random.integers(0, 256, (2, 16, 16, 3), np.uint8))
        instructions = ["go to a box", "open a door"]
        assert str(ours.act(images, instructions, [0, 1])) == str(theirs.act(images, instructions, [0, 1]))


def test_a_run_grown_from_one_with_adapters_carries_the_merged_kernels(tuned: Trained, tmp_path: Path):
    vocabulary = dataclasses.replace(tuned.config.vocabulary, blocks=("iafm", "babyai"))
    config = dataclasses.replace(tuned.config, vocabulary=vocabulary, lora=LoraConfig(("language/blocks/.*",), rank=2),
                                 optimizer=dataclasses.replace(tuned.config.optimizer, freeze=("(?!lora/).*",)),
                                 init=dataclasses.replace(tuned.config.init, checkpoint=str(tuned.workdir)))
    first = open_run(config, tmp_path / "run").first
    assert "(init.checkpoint)" in first.source
    source = jax.device_get(load_to_act(tuned.workdir, averaged=False).params)
    grown = jax.device_get(first.state.params)
    for part in ("vision", "language"):
        kernel, unmerged = (params[part]["blocks"]["attention"]["qkv"]["kernel"]
                            for params in (source, tuned.state.params))
        assert np.abs(kernel - unmerged).max() > 1e-3
        assert_close(grown[part]["blocks"], source[part]["blocks"])
    assert_close(grown["connector"], source["connector"])
    texts, blocks = slice(0, 260), grown[LORA]["language"]["blocks"]
    assert_close(grown["language"]["token_embedding"][texts], source["language"]["token_embedding"][texts])
    assert grown[LORA].keys() == {"language"}
    assert blocks["attention"]["qkv"]["kernel"]["a"].shape[-1] == 2
    assert not np.any(blocks["attention"]["qkv"]["kernel"]["b"])  # fresh adapters change nothing


def test_the_table_of_growing_counts_no_adapters(tuned: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "next.py"
    saved = json.dumps(dataclasses.asdict(tuned.config))
    file.write_text("import json\nfrom agent_jax.config import from_config_dict, to_config_dict\n"
                    f"def get_config():\n    return to_config_dict(from_config_dict(json.loads({saved!r})))\n")
    assert convert(["grow", str(tuned.workdir), "--config", str(file), "--json", str(tmp_path / "table.json")]) == 0
    total = json.loads((tmp_path / "table.json").read_text())["total"]
    assert (total["fresh"], total["dropped"]) == (0, 0)
