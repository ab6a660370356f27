"""Adapters are refused with their kind, their base and the way to merge them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from random_huggingface import rewrite, save_language
from safetensors.torch import save_file

from agent_jax.convert.huggingface.architecture import language_config
from agent_jax.convert.huggingface.weights_folder import open_folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_language(tmp_path / "base")
    return tmp_path / "base"


def save_adapter(folder: Path) -> Path:
    """A LoRA of q_proj as peft 0.21 writes it."""
    folder.mkdir(exist_ok=True)
    prefix = "base_model.model.model.decoder.layers.0.self_attn.q_proj"
    save_file({f"{prefix}.lora_A.weight": torch.ones(2, 32), f"{prefix}.lora_B.weight": torch.ones(32, 2)},
              folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "base_model_name_or_path": "facebook/opt-125m", "r": 2, "target_modules": ["q_proj"]}))
    return folder


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_is_refused_with_its_base_and_the_way_to_merge_it(base: Path, tmp_path: Path,
                                                                   with_config: bool) -> None:
    folder = save_adapter(tmp_path / "adapter")
    if with_config:
        shutil.copy(base / "config.json", folder)
    for place in (folder, folder / "adapter_model.safetensors"):
        with pytest.raises(ValueError, match=r"LORA for facebook/opt-125m .*merge_and_unload\(\)"):
            language_config(place)


def test_a_whole_model_next_to_an_adapter_is_read(base: Path) -> None:
    save_adapter(base)
    assert language_config(base).width == 32
    with open_folder(base) as folder:
        assert folder.source == "model.safetensors"


def test_the_state_dict_of_a_model_with_adapters_is_refused(base: Path) -> None:
    rewrite(base, lambda tensors: {f"base_model.model.{name}".replace("q_proj.", "q_proj.base_layer."): tensor
                                   for name, tensor in tensors.items()})
    with (pytest.raises(ValueError, match=r"model\.safetensors: base_model.*base_layer.* is of an adapter.*"
                                          r"merge_and_unload"), open_folder(base)):
        pass
