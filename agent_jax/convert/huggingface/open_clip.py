"""Reads vision towers in the layout of open_clip and OpenAI's CLIP, with transformers' names for the tensors.

    visual.transformer.resblocks.3.attn.in_proj_weight (3 D, D)  ->  encoder.layers.3.self_attn.{q,k,v}_proj.weight
    module.visual.conv1.weight  (module.: of a distributed run)  ->  embeddings.patch_embedding.weight
    open_clip_config.json, model_cfg.vision_cfg                  ->  the fields of a CLIPVisionConfig

Both compute the same function: pre-LayerNorm blocks with eps 1e-5; only the contrastive head projects the class token.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from agent_jax.json_files import read_json_object

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_NAMES = {"class_embedding": "embeddings.class_embedding", "conv1": "embeddings.patch_embedding",
          "positional_embedding": "embeddings.position_embedding.weight", "ln_pre": "pre_layrnorm",
          "ln_post": "post_layernorm"}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_BLOCK_NAMES = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
                "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_FUSED = {"attn.in_proj_weight": "weight", "attn.in_proj_bias": "bias"}
_TEXT = re.compile(r"(module\.)?(transformer\.|text\.|token_embedding\.|positional_embedding$|ln_final\.|attn_mask$)")
_HEAD = re.compile(r"(module\.)?(visual\.proj|text_projection|logit_scale|logit_bias)$")
_NUMBERS = re.compile(r"(module\.)?(input_resolution|context_length|vocab_size)$")  # in OpenAI's files
_SIZES = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16, "head_width": 64}  # open_clip's defaults
_HARMLESS = {"mlp_ratio", "output_tokens", "patch_dropout"}  # read below, or only for training and CoCa


def is_open_clip(names: Mapping[str, Any]) -> bool:
    """Whether tensors have the names of this layout."""
    return any(prefix + "visual.conv1.weight" in names for prefix in ("", "module."))


def reason_to_leave_out(name: str) -> str:
    """Why a tensor is not part of the vision tower; "" if it is, or is unknown."""
    if _HEAD.match(name):
        return "the contrastive head"
    if _NUMBERS.match(name):
        return "a constant"
    return "the text tower" if _TEXT.match(name) else ""


def vision_fields(file: pathlib.Path) -> dict[str, Any]:
    """open_clip_config.json in the form of transformers' config.json.

    Raises:
        ValueError: it is not JSON, or describes a tower other than CLIP's plain ViT; names the field.
    """
    model = read_json_object(file).get("model_cfg")
    tower = model.get("vision_cfg") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(tower, dict):
        raise ValueError(f"{file}: model_cfg.vision_cfg is missing, expected the sizes of the vision tower")
    for field, value in tower.items():
        if field not in _SIZES and field not in _HARMLESS and value and (field, value) != ("pool_type", "tok"):
            raise ValueError(f"{file}: model_cfg.vision_cfg.{field}={value!r} is of a tower other than CLIP's plain "
                             "ViT, which is not supported")
    sizes = {field: tower.get(field, default) for field, default in _SIZES.items()}
    ratio = tower.get("mlp_ratio", 4.0)
    for field, value in {**sizes, "mlp_ratio": ratio}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**20 or (
                field in _SIZES and not isinstance(value, int)):
            raise ValueError(f"{file}: model_cfg.vision_cfg.{field}={value!r}, expected a positive number")
    if sizes["width"] % sizes["head_width"]:
        raise ValueError(f"{file}: model_cfg.vision_cfg.width={sizes['width']} is not a multiple of head_width="
                         f"{sizes['head_width']}")
    return {"model_type": "clip_vision_model", "image_size": sizes["image_size"], "patch_size": sizes["patch_size"],
            "hidden_size": sizes["width"], "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["width"] // sizes["head_width"],
            "intermediate_size": int(sizes["width"] * ratio),
            "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu"}


class OpenClipFile:
    """An opened file with transformers' names for the tensors of the tower; `close` closes the TensorFile `file`."""

    def __init__(self, file: Any):
        self.path, self._file = file.path, file
        self._places: dict[str, tuple[str, int, int]] = {}  # (tensor, index of the part, number of parts)
        for name in file.shapes:
            for renamed, part, parts in _renamed(name):
                self._places[renamed] = (name, part, parts)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for renamed, (name, _, parts) in self._places.items():
            shape = file.shapes[name]
            if parts > 1 and (not shape or shape[0] % parts):
                raise ValueError(f"{file.path}: {name} {list(shape)}: expected {parts} parts of one size: q, k and v")
            self.shapes[renamed] = (shape[0] // parts, *shape[1:]) if parts > 1 else shape
            self.dtypes[renamed] = file.dtypes[name]

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A floating tensor, or some of its rows, in f32 on the host."""
        source, part, parts = self._places[name]
        if parts == 1:
            return self._file.read(source, rows)
        size = self.shapes[name][0]
        array = self._file.read(source, slice(part * size, (part + 1) * size))
        return array if rows is None else array[rows]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _renamed(name: str) -> list[tuple[str, int, int]]:
    """transformers' names for a tensor: (name, index of the part, number of parts)."""
    local = name.removeprefix("module.").removeprefix("visual.")
    if reason_to_leave_out(name) or not name.removeprefix("module.").startswith("visual."):
        return [(name, 0, 1)]
    if (match := _BLOCK.fullmatch(local)) is None:
        stem, _, ending = local.partition(".")
        return [(".".join(part for part in (_NAMES.get(stem, ""), ending) if part), 0, 1) if stem in _NAMES
                else (name, 0, 1)]
    layer, inner = f"encoder.layers.{match[1]}", match[2]
    if inner in _FUSED:
        return [(f"{layer}.self_attn.{part}_proj.{_FUSED[inner]}", place, 3) for place, part in enumerate("qkv")]
    stem, _, ending = inner.rpartition(".")
    return [(f"{layer}.{_BLOCK_NAMES[stem]}.{ending}" if stem in _BLOCK_NAMES else name, 0, 1)]
