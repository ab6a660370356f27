"""`from-hf --dry_run`: the mapping from headers alone, for every size, and the errors of a real conversion."""

import dataclasses
import json
import pathlib
import resource
import subprocess
import sys

import jax
import pytest
import torch
from random_huggingface import rewrite, save_clip, save_language, save_vision, to_pytorch_files
from sparse_huggingface import (
    CLIPS,
    OPTS,
    clip_config,
    opt_config,
    save_clip_headers,
    save_opt_headers,
    save_tokenizer,
    shapes_of,
)
from tiny_conversions import SMALL_MAE
from transformers import CLIPVisionModel, OPTForCausalLM

from agent_jax.checkpoints.fingerprint import flat
from agent_jax.convert import __main__ as command
from agent_jax.convert.from_huggingface import config_of, dry_run, write_checkpoint
from agent_jax.convert.huggingface.load_report import mapping_table, to_json
from agent_jax.models.agent import init_params


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    place = tmp_path_factory.mktemp("huggingface")
    save_clip(place / "vision")
    save_language(place / "language")
    return str(place / "vision"), str(place / "language")


def from_hf(folders, *arguments) -> int:
    return command.main(["from-hf", "--vision", str(folders[0]), "--language", str(folders[1]),
                         "--config.vocabulary.tokenizer=bytes", *SMALL_MAE, *map(str, arguments)])


# --- The output ------------------------------------------------------------------------------------------------------


def test_the_table_has_one_line_for_all_layers_of_a_parameter(folders, tmp_path, capsys):
    assert from_hf(folders, "--dry_run", tmp_path / "out") == 0
    assert not list(tmp_path.iterdir())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for line in (
        "vision_model.embeddings.patch_embedding.weight vision/patch_embedding/kernel 192 x 32 conv to rows of pixels",
        "vision_model.embeddings.class_embedding vision/class_embedding 32 copy",
        "vision_model.encoder.layers.{0..2}.mlp.fc1.weight vision/blocks/mlp/up/kernel 3 x 32 x 48 transpose, stack",
        "vision_model.encoder.layers.{0..2}.self_attn.q_proj.weight vision/blocks/attention/qkv/kernel 3 x 32 x 3 x 32 "
        "transpose, fuse q, k, v, stack",
        "vision_model.encoder.layers.{0..2}.self_attn.v_proj.weight",
        "model.decoder.embed_tokens.weight language/token_embedding 1664 x 32 copy 260 rows, extend to 1,664",
    ):
        assert line.split() in lines, line
    text = "\n".join(map(" ".join, lines))
    for part in ("left out: text_model.", ": the text tower", ": the contrastive head",
                 "rows beyond the tokenizer's ids", "fresh: connector/bias, connector/kernel",
                 "ids of our blocks: the mean of the text rows",
                 "dry run: nothing was written"):
        assert part in text


def test_the_table_has_every_parameter_and_every_tensor(folders):
    config = config_of(*folders, ["--config.vocabulary.tokenizer=bytes", *SMALL_MAE])
    content = to_json(dry_run(config))
    shapes = {row["parameter"]: tuple(row["shape"]) for part in content["parts"] for row in part["mapping"]}
    shapes |= {item["name"]: tuple(item["shape"]) for item in content["fresh"]}
    language = dataclasses.replace(config.model.language, vocabulary_size=260 + 1313)
    model = dataclasses.replace(config.model, language=language)
    leaves = flat(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    assert shapes == {path: leaf.shape for path, leaf in leaves.items()}
    assert content["totals"]["parameters"] == sum(leaf.size for leaf in leaves.values())
    assert content["totals"]["tensors"] == 55 + 52


def test_a_class_head_is_fresh(folders, tmp_path, capsys):
    assert from_hf(folders, "--config.model.classes=10", tmp_path / "out") == 0
    assert "CLIP and OPT have no class head" in capsys.readouterr().out


def test_a_dry_run_and_a_conversion_report_the_same(folders, tmp_path):
    config = config_of(*folders, ["--config.vocabulary.tokenizer=bytes", *SMALL_MAE])
    assert dry_run(config) == write_checkpoint(config, tmp_path / "out")


def test_the_table_is_written_as_json(folders, tmp_path):
    assert from_hf(folders, "--dry_run", "--json", tmp_path / "table.json") == 0
    content = json.loads((tmp_path / "table.json").read_text())
    [row] = [row for row in content["parts"][1]["mapping"] if row["parameter"] == "language/blocks/mlp/up/bias"]
    assert row == {"parameter": "language/blocks/mlp/up/bias", "shape": [3, 48], "operation": "copy, stack",
                   "sources": ["model.decoder.layers.{0..2}.fc1.bias"],
                   "tensors": [f"model.decoder.layers.{layer}.fc1.bias" for layer in range(3)]}
    assert [item.name for item in tmp_path.iterdir()] == ["table.json"]


def test_the_table_names_resized_positions_and_the_files_read(folders, tmp_path, capsys):
    save_vision(tmp_path / "vision")
    to_pytorch_files(tmp_path / "vision", shards=2)
    assert from_hf((tmp_path / "vision", folders[1]), "--dry_run", "--config.model.vision.image_size=40",
                   "--config.init.pretrained.interpolate_positions=true") == 0
    printed = capsys.readouterr().out
    assert "keep CLS, resize 3 x 3 to 5 x 5 (bicubic)" in printed
    assert "(pytorch_model.bin.index.json)" in printed


# --- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [
    ["OUT"], ["EXISTS"], ["NOWHERE"], ["OUT", "--config.model.vision.depth=2"],
    ["OUT", "--config.model.vision.widht=2"], ["OUT", "elsewhere"],
    ["OUT", "--config.vocabulary.tokenizer=/no/such/tokenizer"],
    ["OUT", "--config.model.vision.image_size=40"],
], ids=["tensors", "exists", "nowhere", "sizes", "field", "argument", "tokenizer", "positions"])
def test_a_dry_run_has_the_errors_of_a_conversion(tmp_path, capsys, arguments):
    save_vision(tmp_path / "vision")
    save_language(tmp_path / "language")
    if arguments == ["OUT"]:
        rewrite(tmp_path / "vision", lambda tensors: {name: x for name, x in tensors.items() if "fc2" not in name})
    places = {"OUT": tmp_path / "out", "EXISTS": tmp_path / "vision", "NOWHERE": tmp_path / "no" / "out"}
    arguments = [places.get(argument, argument) for argument in arguments]
    folders, before = (tmp_path / "vision", tmp_path / "language"), set(tmp_path.rglob("*"))
    messages = []
    for mode in ([], ["--dry_run"]):
        assert from_hf(folders, *mode, *arguments) == 2
        messages.append(capsys.readouterr())
    assert messages[0] == messages[1]
    assert messages[0].err.startswith("error: ")
    assert set(tmp_path.rglob("*")) == before


def test_only_a_dry_run_needs_no_out(folders, capsys):
    assert from_hf(folders) == 2
    assert "OUT is missing" in capsys.readouterr().err
    assert from_hf(folders, "--dry_run") == 0


# --- Every size ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sizes(tmp_path_factory) -> pathlib.Path:
    """Sparse files with headers of every size, and a tokenizer with as many ids as OPT's."""
    place = tmp_path_factory.mktemp("sizes")
    for size in CLIPS:
        save_clip_headers(place / "clip" / size.replace("/", "-"), size)
    for size in OPTS:
        save_opt_headers(place / "opt" / size, size, shards=2 if size == "6.7b" else 1)
    save_tokenizer(place)
    return place


@pytest.mark.parametrize(("clip", "opt"), [("B/32", "125m"), ("B/16", "1.3b"), ("L/14", "2.7b"), ("L/14-336", "6.7b")])
def test_every_size_is_mapped_from_its_headers(sizes, clip, opt):
    vision, language = sizes / "clip" / clip.replace("/", "-"), sizes / "opt" / opt
    report = dry_run(config_of(str(vision), str(language), [f"--config.vocabulary.tokenizer={sizes}"]))
    with torch.device("meta"):
        models = CLIPVisionModel(clip_config(clip)), OPTForCausalLM(opt_config(opt))
    beyond = 7 * models[1].config.hidden_size  # rows beyond the tokenizer's ids
    for tower, model, fewer in zip(report.towers, models, (0, beyond), strict=True):
        parameters = dict(model.named_parameters())
        used = {name for leaf in tower.ported.values() for name in leaf.tensors}
        assert used == parameters.keys() - {"lm_head.weight"}
        assert tower.values == sum(x.numel() for name, x in parameters.items() if name != "lm_head.weight") - fewer
    assert f"layers.{{0..{models[1].config.num_hidden_layers - 1}}}.fc1.weight" in mapping_table(report)


def test_thirteen_gigabytes_are_mapped_without_reading_them(sizes):
    shards = list((sizes / "opt" / "6.7b").glob("*.safetensors"))
    assert sum(file.stat().st_size for file in shards) > 13 * 10**9
    assert sum(file.stat().st_blocks for file in shards) * 512 < 10**7
    before = peak_memory()
    dry_run(config_of(str(sizes / "clip" / "L-14"), str(sizes / "opt" / "6.7b"),
                      [f"--config.vocabulary.tokenizer={sizes}"]))
    assert peak_memory() - before < 500_000


def test_a_pytorch_file_of_full_size_is_mapped_from_its_headers(sizes, tmp_path):
    model = opt_config("1.3b")
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        shapes = shapes_of(OPTForCausalLM(model))
    before = peak_memory()
    with torch.serialization.skip_data():  # writes sparse files
        torch.save({name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()
                    if name != "lm_head.weight"}, tmp_path / "pytorch_model.bin")
    clip, tokenizer = str(sizes / "clip" / "B-16"), f"--config.vocabulary.tokenizer={sizes}"
    expected = dry_run(config_of(clip, str(sizes / "opt" / "1.3b"), [tokenizer])).towers[1]
    found = dry_run(config_of(clip, str(tmp_path), [tokenizer])).towers[1]
    assert found.ported == expected.ported
    assert found.values > 10**9
    assert peak_memory() - before < 500_000


def peak_memory() -> int:
    """KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow  # it writes models of full size first
@pytest.mark.parametrize("form", ["safetensors", "f16 pytorch_model.bin"])
def test_b16_and_opt_125m_are_converted_within_six_gibibytes(tmp_path, form):
    save_vision(tmp_path / "clip", **clip_config("B/16").to_dict())
    save_language(tmp_path / "opt", **opt_config("125m").to_dict())
    save_tokenizer(tmp_path / "opt")
    if form != "safetensors":
        for part in ("clip", "opt"):
            to_pytorch_files(tmp_path / part, torch.float16)
    # The peak of children is that of the largest, so the program reports its own.
    program = ("import sys, resource; from agent_jax.convert.__main__ import main; status = main(sys.argv[1:]); "
               "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)")
    done = subprocess.run([sys.executable, "-c", program, "from-hf", "--vision", tmp_path / "clip", "--language",
                           tmp_path / "opt", tmp_path / "out"], check=True, capture_output=True, text=True)
    assert "199 tensors" in done.stdout
    assert "196 tensors" in done.stdout
    assert int(done.stdout.split()[-1]) < 6 * 2**20  # KiB
    assert not list(tmp_path.glob(".*"))
