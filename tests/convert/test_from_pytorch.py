"""An exported folder becomes a checkpoint again, bitwise, or is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from exported_agents import KINDS, exported, images
from safetensors.numpy import load_file, save_file
from small_runs import listing

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints.checkpoint import read_meta, restore_parameters
from agent_jax.checkpoints.fingerprint import flat
from agent_jax.config import InitConfig, from_config_dict
from agent_jax.convert.__main__ import main
from agent_jax.convert.from_pytorch import import_folder
from agent_jax.convert.grow.source import Source, with_source
from agent_jax.models.agent import abstract_params
from agent_jax.policy import Policy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported(base, "images")[1], tmp_path / "folder"))


@pytest.mark.parametrize("kind", [
    kind if kind == "images" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_every_parameter_is_restored_bitwise(base: Path, tmp_path: Path, kind: str, capsys):
    made, exported_folder, _ = exported(base, kind)
    assert main(["from-pytorch", str(exported_folder), str(tmp_path / "back")]) == 0
    assert f"-> {tmp_path / 'back'}/7" in capsys.readouterr().out
    meta = read_meta(tmp_path / "back")
    assert from_config_dict(meta["config"]) == made.config
    assert not Vocabulary.from_json(meta["vocabulary"]).difference(made.vocabulary)
    model = made.config.model
    params, _ = restore_parameters(tmp_path / "back", abstract_params(model))
    K = model.language.vocabulary_size
    for path, leaf in flat(made.average).items():
        found, expected = np.asarray(flat(params)[path]), np.asarray(leaf)
        if path == "language/token_embedding":
            found, expected = found[:K], expected[:K]
        assert found.tobytes() == expected.tobytes(), path


def test_the_imported_checkpoint_acts_as_before(base: Path, tmp_path: Path):
    made, exported_folder, _ = exported(base, "clips")
    import_folder(exported_folder, tmp_path / "back")
    before, after = Policy.load(made.path), Policy.load(tmp_path / "back")
    for step in range(3):
        seen = images(made, 1, seed=step)
        [one], [other] = before.act(seen, ["go"], [0]), after.act(seen, ["go"], [0])
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_parameters_tuned_in_pytorch_are_imported(base: Path, tmp_path: Path):
    import torch

    from agent_jax.convert.pytorch.torch_agent import Agent

    made, exported_folder, _ = exported(base, "images")
    agent = Agent.load(exported_folder)
    with torch.no_grad():
        agent.mae.mask_token.fill_(0.5)
        agent.language.layers[1].self_attn.k_proj.weight.mul_(2.0)
    agent.save(tmp_path / "tuned", exported_folder)
    import_folder(tmp_path / "tuned", tmp_path / "back")
    params, _ = restore_parameters(tmp_path / "back", abstract_params(made.config.model))
    np.testing.assert_array_equal(params["mae"]["mask_token"], 0.5)
    found, expected = (tree["language"]["blocks"]["attention"]["qkv"]["kernel"] for tree in (params, made.average))
    np.testing.assert_array_equal(found[1, :, 1], 2.0 * expected[1, :, 1])
    np.testing.assert_array_equal(found[1, :, 0], expected[1, :, 0])


def test_a_run_starts_from_an_exported_folder_or_its_name_on_the_hub(base: Path, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch):
    made, exported_folder, _ = exported(base, "images")
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--lab--agent"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    shutil.copytree(exported_folder, model / "snapshots" / commit)

    def use(source: Source) -> tuple[str, dict[str, Any]]:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return source.name, flat(source.read({path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
                                              for path, leaf in source.agent.leaves.items()}))

    K = made.config.model.language.vocabulary_size
    for place in (str(exported_folder), "lab/agent"):
        (name, params), _ = with_source(InitConfig(checkpoint=place), use)
        assert name.endswith(", exported at step 7")
        for path, leaf in flat(made.average).items():
            rows = slice(K) if path == "language/token_embedding" else slice(None)
            np.testing.assert_array_equal(params[path][rows], leaf[rows], err_msg=path)


def change(folder: Path, file: str, **changes: Any) -> None:
    tensors = load_file(folder / file)
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, folder / file)


NORM = "model.decoder.final_layer_norm.weight"
DAMAGE = {
    "missing": (lambda folder: change(folder, "language/model.safetensors", **{NORM: None}),
                rf"language/model.safetensors: missing: {NORM} \[24\]"),
    "unknown": (lambda folder: change(folder, "agent.safetensors", extra=np.zeros(3, np.float32)),
                r"agent.safetensors: unknown: extra \[3\]"),
    "shape": (lambda folder: change(folder, "language/model.safetensors", **{NORM: np.zeros(25, np.float32)}),
              rf"{NORM}: found \[25\], expected \[24\]"),
    "type": (lambda folder: change(folder, "language/model.safetensors", **{NORM: np.zeros(24, np.int32)}),
             rf"{NORM}: found I32, expected one of F32"),
    "nan": (lambda folder: change(folder, "language/model.safetensors", **{NORM: np.full(24, np.nan, np.float32)}),
            rf"language/model.safetensors: {NORM} .*24 of the 24"),
    "truncated": (lambda folder: (folder / "agent.safetensors").write_bytes(
        (folder / "agent.safetensors").read_bytes()[:-100]), r"agent.safetensors: damaged"),
    "no file": (lambda folder: (folder / "vision/model.safetensors").unlink(), r"vision/model.safetensors"),
    "not json": (lambda folder: (folder / "agent.json").write_text("{"), r"agent.json: is not JSON"),
    "format": (lambda folder: (folder / "agent.json").write_text('{"format": 9}'), r"agent.json: format 9, expected 1"),
}


def redescribe(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "agent.json").read_text())
    (folder / "agent.json").write_text(json.dumps({**content, **changes}))


DAMAGE |= {
    "no config": (lambda folder: redescribe(folder, config=None), "agent.json: config: found None, expected an object"),
    "no domains": (lambda folder: redescribe(folder, domains=[]), r"agent.json: domains: found \[\], expected"),
    "no step": (lambda folder: redescribe(folder, source={}), "agent.json: source.step: found None, expected a whole"),
    "a step before the first": (lambda folder: redescribe(folder, source={"step": -1}), "source.step: found -1"),
    "a domain without fields": (lambda folder: redescribe(folder, domains={"x": {}}), "domain meta: missing"),
    "a domain of another type": (lambda folder: redescribe(folder, domains={"x": 3}), "agent.json: domains.x: not as"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused_and_nothing_is_written(folder: Path, name: str, capsys):
    damage, message = DAMAGE[name]
    damage(folder)
    before = listing(folder.parent)
    assert main(["from-pytorch", str(folder), str(folder.parent / "back")]) == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed), printed
    assert listing(folder.parent) == before


def test_a_vocabulary_of_another_export_is_refused(folder: Path):
    path = folder / "vocabulary.json"
    content = json.loads(path.read_text())
    content["blocks"] = content["blocks"][:1]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="vocabulary_size=1582, but vocabulary.json has 1573 ids"):
        import_folder(folder, folder.parent / "back")


def test_nothing_is_overwritten(folder: Path):
    before = listing(folder.parent)
    with pytest.raises(FileExistsError, match="exists already"):
        import_folder(folder, folder)
    assert listing(folder.parent) == before


