"""Loading Hugging Face weights: every tensor and leaf is used once, and mismatches are refused before writing."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import torch
from random_huggingface import TINY_LANGUAGE, rewrite, save_clip, save_language, save_vision
from tiny_conversions import MAE, SMALL_MAE, load_language, load_vision, opt_config, same_values

from agent_jax.actions.vocabulary import Block, Vocabulary
from agent_jax.checkpoints.checkpoint import locate, restore_parameters
from agent_jax.checkpoints.fingerprint import flat
from agent_jax.config import Config, InitConfig, ModelConfig, PretrainedConfig, from_config_dict
from agent_jax.convert import __main__ as command
from agent_jax.convert.huggingface.architecture import language_config, vision_config
from agent_jax.convert.huggingface.load import pretrained_params
from agent_jax.convert.huggingface.weights_folder import open_folder
from agent_jax.models.agent import init_params

VOCABULARY = Vocabulary.build("bytes", ["babyai"])  # 260 + 9 ids; the tiny OPT's table has 264 rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    place = tmp_path_factory.mktemp("huggingface")
    save_clip(place / "vision")
    save_language(place / "language")
    return str(place / "vision"), str(place / "language")


def run_config(folders, *, with_vision=True, with_language=True) -> Config:
    language = dataclasses.replace(language_config(folders[1]), vocabulary_size=VOCABULARY.size)
    model = ModelConfig(vision_config(folders[0]), language, MAE)
    pretrained = PretrainedConfig(folders[0] if with_vision else "", folders[1] if with_language else "")
    return Config(seed=3, model=model, init=InitConfig(pretrained=pretrained))


def tensors_of(report) -> list[str]:
    return [name for leaf in report.ported.values() for name in leaf.tensors]


def names(directory) -> set[str]:
    with open_folder(directory) as folder:
        return set(folder.shapes)


# --- The mapping -----------------------------------------------------------------------------------------------------


def test_sizes_come_from_config_json(folders):
    vision, language = vision_config(folders[0]), language_config(folders[1])
    assert (vision.image_size, vision.patch_size, vision.width, vision.depth, vision.heads) == (24, 8, 32, 3, 4)
    assert (vision.mlp_width, vision.activation, vision.positions) == (48, "quick_gelu", "clip")
    assert (language.width, language.depth, language.heads, language.mlp_width) == (32, 3, 4, 48)
    assert (language.positions, language.activation, language.dropout) == (40, "relu", 0.1)


def test_a_config_json_may_leave_out_defaults_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip_vision_model", "patch_size": 16}')
    assert vision_config(tmp_path) == dataclasses.replace(Config().model.vision, positions="clip")
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    assert language_config(tmp_path) == Config().model.language


@pytest.mark.parametrize("whole", [False, True])
def test_every_tensor_of_a_clip_is_used_once_or_left_out_with_a_reason(tmp_path, whole):
    (save_clip if whole else save_vision)(tmp_path)
    ids = "vision_model.embeddings.position_ids" if whole else "embeddings.position_ids"
    rewrite(tmp_path, lambda tensors: {**tensors, ids: torch.arange(10)[None]})
    _, report = load_vision(tmp_path, vision_config(tmp_path))
    used = tensors_of(report)
    assert len(used) == len(set(used)) == 7 + 16 * 3
    assert set(used) | report.left_out.keys() == names(tmp_path)
    assert not set(used) & report.left_out.keys()
    assert not report.fresh
    reasons = {item.reason for item in report.left_out.values()}
    assert reasons == {"a constant"} | ({"the text tower", "the contrastive head"} if whole else set())


def test_every_tensor_of_an_opt_is_used_once(tmp_path):
    save_language(tmp_path)
    _, report = load_language(tmp_path, opt_config(tmp_path), 264)
    used = tensors_of(report)
    assert len(used) == len(set(used)) == 4 + 16 * 3
    assert set(used) == names(tmp_path)
    assert not report.left_out
    assert not report.fresh


def test_kernels_have_patches_in_rows_columns_channels_and_fused_queries_keys_values(tmp_path):
    model = save_vision(tmp_path)
    params, _ = load_vision(tmp_path, vision_config(tmp_path))
    weight = model.embeddings.patch_embedding.weight.detach().numpy()
    kernel = params["patch_embedding"]["kernel"]
    for row, column, channel in [(0, 0, 0), (0, 0, 2), (0, 5, 1), (7, 3, 0)]:
        np.testing.assert_array_equal(kernel[(row * 8 + column) * 3 + channel], weight[:, channel, row, column])
    attention = model.encoder.layers[2].self_attn
    for i, part in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
        np.testing.assert_array_equal(params["blocks"]["attention"]["qkv"]["kernel"][2, :, i], part.weight.detach().T)
        np.testing.assert_array_equal(params["blocks"]["attention"]["qkv"]["bias"][2, i], part.bias.detach())


def test_old_and_new_prefixes_of_clip_give_the_same_parameters(tmp_path):
    save_clip(tmp_path / "whole")
    config = vision_config(tmp_path / "whole")
    expected, _ = load_vision(tmp_path / "whole", config)
    save_vision(tmp_path / "new")
    tower = {name.removeprefix("vision_model."): x for name, x in tensors(tmp_path / "whole").items()
             if name.startswith("vision_model.")}
    rewrite(tmp_path / "new", lambda _: tower)
    same_values(load_vision(tmp_path / "new", config)[0], expected)
    rewrite(tmp_path / "new", lambda _: {f"vision_model.{name}": x for name, x in tower.items()})
    same_values(load_vision(tmp_path / "new", config)[0], expected)


def tensors(directory) -> dict[str, torch.Tensor]:
    with open_folder(directory) as folder:
        return {name: torch.from_numpy(folder.read(name)) for name in folder.shapes}


def test_old_and_new_prefixes_and_a_repeated_head_of_opt_give_the_same_parameters(tmp_path):
    model = save_language(tmp_path)
    expected, _ = load_language(tmp_path, opt_config(tmp_path), 264)
    repeated = model.lm_head.weight.detach().clone()
    rewrite(tmp_path, lambda tensors: {**tensors, "lm_head.weight": repeated})
    again, report = load_language(tmp_path, opt_config(tmp_path), 264)
    same_values(again, expected)
    assert list(report.left_out) == ["lm_head.weight"]
    model.model.save_pretrained(tmp_path / "bare")
    assert "decoder.embed_tokens.weight" in names(tmp_path / "bare")
    same_values(load_language(tmp_path / "bare", opt_config(tmp_path), 264)[0], expected)


def test_shards_give_the_same_parameters_as_one_file(tmp_path):
    save_language(tmp_path / "one")
    save_language(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    config = opt_config(tmp_path / "one")
    same_values(load_language(tmp_path / "many", config, 264)[0], load_language(tmp_path / "one", config, 264)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read_into_float32_exactly(tmp_path, dtype):
    save_language(tmp_path)
    halved = {}

    def halve(tensors):
        halved.update({name: tensor.to(dtype) for name, tensor in tensors.items()})
        return halved

    rewrite(tmp_path, halve)
    params, _ = load_language(tmp_path, opt_config(tmp_path), 264)
    assert {leaf.dtype for leaf in flat(params).values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["token_embedding"], halved["model.decoder.embed_tokens.weight"].float())
    np.testing.assert_array_equal(params["blocks"]["mlp"]["up"]["kernel"][1],
                                  halved["model.decoder.layers.1.fc1.weight"].float().T)


def test_sincos_positions_leave_out_clips_table_and_temporal_attention_is_fresh(tmp_path):
    save_vision(tmp_path)
    config = dataclasses.replace(vision_config(tmp_path), positions="sincos", temporal_attention=True)
    params, report = load_vision(tmp_path, config)
    assert "position_embedding" not in params
    assert list(report.left_out) == ["embeddings.position_embedding.weight"]
    assert "sincos" in report.left_out["embeddings.position_embedding.weight"].reason
    assert {path.split("/")[2] for path in report.fresh} == {"temporal_norm", "temporal_attention"}
    assert len(report.fresh) == 6
    assert not any("temporal" in path for path in flat(params))


# --- The token table -------------------------------------------------------------------------------------------------


def test_new_rows_are_the_mean_of_the_text_rows_plus_seeded_noise(tmp_path):
    model = save_language(tmp_path)
    text = model.model.decoder.embed_tokens.weight.detach().numpy()[:260]
    config = opt_config(tmp_path, size=2000, multiple=128)
    params, report = load_language(tmp_path, config, 260, seed=1)
    table = params["token_embedding"]
    assert table.shape == (2048, 32)
    np.testing.assert_array_equal(table[:260], text)
    noise = table[260:] - text.mean(axis=0)
    assert abs(noise.std() - 0.02) < 5e-4
    assert np.abs(noise.mean(axis=0)).max() < 0.02 * 5 / np.sqrt(len(noise))
    assert [(path, item.shape) for path, item in report.fresh.items()] == [
        ("language/token_embedding[260:2000]", (1740, 32)), ("language/token_embedding[2000:2048]", (48, 32))]
    assert list(report.left_out) == ["model.decoder.embed_tokens.weight[260:264]"]
    again, _ = load_language(tmp_path, dataclasses.replace(config, vocabulary_multiple=1), 260, seed=1)
    np.testing.assert_array_equal(again["token_embedding"], table[:2000])  # independent of the padding
    other, _ = load_language(tmp_path, config, 260, seed=2)
    assert (other["token_embedding"][260:] != table[260:]).all(axis=1).all()


@pytest.mark.parametrize("rows", [100, 265])
def test_a_tokenizer_that_is_not_of_these_weights_is_refused(tmp_path, rows):
    save_language(tmp_path)
    with pytest.raises(ValueError, match=rf"vocab_size=264, but the tokenizer has {rows} ids"):
        load_language(tmp_path, opt_config(tmp_path, size=300), rows)


# --- Into a model ----------------------------------------------------------------------------------------------------


def test_pretrained_params_take_ported_leaves_from_the_folders_and_the_rest_from_the_key(folders):
    config = run_config(folders)
    params, report = pretrained_params(config, VOCABULARY, jax.random.key(5))
    fresh = flat(jax.jit(lambda: init_params(config.model, jax.random.key(5)))())
    vision, _ = load_vision(folders[0], config.model.vision)
    language, _ = load_language(folders[1], config.model.language, 260, seed=config.seed)
    ported = flat({"vision": vision, "language": language})
    leaves = flat(params)
    assert leaves.keys() == fresh.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, ported.get(path, fresh[path]), err_msg=path)
    assert {path.split("/")[0] for path in report.fresh} == {"connector", "mae"}
    assert {path for tower in report.towers for path in tower.ported} | report.fresh.keys() == leaves.keys()


def test_all_leaves_of_a_part_without_a_folder_are_fresh(folders):
    config = run_config(folders, with_language=False)
    params, report = pretrained_params(config, VOCABULARY, jax.random.key(0))
    expected, _ = load_vision(folders[0], config.model.vision)
    same_values(params["vision"], expected)
    fresh = jax.jit(lambda: init_params(config.model, jax.random.key(0)))()
    same_values(params["language"], fresh["language"])
    assert report.fresh["language/token_embedding"].reason == "config.init.pretrained.language is empty"


def test_the_printed_report_counts_every_value(folders):
    config = run_config(folders)
    params, report = pretrained_params(config, VOCABULARY, jax.random.key(0))
    printed = str(report)
    for text in (f"55 tensors of {folders[0]} fill 19 leaves", f"52 tensors of {folders[1]} fill 16 leaves",
                 "the text tower", "rows beyond the tokenizer's ids", "mean of the text rows + N(0, 0.02), seed 3",
                 "no connector", "no MAE decoder"):
        assert text in printed
    ported = sum(int(line.split(" leaves, ")[1].split()[0].replace(",", ""))
                 for line in printed.splitlines() if " leaves, " in line)
    fresh = sum(int(line.split(" (")[1].split()[0].replace(",", ""))
                for line in printed.splitlines() if line.startswith("  fresh"))
    assert ported + fresh == sum(leaf.size for leaf in flat(params).values())


def test_pretrained_params_need_a_folder_and_the_right_vocabulary(folders):
    config = run_config(folders)
    with pytest.raises(ValueError, match="vision and language"):
        pretrained_params(run_config(folders, with_vision=False, with_language=False), VOCABULARY, jax.random.key(0))
    with pytest.raises(ValueError, match="vocabulary_size=269, but the vocabulary has 262 ids"):
        pretrained_params(config, Vocabulary(VOCABULARY.text, [Block("x", ("a", "b"))]), jax.random.key(0))


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_missing_unknown_and_misshapen_tensors_are_listed_together(tmp_path):
    save_vision(tmp_path)

    def damage(tensors):
        tensors["post_layernorm.bias"] = tensors["post_layernorm.bias"][:5]
        tensors["pre_layrnorm.weight"] = tensors["pre_layrnorm.weight"].to(torch.int32)
        tensors["encoder.layers.3.layer_norm1.bias"] = torch.zeros(32)
        del tensors["encoder.layers.1.mlp.fc2.weight"]
        return tensors

    rewrite(tmp_path, damage)
    with pytest.raises(ValueError, match="config.json") as error:
        load_vision(tmp_path, vision_config(tmp_path))
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert "missing: encoder.layers.1.mlp.fc2.weight [32, 48]" in lines
    assert "unknown: encoder.layers.3.layer_norm1.bias [32]" in lines
    assert "another shape: post_layernorm.bias: found [5], expected [32]" in lines
    assert "another type: pre_layrnorm.weight: found I32, expected one of F32, F16, BF16, F64" in lines
    assert sum(line.startswith(("missing", "unknown", "another")) for line in lines) == 4


def test_a_config_of_other_sizes_is_refused_with_every_field(folders):
    config = run_config(folders)
    with pytest.raises(ValueError, match="width=64") as error:
        load_vision(folders[0], dataclasses.replace(config.model.vision, width=64, activation="gelu"))
    assert "config.model.vision.width=64, the weights: hidden_size=32" in str(error.value)
    assert "config.model.vision.activation='gelu', the weights: hidden_act='quick_gelu'" in str(error.value)
    with pytest.raises(ValueError, match="positions=50, the weights: max_position_embeddings=40"):
        load_language(folders[1], dataclasses.replace(config.model.language, positions=50), 260)
    with pytest.raises(ValueError, match="layer_norm_eps=1e-06, the weights: layer_norm_eps=1e-05"):
        load_language(folders[1], dataclasses.replace(config.model.language, layer_norm_eps=1e-6), 260)


@pytest.mark.parametrize(("option", "message"), [
    ({"do_layer_norm_before": False}, "do_layer_norm_before=False is a post-LayerNorm OPT, such as opt-350m"),
    ({"word_embed_proj_dim": 16}, "word_embed_proj_dim=16 differs from hidden_size=32"),
    ({"dropout": None}, "dropout=None, expected a number in"),
    ({"dropout": "x"}, "dropout='x', expected a number in"),
    ({"enable_bias": False}, "enable_bias=False is an OPT without biases"),
    ({"_remove_final_layer_norm": True}, "_remove_final_layer_norm=True"),
    ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False"),
    ({"activation_function": "gelu_new"}, "activation_function='gelu_new', expected one of relu, gelu"),
    ({"hidden_size": "32"}, "hidden_size='32', expected a positive whole number"),
    ({"model_type": "gpt2"}, "model_type='gpt2', expected opt for language weights"),
])
def test_an_opt_that_our_model_cannot_represent_is_refused_by_field(tmp_path, option, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "opt", **TINY_LANGUAGE, **option}))
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        language_config(tmp_path)


@pytest.mark.parametrize(("option", "message"), [
    ({"num_channels": 1}, "num_channels=1, expected 3"),
    ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new'"),
    ({"model_type": "opt"}, "model_type='opt', expected clip or clip_vision_model"),
    ({"model_type": "clip"}, "vision_config is missing"),
])
def test_a_clip_that_our_model_cannot_represent_is_refused_by_field(tmp_path, option, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", **option}))
    with pytest.raises(ValueError, match=message):
        vision_config(tmp_path)


def test_an_untied_output_head_is_refused(tmp_path):
    model = save_language(tmp_path)
    head = model.lm_head.weight.detach().clone()
    head[200, 3] += 1e-3
    rewrite(tmp_path, lambda tensors: {**tensors, "lm_head.weight": head})
    with pytest.raises(ValueError, match="lm_head.weight differs from model.decoder.embed_tokens.weight"):
        load_language(tmp_path, opt_config(tmp_path), 264)


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file"):
        vision_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: is not JSON"):
        vision_config(tmp_path)
    save_vision(tmp_path)
    config = vision_config(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4])
    with pytest.raises(ValueError, match=r"model.safetensors: damaged"):
        load_vision(tmp_path, config)
    file.rename(tmp_path / "flax_model.msgpack")
    with pytest.raises(FileNotFoundError, match=r"found config.json, flax_model.msgpack; expected model.safetensors"):
        load_vision(tmp_path, config)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path):
    save_language(tmp_path, max_shard_size="20KB")
    config, index = opt_config(tmp_path), tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    moved = dict(whole["weight_map"])
    last = sorted(moved.values())[-1]
    name = next(name for name, shard in moved.items() if list(moved.values()).count(shard) > 1)
    shard = moved.pop(name)
    index.write_text(json.dumps({"weight_map": moved | {"ghost": last}}))
    with pytest.raises(ValueError, match="index.json") as error:
        load_language(tmp_path, config, 264)
    assert f"in {shard}, not listed for it: {name}" in str(error.value)
    assert f"listed for {last}, not in it: ghost" in str(error.value)
    for outside in ("../elsewhere.safetensors", "model-00099-of-00099.safetensors"):
        index.write_text(json.dumps({"weight_map": {name: outside}}))
        with pytest.raises(FileNotFoundError, match="shard"):
            load_language(tmp_path, config, 264)


# --- The command -----------------------------------------------------------------------------------------------------


def from_hf(folders, out, *overrides) -> int:
    return command.main(["from-hf", "--vision", folders[0], "--language", folders[1], str(out),
                         "--config.vocabulary.tokenizer=bytes", *SMALL_MAE, *overrides])


def test_from_hf_writes_a_checkpoint_with_everything_that_a_new_run_needs(folders, tmp_path, capsys):
    out = tmp_path / "checkpoint"
    assert from_hf(folders, out, "--config.seed=3", "--config.vocabulary.blocks=('babyai',)") == 0
    assert list(tmp_path.iterdir()) == [out]
    directory, _ = locate(out)
    expected, report = pretrained_params(run_config(folders), VOCABULARY, jax.random.key(3))
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), expected)
    params, meta = restore_parameters(directory, abstract)
    same_values(params, expected)
    config = from_config_dict(meta["config"])
    assert config.model == run_config(folders).model
    assert config.init.pretrained == PretrainedConfig(*folders)
    assert Vocabulary.from_json(meta["vocabulary"]).fingerprint() == VOCABULARY.fingerprint()
    assert (meta["step"], meta["domains"], meta["data_state"]) == (0, {}, None)
    assert str(report) in capsys.readouterr().out


def test_from_hf_needs_a_tokenizer_in_the_folder_of_the_language_weights(folders, tmp_path, capsys):
    assert command.main(["from-hf", "--vision", folders[0], "--language", folders[1], str(tmp_path / "out")]) == 2
    assert "vocab.json and merges.txt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_from_hf_does_not_overwrite(folders, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    assert from_hf(folders, out) == 2
    assert "exists already" in capsys.readouterr().err
    assert not list(out.iterdir())
    assert from_hf(folders, tmp_path / "no" / "such" / "place") == 2
    assert "no such directory" in capsys.readouterr().err


@pytest.mark.parametrize(("override", "message"), [
    ("--config.model.vision.widht=32", "widht"),
    ("--config.model.vision.depth=two", "depth"),
    ("--config.model.vision.depth=2", "config.model.vision.depth=2, the weights: num_hidden_layers=3"),
    ("--positions=sincos", "positions"),
    ("elsewhere", "elsewhere: expected --vision PATH"),
])
def test_from_hf_refuses_unknown_arguments_before_writing(folders, tmp_path, capsys, override, message):
    assert from_hf(folders, tmp_path / "out", override) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_failed_conversion_leaves_nothing_behind(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "rename", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert from_hf(folders, tmp_path / "out") == 2
    assert "disk full" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
