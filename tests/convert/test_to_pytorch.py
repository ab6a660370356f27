"""A checkpoint becomes a folder that PyTorch and transformers load, after a parity check."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_agents import KINDS, exported
from safetensors.numpy import load_file
from small_runs import listing
from tiny_checkpoints import make_checkpoint

from agent_jax.actions.text_tokenizer import ByteTokenizer, load_tokenizer
from agent_jax.checkpoints.checkpoint import Checkpoints, read_meta
from agent_jax.checkpoints.fingerprint import flat
from agent_jax.convert.__main__ import main
from agent_jax.convert.pytorch import mae
from agent_jax.convert.pytorch.folder import tokenizer_json
from agent_jax.convert.pytorch.language import Cache
from agent_jax.convert.pytorch.layers import ACTIVATIONS
from agent_jax.convert.to_pytorch import export

COMPARED = {"vision", "language", "logits", "reconstructed patches", "losses", "gradients", "bf16", "cached logits",
            "transformers vision", "transformers language"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_compared_and_within_its_tolerance(base: Path, kind: str):
    made, folder, parity = exported(base, kind)
    assert parity.groups().keys() == (COMPARED if kind != "texts" else COMPARED | {"classes"})
    assert (parity.actions if kind != "texts" else parity.texts).compared >= 8
    written = json.loads((folder / "parity.json").read_text())
    assert written["passed"]
    assert {row["name"] for row in written["comparisons"]} == {row.name for row in parity.comparisons}
    assert sum(row.name.startswith("gradients") for row in parity.comparisons) > len(flat(made.raw))


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_both_models_and_the_tokenizer(base: Path, kind: str):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPVisionModel, OPTForCausalLM

    made, folder, _ = exported(base, kind)
    for model, part in ((CLIPVisionModel, "vision"), (OPTForCausalLM, "language")):
        _, report = model.from_pretrained(folder / part, output_loading_info=True)
        assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert json.loads((folder / "language/config.json").read_text())["vocab_size"] == made.vocabulary.size
    tokenizer = AutoTokenizer.from_pretrained(folder / "language")
    text = "Schiebe den roten Würfel! \n 100 %"
    assert tokenizer(text, add_special_tokens=False).input_ids == made.vocabulary.text.encode(text)
    processor = CLIPImageProcessor.from_pretrained(folder / "vision")
    assert dict(processor.size) == {"height": 24, "width": 24}
    assert not processor.do_center_crop


def test_opts_own_tokenizer_is_exported_whole(opt_tokenizer: Path):
    from tokenizers import Tokenizer

    ours = load_tokenizer(str(opt_tokenizer))
    theirs = Tokenizer.from_str(tokenizer_json(ours))
    for text in ("A photo of a cat", " naïve\n\n  ünïcödé 🤖 </s> 3.14", ""):
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text)


def test_every_byte_has_its_id():
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_str(tokenizer_json(ByteTokenizer()))
    text = "".join(map(chr, range(1, 256))) + "日本語 🤖\u0000"
    assert theirs.encode(text, add_special_tokens=False).ids == ByteTokenizer().encode(text)
    assert theirs.decode(ByteTokenizer().encode(text)) == text


def test_the_averaged_parameters_are_exported_by_default_and_the_last_ones_on_request(base: Path, tmp_path: Path):
    made, averaged, _ = exported(base, "images")
    export(made.path, tmp_path / "raw", weights="raw")
    name = "vision_model.pre_layrnorm.weight"
    for folder, params in ((averaged, made.average), (tmp_path / "raw", made.raw)):
        np.testing.assert_array_equal(load_file(folder / "vision/model.safetensors")[name],
                                      params["vision"]["pre_norm"]["scale"])
    assert json.loads((averaged / "agent.json").read_text())["source"]["weights"] == "averaged"
    assert json.loads((tmp_path / "raw/agent.json").read_text())["source"]["weights"] == "raw"


@pytest.mark.slow
def test_in_bfloat16_the_rounded_parameters_are_compared_and_take_half_the_space(base: Path, tmp_path: Path):
    made, folder, _ = exported(base, "clips")
    assert main(["to-pytorch", str(made.path), str(tmp_path / "half"), "--dtype", "bfloat16",
                 "--json", str(tmp_path / "parity.json")]) == 0
    assert json.loads((tmp_path / "parity.json").read_text())["passed"]
    for file in ("vision/model.safetensors", "agent.safetensors"):
        exact, half = load_file(folder / file), load_file(tmp_path / "half" / file)
        assert {tensor.dtype.name for tensor in half.values()} == {"bfloat16"}
        for name, tensor in exact.items():
            np.testing.assert_allclose(half[name].astype(np.float32), tensor, rtol=2**-8)


@pytest.mark.slow
def test_a_checkpoint_without_domains_is_exported_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = make_checkpoint(tmp_path / "bare", ())
    assert main(["to-pytorch", str(made.path), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "gradients" in printed
    assert re.search(r"actions +0 compared", printed)
    assert json.loads((tmp_path / "out/agent.json").read_text())["acting"] == {}


def _tanh_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A common mistake, which differs in the third digit."""
    monkeypatch.setitem(ACTIVATIONS, "quick_gelu", lambda x: torch.nn.functional.gelu(x, approximate="tanh"))


def _rows_before_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    right = mae.sincos_positions

    def wrong(grid: int, width: int) -> torch.Tensor:
        return torch.cat([right(grid, width)[:, width // 2 :], right(grid, width)[:, : width // 2]], dim=1)

    monkeypatch.setattr(mae, "sincos_positions", wrong)


def _a_cache_that_attends_to_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Cache.append
    monkeypatch.setattr(Cache, "append", lambda self, real_BC: right(self, torch.ones_like(real_BC)))


@pytest.mark.parametrize(("mistake", "kind"), [(_tanh_gelu, "vision: after block 1"),
                                            (_rows_before_columns, "reconstructed patches"),
                                            (_a_cache_that_attends_to_padding, "cached logits")])
def test_a_pytorch_agent_with_a_mistake_is_not_written(
        base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake, kind):
    made, *_ = exported(base, "images")
    mistake(monkeypatch)
    assert main(["to-pytorch", str(made.path), str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert "out was not written" in printed
    assert f"  {kind}" in printed
    assert not listing(tmp_path)


@pytest.mark.parametrize("kind", ["actions", "texts"])
def test_different_choices_fail_the_export_even_within_the_tolerance_of_logits(base: Path, kind: str):
    _, _, parity = exported(base, "images")
    broken = dataclasses.replace(parity, **{kind: dataclasses.replace(getattr(parity, kind), different=1)})
    assert not broken.passed
    assert f"{kind}: 1 of" in broken.failures()


def test_a_checkpoint_with_nan_is_refused(tmp_path: Path):
    made = make_checkpoint(tmp_path / "made")
    made.raw["mae"]["mask_token"] = np.full_like(made.raw["mae"]["mask_token"], np.nan)
    meta = {name: value for name, value in read_meta(made.path).items()
            if name not in ("format_version", "step", "metrics", "fingerprint", "checksum")}
    with Checkpoints(tmp_path / "diverged", keep_latest=1, keep_best=0) as checkpoints:
        checkpoints.save(1, {"params": made.raw}, meta)
    before = listing(tmp_path)
    with pytest.raises(ValueError, match="mae: 16 of the 16 values of mae.mask_token are NaN"):
        export(tmp_path / "diverged", tmp_path / "out")
    assert listing(tmp_path) == before


def test_nothing_is_overwritten_and_a_wrong_path_is_named(base: Path, tmp_path: Path, capsys):
    made, folder, _ = exported(base, "images")
    before = listing(folder)
    assert main(["to-pytorch", str(made.path), str(folder)]) == 2
    assert f"{folder} exists already" in capsys.readouterr().err
    assert listing(folder) == before
    assert main(["to-pytorch", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not listing(tmp_path)


def test_a_norm_epsilon_that_opt_cannot_represent_is_refused(tmp_path: Path):
    made = make_checkpoint(tmp_path / "made")
    meta = read_meta(made.path)
    content = {name: value for name, value in meta.items()
               if name not in ("format_version", "step", "metrics", "fingerprint", "checksum")}
    content["config"]["model"]["language"]["layer_norm_eps"] = 1e-6
    with Checkpoints(tmp_path / "other", keep_latest=1, keep_best=0) as checkpoints:
        checkpoints.save(1, {"params": made.raw}, content)
    with pytest.raises(ValueError, match="layer_norm_eps=1e-06: .* 1e-05"):
        export(tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()

