"""Folders and files of weights: every form gives the same parameters, and damaged files are refused."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
from random_huggingface import rewrite, save_clip, save_language, save_vision, to_pytorch_files, write_index
from safetensors.torch import load_file
from tiny_conversions import SMALL_MAE, load_language, load_vision, opt_config, same_values

from agent_jax.convert import __main__ as command
from agent_jax.convert.huggingface.architecture import vision_config
from agent_jax.convert.huggingface.weights_folder import open_folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> pathlib.Path:
    """Folders `vision` (a whole CLIP) and `language`, in safetensors."""
    place = tmp_path_factory.mktemp("huggingface")
    save_clip(place / "vision")
    save_language(place / "language")
    return place


@pytest.fixture
def folders(sources, tmp_path) -> pathlib.Path:
    """Copies to damage."""
    return pathlib.Path(shutil.copytree(sources, tmp_path / "folders"))


def loaded(folders) -> dict:
    vision, _ = load_vision(folders / "vision", vision_config(folders / "vision"))
    language, _ = load_language(folders / "language", opt_config(folders / "language"), 264)
    return {"vision": vision, "language": language}


def source_of(path) -> str:
    with open_folder(path) as folder:
        return folder.source


# --- Every form of the same weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_pytorch_files_give_the_parameters_of_safetensors(folders, dtype, shards):
    for part in ("vision", "language"):
        rewrite(folders / part, lambda tensors: {name: x.to(dtype) for name, x in tensors.items()})
    expected = loaded(folders)
    for part in ("vision", "language"):
        to_pytorch_files(folders / part, dtype, shards)
    assert source_of(folders / "language") == ("pytorch_model.bin" if shards == 1 else "pytorch_model.bin.index.json")
    same_values(loaded(folders), expected)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_single_file_with_its_config_is_read(folders, pickled):
    expected = loaded(folders)
    place, file = folders / "vision", "model.safetensors"
    if pickled:
        to_pytorch_files(place)
        file = "pytorch_model.bin"
    alone = place / f"clip{pathlib.Path(file).suffix}"
    (place / file).rename(alone)
    params, report = load_vision(alone, vision_config(alone))
    same_values(params, expected["vision"])
    assert (report.directory, report.source) == (str(alone), alone.name)


def test_safetensors_are_preferred_and_the_report_names_files_not_read(folders):
    expected = loaded(folders)
    (folders / "language" / "pytorch_model.bin").write_bytes(b"not read")
    assert source_of(folders / "language") == "model.safetensors (pytorch_model.bin not read)"
    same_values(loaded(folders), expected)
    _, report = load_language(folders / "language", opt_config(folders / "language"), 264)
    assert "(model.safetensors (pytorch_model.bin not read))" in str(report)


def test_a_tied_head_with_shared_storage_is_left_out(folders):
    place = folders / "language"
    tensors = load_file(place / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"]
    (place / "model.safetensors").unlink()
    torch.save(tensors, place / "pytorch_model.bin")
    _, report = load_language(place, opt_config(place), 264)
    assert list(report.left_out) == ["lm_head.weight"]


# --- Errors, after which nothing is written --------------------------------------------------------------------------


def refusal(folders, capsys) -> str:
    """The message of from-hf, which must fail and leave nothing behind."""
    before = set(folders.parent.rglob("*"))
    status = command.main(["from-hf", "--vision", str(folders / "vision"), "--language", str(folders / "language"),
                           str(folders.parent / "out"), "--config.vocabulary.tokenizer=bytes", *SMALL_MAE])
    assert status == 2
    assert set(folders.parent.rglob("*")) == before
    return capsys.readouterr().err


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(("value", "name"), [(np.nan, "model.decoder.layers.1.fc1.weight"),
                                             (np.inf, "model.decoder.embed_tokens.weight")])
def test_values_that_are_not_finite_are_refused_with_file_name_and_number(folders, capsys, pickled, value, name):
    def damage(tensors):
        tensors[name][3, 5:7] = value
        return tensors

    rewrite(folders / "language", damage)
    if pickled:
        to_pytorch_files(folders / "language", torch.float16)
    message = refusal(folders, capsys)
    assert f"{folders / 'language' / ('pytorch_model.bin' if pickled else 'model.safetensors')}: {name} " in message
    assert "2 of the " in message
    assert "the first at [3, 5]" in message


def test_unused_values_may_be_nan(folders):
    def damage(tensors):
        tensors["text_model.final_layer_norm.weight"][:] = np.nan
        return tensors

    rewrite(folders / "vision", damage)
    load_vision(folders / "vision", vision_config(folders / "vision"))
    rewrite(folders / "language", lambda tensors: {
        name: torch.where(torch.arange(264)[:, None] < 260, x, torch.nan) if "embed_tokens" in name else x
        for name, x in tensors.items()})
    load_language(folders / "language", opt_config(folders / "language"), 260)


@pytest.mark.parametrize("cut", [0, 4, 8, 50, 5000, -1])
def test_a_truncated_safetensors_file_is_refused_with_its_length(folders, capsys, cut):
    file = folders / "vision" / "model.safetensors"
    content = file.read_bytes()[:cut]
    file.write_bytes(content)
    assert f"{file}: damaged or not a safetensors file, {len(content):,} bytes" in refusal(folders, capsys)


def with_header(file, change) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    written = json.dumps(header).encode()
    file.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + length :])


def moved(name, start, end):
    def change(header):
        offsets = header[name]["data_offsets"]
        header[name]["data_offsets"] = [offsets[0] + start, offsets[1] + end]
    return change


@pytest.mark.parametrize("change", [
    moved("logit_scale", -4, -4),  # overlaps the tensor before it
    moved("visual_projection.weight", 2**40, 2**40),  # beyond the end
    moved("visual_projection.weight", 0, -4),  # shorter than its shape
    lambda header: header["visual_projection.weight"].update(shape=[2**62, 2**62]),
    lambda header: header["visual_projection.weight"].update(shape=[-1, 4]),
    lambda header: header["visual_projection.weight"].update(dtype="F31"),
    lambda header: header.update(more={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}),
], ids=["overlap", "beyond", "short", "overflow", "negative", "dtype", "twice"])
def test_a_wrong_header_is_refused(folders, capsys, change):
    file = folders / "vision" / "model.safetensors"
    with_header(file, change)
    assert f"{file}: damaged" in refusal(folders, capsys)


def test_a_header_longer_than_the_file_is_refused(folders, capsys):
    file = folders / "vision" / "model.safetensors"
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])
    assert f"{file}: damaged" in refusal(folders, capsys)


def test_a_truncated_pytorch_file_and_one_with_code_are_refused(folders, capsys):
    to_pytorch_files(folders / "language")
    file = folders / "language" / "pytorch_model.bin"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert f"{file}: damaged or not a PyTorch file, {len(content) // 2:,} bytes" in refusal(folders, capsys)
    torch.save({"weight": torch.ones(2), "code": print}, file)
    assert f"{file}: its pickle asks for '__builtin__.print'" in refusal(folders, capsys)  # Python 2's name, as saved


def test_an_index_that_disagrees_with_pytorch_shards_is_refused(folders, capsys):
    to_pytorch_files(folders / "language", shards=3)
    index = folders / "language" / "pytorch_model.bin.index.json"
    (folders / "language" / "pytorch_model-00002-of-00003.bin").unlink()
    message = refusal(folders, capsys)
    assert f"{index} names the shard 'pytorch_model-00002-of-00003.bin', one of 3" in message
    write_index(index, {"w": "model.safetensors"})  # not of its kind
    assert "names the shard 'model.safetensors'" in refusal(folders, capsys)
    write_index(index, {f"w{i}": "pytorch_model-00001-of-00003.bin" for i in range(100)})
    message = refusal(folders, capsys)
    assert "listed for pytorch_model-00001-of-00003.bin, not in it: w0" in message
    assert "and 98 more" in message


@pytest.mark.parametrize(("part", "field", "value", "message"), [
    ("language", "hidden_size", 48, "word_embed_proj_dim=32 differs from hidden_size=48"),
    ("language", "ffn_dim", 64, "model.decoder.layers.0.fc1.weight: found [48, 32], expected [64, 32]"),
    ("language", "num_hidden_layers", 4, "missing: model.decoder.layers.3.self_attn.q_proj.weight [32, 32]"),
    ("language", "num_hidden_layers", 2, "unknown: model.decoder.layers.2.fc1.bias [48]"),
    ("language", "num_hidden_layers", 10**6, "num_hidden_layers=1000000, but"),
    ("language", "num_hidden_layers", 10**9, "num_hidden_layers=1000000000, expected a positive whole number below"),
    ("language", "max_position_embeddings", 50, "embed_positions.weight: found [42, 32], expected [52, 32]"),
    ("language", "vocab_size", 270, "embed_tokens.weight: found [264, 32], expected [270, 32]"),
    ("language", "vocab_size", 2640, "vocab_size=2640, but the tokenizer has 260 ids"),
    ("vision", "image_size", 10**6, "position_embedding.weight: found [10, 32], expected [15625000001, 32]"),
    ("vision", "patch_size", 12, "position_embedding.weight: found [10, 32], expected [5, 32]"),
    ("vision", "intermediate_size", 48.5, "intermediate_size=48.5, expected a positive whole number"),
    ("vision", "num_attention_heads", 5, "hidden_size=32 must be a multiple of num_attention_heads=5"),
])
def test_a_config_json_of_other_sizes_than_its_weights_is_refused_with_numbers(folders, capsys, part, field, value,
                                                                               message):
    file = folders / part / "config.json"
    config = json.loads(file.read_text())
    (config["vision_config"] if part == "vision" else config)[field] = value
    file.write_text(json.dumps(config))
    assert message in refusal(folders, capsys)


def test_missing_and_whole_number_tensors_are_refused(folders, capsys):
    def damage(tensors):
        del tensors["vision_model.post_layernorm.weight"]
        tensors["vision_model.pre_layrnorm.bias"] = tensors["vision_model.pre_layrnorm.bias"].long()
        return tensors

    rewrite(folders / "vision", damage)
    to_pytorch_files_as_they_are(folders / "vision")
    message = refusal(folders, capsys)
    assert "missing: vision_model.post_layernorm.weight [32]" in message
    assert "another type: vision_model.pre_layrnorm.bias: found I64, expected one of F32, F16, BF16, F64" in message


def to_pytorch_files_as_they_are(place) -> None:
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()


def test_a_head_that_differs_in_one_value_is_refused_with_its_rows(folders, capsys):
    def untie(tensors):
        head = tensors["model.decoder.embed_tokens.weight"].clone()
        head[200, 3] += 1e-3
        return {**tensors, "lm_head.weight": head}

    rewrite(folders / "language", untie)
    message = refusal(folders, capsys)
    assert "lm_head.weight differs from model.decoder.embed_tokens.weight in rows 0 to 264" in message


def test_a_file_of_another_kind_or_without_config_is_refused(tmp_path):
    save_vision(tmp_path)
    other = tmp_path / "model.h5"
    other.write_bytes(b"")
    with pytest.raises(ValueError, match=r"model.h5: .*\.safetensors or \.bin"):
        load_vision(other, vision_config(other))
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file"):
        vision_config(tmp_path / "model.safetensors")
