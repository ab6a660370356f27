"""Towers in open_clip's layout give bitwise the parameters of the same tensors in transformers' layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from random_huggingface import TINY_VISION, save_clip, save_vision
from safetensors.torch import save_file
from tiny_conversions import load_vision, same_values

from agent_jax.convert.huggingface.architecture import vision_config
from agent_jax.convert.huggingface.torch_file import TorchFile
from agent_jax.convert.huggingface.weights_folder import open_folder

SIZES = {"image_size": 24, "layers": 3, "width": 32, "patch_size": 8, "head_width": 8, "mlp_ratio": 1.5}


def open_clip_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The state dict of open_clip's CLIP with the tower of a CLIPVisionModel, as open_clip/transformer.py names it."""
    own = {name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()}
    found = {"logit_scale": torch.tensor(2.6), "positional_embedding": torch.ones(8, 16),
             "token_embedding.weight": torch.ones(50, 16), "ln_final.bias": torch.ones(16),
             "transformer.resblocks.0.attn.in_proj_weight": torch.ones(48, 16), "ln_final.weight": torch.ones(16),
             "text_projection": torch.ones(16, 12), "visual.proj": torch.ones(32, 12),
             "visual.class_embedding": own["embeddings.class_embedding"],
             "visual.conv1.weight": own["embeddings.patch_embedding.weight"],
             "visual.positional_embedding": own["embeddings.position_embedding.weight"]}
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = own[f"pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = own[f"post_layernorm.{kind}"]
        for layer in range(3):
            theirs, ours = f"visual.transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            fused = [own[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(fused)
            for name, renamed in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"),
                                  ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):
                found[f"{theirs}.{name}.{kind}"] = own[f"{ours}.{renamed}.{kind}"]
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def write_config(folder: Path, quick_gelu: bool = False, **sizes: Any) -> None:
    folder.mkdir(exist_ok=True)
    model = {"embed_dim": 12, "quick_gelu": quick_gelu, "vision_cfg": {**SIZES, **sizes}, "text_cfg": {}}
    content = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_a_folder_of_open_clip_gives_the_parameters_of_transformers(tmp_path: Path, act: str) -> None:
    tensors = open_clip_tensors(save_vision(tmp_path / "hf", hidden_act=act))
    config = vision_config(tmp_path / "hf")
    expected, _ = load_vision(tmp_path / "hf", config)
    write_config(tmp_path / "hub", quick_gelu=act == "quick_gelu")
    torch.save(tensors, tmp_path / "hub" / "open_clip_pytorch_model.bin")
    assert vision_config(tmp_path / "hub") == config
    found, report = load_vision(tmp_path / "hub", config)
    same_values(found, expected)
    assert {item.reason for item in report.left_out.values()} == {"the text tower", "the contrastive head"}
    save_file(tensors, tmp_path / "hub" / "open_clip_model.safetensors")
    same_values(load_vision(tmp_path / "hub", config)[0], expected)
    with open_folder(tmp_path / "hub") as folder:
        assert folder.source.startswith("open_clip_model.safetensors (open_clip_pytorch_model.bin not read")


def test_a_training_checkpoint_and_a_renamed_file_are_read_with_a_config_of_transformers(tmp_path: Path) -> None:
    tensors = open_clip_tensors(save_clip(tmp_path / "hf").vision_model)
    config = vision_config(tmp_path / "hf")
    expected, _ = load_vision(tmp_path / "hf", config)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    state = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict(),
                "scaler": {"scale": 65536.0}}, tmp_path / "hf" / "epoch_1.pt")
    same_values(load_vision(tmp_path / "hf" / "epoch_1.pt", config)[0], expected)
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    same_values(load_vision(tmp_path / "hf", config)[0], expected)
    (tmp_path / "hf" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file.*open_clip or OpenAI.*hidden_act"):
        vision_config(tmp_path / "hf" / "epoch_1.pt")


def test_errors_name_open_clips_tensors(tmp_path: Path) -> None:
    tensors = open_clip_tensors(save_vision(tmp_path / "hf"))
    del tensors["visual.transformer.resblocks.1.attn.in_proj_weight"]
    tensors["visual.transformer.resblocks.1.ls_1.gamma"] = torch.ones(32)
    write_config(tmp_path / "hub", quick_gelu=True)
    save_file(tensors, tmp_path / "hub" / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"missing: encoder\.layers\.1\.self_attn\.q_proj\.weight") as error:
        load_vision(tmp_path / "hub", vision_config(tmp_path / "hub"))
    assert "unknown: visual.transformer.resblocks.1.ls_1.gamma [32]" in str(error.value)
    save_file({**tensors, "visual.transformer.resblocks.1.attn.in_proj_weight": torch.ones(95, 32)},
              tmp_path / "hub" / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"resblocks\.1\.attn\.in_proj_weight \[95, 32\]: expected 3 parts"):
        load_vision(tmp_path / "hub", vision_config(tmp_path / "hub"))


@pytest.mark.parametrize(("sizes", "message"), [
    ({"timm_model_name": "convnext_base"}, "timm_model_name='convnext_base' is of a tower other than"),
    ({"no_ln_pre": True}, "no_ln_pre=True"),
    ({"layers": [3, 4, 6, 3]}, r"layers=\[3, 4, 6, 3\], expected a positive number"),
    ({"width": 0}, "width=0, expected"),
    ({"head_width": 64}, "width=32 is not a multiple of head_width=64"),
])
def test_towers_that_our_model_cannot_represent_are_refused_by_field(tmp_path: Path, sizes: dict[str, Any],
                                                                message: str) -> None:
    write_config(tmp_path / "hub", **sizes)
    with pytest.raises(ValueError, match=rf"open_clip_config\.json: model_cfg\.vision_cfg\.{message}"):
        vision_config(tmp_path / "hub")
    assert TINY_VISION["hidden_size"] == SIZES["width"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused_and_the_suggested_conversion_works(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-16.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(4, 4), torch.ones(1, 4)), file)
    with pytest.raises(ValueError, match=r"ViT-B-16\.pt: .*TorchScript.*torch\.jit\.load\(PATH"):
        TorchFile(file)
    torch.save(torch.jit.load(file, map_location="cpu").state_dict(), tmp_path / "new.pt")
    assert TorchFile(tmp_path / "new.pt").shapes == {"weight": (4, 4), "bias": (4,)}
