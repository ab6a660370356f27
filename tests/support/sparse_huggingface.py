"""Sparse files with the configs and headers of full-size CLIP and OPT of transformers."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import torch
from random_huggingface import write_index
from transformers import CLIPVisionConfig, CLIPVisionModel, OPTConfig, OPTForCausalLM

# The sizes in openai's and facebook's config.json.
CLIP_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIPS = {
    "B/32": {"patch_size": 32},
    "B/16": {"patch_size": 16},
    "L/14": {"patch_size": 14, **CLIP_LARGE},
    "L/14-336": {"patch_size": 14, "image_size": 336, **CLIP_LARGE},
}
OPTS = {
    "125m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "1.3b": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32},
    "2.7b": {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32},
    "6.7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
}


def clip_config(size: str) -> CLIPVisionConfig:
    """The config of transformers."""
    return CLIPVisionConfig(**CLIPS[size])


def opt_config(size: str) -> OPTConfig:
    """The config of transformers."""
    width = OPTS[size]["hidden_size"]
    return OPTConfig(**OPTS[size], word_embed_proj_dim=width, ffn_dim=4 * width)


def save_clip_headers(path: pathlib.Path, size: str) -> None:
    """Config and header of a vision tower, f32."""
    with torch.device("meta"):
        model = CLIPVisionModel(clip_config(size))
    model.config.save_pretrained(path)
    write_sparse(path / "model.safetensors", shapes_of(model), "F32")


def save_opt_headers(path: pathlib.Path, size: str, shards: int = 1) -> None:
    """Config and headers of an OPT, f16, in one file or several."""
    with torch.device("meta"):
        model = OPTForCausalLM(opt_config(size))
    model.config.save_pretrained(path)
    shapes = shapes_of(model)
    del shapes["lm_head.weight"]
    if shards == 1:
        write_sparse(path / "model.safetensors", shapes, "F16")
        return
    files = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(shapes)}
    for file in set(files.values()):
        write_sparse(path / file, {name: shape for name, shape in shapes.items() if files[name] == file}, "F16")
    write_index(path / "model.safetensors.index.json", files)


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of every tensor of a model."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def write_sparse(path: pathlib.Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    """A sparse safetensors file with these tensors, all zero."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * {"F32": 4, "F16": 2}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)


def save_tokenizer(path: pathlib.Path, size: int = 50_265) -> None:
    """vocab.json and merges.txt with as many ids as OPT."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(f"token{i}" for i in range(4, size))]
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
