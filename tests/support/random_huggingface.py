"""Random CLIP and OPT models of transformers, saved in its file formats.

Every parameter is random, biases and norms too, so that a converter that drops or swaps them fails. Activations are of
order one, as the absolute tolerances expect.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, OPTConfig, OPTForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

TINY_VISION = {"image_size": 24, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
               "intermediate_size": 48}
TINY_LANGUAGE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48,
                 "max_position_embeddings": 40, "vocab_size": 264, "word_embed_proj_dim": 32}
TINY_TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
             "vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}


def randomise(model: Any, seed: int = 0) -> Any:
    """Set every parameter at random; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if "norm" in name or "layrnorm" in name:
                parameter.mul_(0.2).add_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.mul_(0.2)
            elif "embed_tokens" in name or "embed_positions" in name or "position_embedding" in name:
                parameter.mul_(0.5)
            elif parameter.ndim > 1:
                parameter.mul_(parameter[0].numel() ** -0.5)
    return model


def save_vision(path: pathlib.Path, **sizes: Any) -> CLIPVisionModel:
    """A vision tower alone, as transformers 5 writes it."""
    model = randomise(CLIPVisionModel(CLIPVisionConfig(**{**TINY_VISION, **sizes})))
    model.save_pretrained(path)
    return model


def save_clip(path: pathlib.Path, **sizes: Any) -> CLIPModel:
    """A whole CLIP: both towers, both projections, logit_scale."""
    vision = CLIPVisionConfig(**{**TINY_VISION, **sizes}).to_dict()
    model = randomise(CLIPModel(CLIPConfig(text_config=TINY_TEXT, vision_config=vision, projection_dim=12)))
    model.save_pretrained(path)
    return model


def save_language(path: pathlib.Path, **options: Any) -> OPTForCausalLM:
    """An OPT; `max_shard_size` is the saver's, the rest is OPTConfig's."""
    saving = {"max_shard_size": options.pop("max_shard_size")} if "max_shard_size" in options else {}
    model = randomise(OPTForCausalLM(OPTConfig(**{**TINY_LANGUAGE, **options})))
    model.save_pretrained(path, **saving)
    return model


def rewrite(path: pathlib.Path, change: Any) -> None:
    """Replace model.safetensors by `change` of its name -> tensor dict."""
    file = path / "model.safetensors"
    tensors = change(load_file(file))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def to_pytorch_files(path: pathlib.Path, dtype: torch.dtype = torch.float32, shards: int = 1) -> None:
    """Replace model.safetensors by pytorch_model.bin, or by shards of it with their index, as transformers 4 did."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path / "model.safetensors").items()}
    (path / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, path / "pytorch_model.bin")
        return
    weight_map = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        part = dict(list(tensors.items())[shard::shards])
        torch.save(part, path / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(path / "pytorch_model.bin.index.json", weight_map)


def write_index(path: pathlib.Path, weight_map: Mapping[str, str]) -> None:
    """The index of shards."""
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": dict(weight_map)}))
