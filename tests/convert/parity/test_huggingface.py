"""Our models against the torch models of transformers, on random weights in their own file formats, in f32.

The tolerances are those of `agent_jax.convert.parity.tolerance`; `python -m agent_jax.convert verify-hf` makes the same
comparison on a user's weights.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from random_huggingface import rewrite, save_clip, save_language, save_vision
from tiny_conversions import load_language

from agent_jax.checkpoints.exported import mapping
from agent_jax.convert import __main__ as command
from agent_jax.convert.huggingface import port
from agent_jax.convert.huggingface.architecture import language_config
from agent_jax.convert.parity.huggingface import find_folders, verify_language, verify_vision
from agent_jax.convert.parity.tolerance import BLOCK, STACK, compare, table
from agent_jax.models import language as language_module
from agent_jax.models import transformer
from agent_jax.models.language import LanguageModel


def assert_parity(rows, depth):
    assert all(row.passed for row in rows), table(rows)
    alone = [row for row in rows if row.name.endswith("alone")]
    assert len(alone) == depth == sum("after block" in row.name for row in rows)
    assert all(row.tolerance == BLOCK or row.largest > 10 for row in alone)
    assert all(row.tolerance in (BLOCK, STACK) or row.largest > 10 for row in rows)
    # Comparisons of zeros would pass too.
    assert all(row.largest > 0.5 for row in rows), table(rows)


@pytest.mark.parametrize("sizes", [
    {},
    {"hidden_act": "gelu", "num_hidden_layers": 1, "num_attention_heads": 1},
    {"hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 3, "image_size": 20, "patch_size": 4},
    {"layer_norm_eps": 1e-3, "num_hidden_layers": 2},
], ids=["quick_gelu", "gelu", "wider", "eps"])
def test_the_encoder_equals_clips_vision_tower(tmp_path, sizes):
    model = save_vision(tmp_path, **sizes)
    assert_parity(verify_vision(tmp_path, images=2), model.config.num_hidden_layers)


def test_the_encoder_equals_the_vision_tower_of_a_whole_clip(tmp_path):
    save_clip(tmp_path)
    assert_parity(verify_vision(tmp_path), 3)


@pytest.mark.parametrize("options", [
    {},
    {"activation_function": "gelu", "num_hidden_layers": 1, "num_attention_heads": 1},
    {"hidden_size": 48, "word_embed_proj_dim": 48, "ffn_dim": 40, "num_attention_heads": 6,
     "max_position_embeddings": 200},
], ids=["relu", "gelu", "wider-in-blocks"])
def test_the_language_model_equals_opt_with_and_without_padding(tmp_path, options):
    model = save_language(tmp_path, **options)
    assert_parity(verify_language(tmp_path), model.config.num_hidden_layers)


def test_the_encoder_equals_clip_at_full_size(tmp_path):
    save_vision(tmp_path, image_size=224, patch_size=16, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                intermediate_size=3072)
    assert_parity(verify_vision(tmp_path), 12)


def test_the_language_model_equals_opt_125m(tmp_path):
    save_language(tmp_path, hidden_size=768, word_embed_proj_dim=768, num_hidden_layers=12, num_attention_heads=12,
                  ffn_dim=3072, max_position_embeddings=2048, vocab_size=50272)
    assert_parity(verify_language(tmp_path, tokens=12), 12)


def test_packed_samples_have_the_logits_of_separate_rows_in_opt(tmp_path):
    model = save_language(tmp_path)
    config = dataclasses.replace(language_config(tmp_path), vocabulary_size=264, vocabulary_multiple=1)
    params, _ = load_language(tmp_path, config, 264)
    samples = [np.arange(5, 12), np.arange(100, 105), np.arange(30, 39)]
    packed = LanguageModel(config)
    segment_BS = np.concatenate([np.full(len(ids), i + 1) for i, ids in enumerate(samples)])[None]
    position_BS = np.concatenate([np.arange(len(ids)) for ids in samples])[None]

    def run(language):
        token_BS = jnp.asarray(np.concatenate(samples)[None])
        return language.logits(language(language.embed(token_BS), jnp.asarray(position_BS), jnp.asarray(segment_BS))[0])

    logits_BSK = np.asarray(jax.jit(lambda params: packed.apply({"params": params}, method=run))(params))
    with torch.inference_mode():
        alone = [model.eval()(torch.from_numpy(ids[None])).logits[0].numpy() for ids in samples]
    row = compare("packed", logits_BSK[0], np.concatenate(alone), STACK)
    assert row.passed, row


def approximate_gelu(monkeypatch):
    monkeypatch.setitem(transformer.ACTIVATIONS, "gelu", jax.nn.gelu)


def wrong_form(form, make):
    """The converter with a mistake in one form that keeps the shape."""

    def transform(name, arrays):
        return make(arrays) if name == form else mapping.transform(name, arrays)

    return lambda monkeypatch: monkeypatch.setattr(port, "transform", transform)


def one_position_early(monkeypatch):
    take = jnp.take
    monkeypatch.setattr(language_module.jnp, "take", lambda table, index, **options: take(
        table, index - 1 if table.shape[0] == 42 else index, **options))


@pytest.mark.parametrize("mistake", [
    approximate_gelu,
    one_position_early,
    wrong_form("dense", lambda arrays: arrays[0]),  # the output projection is square
    wrong_form("qkv", lambda arrays: mapping.transform("qkv", arrays[::-1])),
    wrong_form("qkv_bias", lambda arrays: mapping.transform("qkv_bias", arrays[::-1])),
], ids=["tanh-gelu", "positions", "transpose", "qkv", "qkv-bias"])
def test_known_mistakes_are_caught_in_the_language_model(tmp_path, monkeypatch, mistake):
    save_language(tmp_path, activation_function="gelu", num_hidden_layers=1, ffn_dim=32)
    mistake(monkeypatch)
    rows = verify_language(tmp_path)
    assert not all(row.passed for row in rows), table(rows)


@pytest.mark.parametrize("mistake", [
    wrong_form("conv", lambda arrays: arrays[0].reshape(arrays[0].shape[0], -1).T),
    wrong_form("conv", lambda arrays: arrays[0].transpose(3, 2, 1, 0).reshape(-1, arrays[0].shape[0])),
], ids=["channel-first", "columns-first"])
def test_a_wrong_order_of_pixels_is_caught_in_the_encoder(tmp_path, monkeypatch, mistake):
    save_vision(tmp_path, num_hidden_layers=1)
    mistake(monkeypatch)
    rows = verify_vision(tmp_path)
    assert not all(row.passed for row in rows), table(rows)


def test_the_tolerance_is_absolute_up_to_ten_and_relative_beyond():
    reference = np.array([0.0, 10.0])
    assert compare("", reference + 0.9e-5, reference, BLOCK).passed
    assert not compare("", reference + 1.1e-5, reference, BLOCK).passed
    assert compare("", reference + 0.9e-4, reference, STACK).passed
    assert not compare("", reference + 1.1e-4, reference, STACK).passed
    assert compare("", 30 * reference + 2.9e-3, 30 * reference, STACK).passed
    assert not compare("", 30 * reference + 3.1e-3, 30 * reference, STACK).passed
    assert not compare("", np.array([np.nan, 10.0]), reference, STACK).passed
    assert not compare("", reference, np.array([np.nan, 10.0]), STACK).passed
    with pytest.raises(ValueError, match=r"shape \(2,\), the reference \(1, 2\)"):
        compare("", reference, reference[None], STACK)


def test_verify_hf_prints_a_table_for_every_folder_and_writes_the_figures(tmp_path, capsys):
    save_vision(tmp_path / "clip", num_hidden_layers=1)
    save_language(tmp_path / "opt", num_hidden_layers=1, max_position_embeddings=8)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    assert command.main(["verify-hf", str(tmp_path), "--json", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["passed"]
    assert figures["versions"].keys() == {"jax", "torch", "transformers"}
    assert set(figures["folders"]) == {str(tmp_path / "clip"), str(tmp_path / "opt")}
    for rows in figures["folders"].values():
        for row in rows:
            assert f"{row['name']} " in printed
            assert row["passed"] == (row["difference"] <= row["tolerance"])


def test_verify_hf_exits_with_1_where_a_model_differs(tmp_path, monkeypatch, capsys):
    save_language(tmp_path, num_hidden_layers=1, max_position_embeddings=8, activation_function="gelu")
    approximate_gelu(monkeypatch)
    assert command.main(["verify-hf", str(tmp_path)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_verify_hf_without_a_folder_exits_with_2(tmp_path, capsys):
    assert command.main(["verify-hf", str(tmp_path)]) == 2
    assert "expected a Hugging Face folder" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="found 0 folders"):
        find_folders(tmp_path / "nowhere")


def test_verification_refuses_a_folder_that_transformers_cannot_load_whole(tmp_path):
    save_vision(tmp_path, num_hidden_layers=1)
    rewrite(tmp_path, lambda tensors: {name: x for name, x in tensors.items() if name != "post_layernorm.bias"})
    with pytest.raises(ValueError, match=r"missing: post_layernorm.bias \[32\]"):
        verify_vision(tmp_path)


@pytest.mark.parametrize(("save", "change", "message"), [
    (save_language, {"num_attention_heads": 7}, "hidden_size=32 must be a multiple of num_attention_heads=7"),
    (save_vision, {"num_attention_heads": 7}, "hidden_size=32 must be a multiple of num_attention_heads=7"),
    (save_language, {"vocab_size": None}, "vocab_size=None, expected a whole number"),
    (save_language, {"word_embed_proj_dim": 0}, "OPTForCausalLM of transformers cannot be made of config.json"),
])
def test_a_wrong_config_json_is_named(save, change, message, tmp_path, capsys):
    save(tmp_path, num_hidden_layers=1)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert command.main(["verify-hf", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}")
    assert message in error
