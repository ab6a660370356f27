"""Refuses adapters (LoRA and others of PEFT) in place of a whole model, and explains how to merge them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from agent_jax.json_files import read_json_object

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MERGE = ("merge it into its base with peft (pip install peft): AutoPeftModelForCausalLM.from_pretrained({path!r})"
          ".merge_and_unload().save_pretrained(NEW), copy the tokenizer's files into NEW, and give NEW")


def check_no_adapter(folder: pathlib.Path, place: pathlib.Path) -> None:
    """Refuse an adapter where a model is expected.

    Args:
        folder: holds the config.
        place: the folder, or one of its weight files, as the user named it.

    Raises:
        ValueError: it is an adapter; names its kind and base, and how to merge it.
    """
    adapter = place == folder and (folder / CONFIG).is_file() and any((folder / name).is_file() for name in WEIGHTS)
    whole = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if place.name not in WEIGHTS and (whole or not adapter):
        return
    about = read_json_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    kind, base = (str(about.get(field, "?"))[:200] for field in ("peft_type", "base_model_name_or_path"))
    raise ValueError(f"{place}: found an adapter of kind {kind} for {base} ({CONFIG}), expected a whole model; "
                     + _MERGE.format(path=str(folder)))


def check_whole(file: pathlib.Path, names: Mapping[str, Any]) -> None:
    """Refuse the state dict of a model with adapters inside.

    Raises:
        ValueError: it has a tensor of an adapter; names it.
    """
    for name in names:
        if ".lora_A." in name or ".lora_B." in name or ".base_layer." in name:
            raise ValueError(f"{file}: {name[:200]} is of an adapter around the model, expected the tensors of a whole "
                             "model; in the training script, save with model.merge_and_unload()"
                             ".save_pretrained(NEW) instead, copy the tokenizer's files into NEW, and give NEW")
