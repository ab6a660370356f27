"""The mapping between PyTorch's tensors and our parameters: tables of rules, and how a tensor changes its form.

    form     PyTorch                       ours
    copy     (...)                         (...)
    dense    Linear (out, in)              (in, out)
    conv     Conv2d (D, C, rows, columns)  (rows * columns * C, D), pixels in the order row, column, channel
    qkv      3 x Linear (D, D)             (D, 3, D)
    qkv_bias 3 x (D,)                      (3, D)

A `{}` in a name is the layer; our layers are stacked along a leading axis L.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rule:
    """One of our leaves, and the tensors that fill it."""

    target: str  # path below `vision` or `language`
    sources: tuple[str, ...]  # names without the file's prefix; with {} if every layer has one
    form: str

    @property
    def stacked(self) -> bool:
        """Whether the leaf has a leading axis of layers."""
        return "{}" in self.sources[0]


def _projection(target: str, source: str) -> tuple[Rule, Rule]:
    return (Rule(f"{target}/kernel", (f"{source}.weight",), "dense"),
            Rule(f"{target}/bias", (f"{source}.bias",), "copy"))


def _norm(target: str, source: str) -> tuple[Rule, Rule]:
    return (Rule(f"{target}/scale", (f"{source}.weight",), "copy"),
            Rule(f"{target}/bias", (f"{source}.bias",), "copy"))


def _attention(layer: str, target: str = "blocks/attention", name: str = "self_attn") -> tuple[Rule, ...]:
    """The attention of CLIP and OPT."""
    qkv = [f"{layer}.{name}.{projection}_proj" for projection in "qkv"]
    return (Rule(f"{target}/qkv/kernel", tuple(f"{source}.weight" for source in qkv), "qkv"),
            Rule(f"{target}/qkv/bias", tuple(f"{source}.bias" for source in qkv), "qkv_bias"),
            *_projection(f"{target}/out", f"{layer}.{name}.out_proj"))


def _vision_blocks(layers: str) -> tuple[Rule, ...]:
    """The blocks of CLIP and of the MAE decoder."""
    return (
        *_norm("blocks/attention_norm", f"{layers}.layer_norm1"),
        *_attention(layers),
        *_norm("blocks/mlp_norm", f"{layers}.layer_norm2"),
        *_projection("blocks/mlp/up", f"{layers}.mlp.fc1"),
        *_projection("blocks/mlp/down", f"{layers}.mlp.fc2"),
    )


CLIP_POSITIONS = Rule("position_embedding", ("embeddings.position_embedding.weight",), "copy")
CLIP = (
    Rule("patch_embedding/kernel", ("embeddings.patch_embedding.weight",), "conv"),
    Rule("class_embedding", ("embeddings.class_embedding",), "copy"),
    CLIP_POSITIONS,
    *_norm("pre_norm", "pre_layrnorm"),  # transformers' spelling
    *_vision_blocks("encoder.layers.{}"),
    *_norm("post_norm", "post_layernorm"),
)

OPT_TOKENS = Rule("token_embedding", ("embed_tokens.weight",), "copy")  # cut and extended
OPT = (
    OPT_TOKENS,
    Rule("position_embedding", ("embed_positions.weight",), "copy"),
    *_norm("blocks/attention_norm", "layers.{}.self_attn_layer_norm"),
    *_attention("layers.{}"),
    *_norm("blocks/mlp_norm", "layers.{}.final_layer_norm"),
    *_projection("blocks/mlp/up", "layers.{}.fc1"),
    *_projection("blocks/mlp/down", "layers.{}.fc2"),
    *_norm("final_norm", "final_layer_norm"),
)

# The parts that CLIP and OPT lack, with the names of pytorch/torch_agent.py.
TEMPORAL = (
    *_norm("blocks/temporal_norm", "encoder.layers.{}.temporal_norm"),
    *_attention("encoder.layers.{}", "blocks/temporal_attention", "temporal_attn"),
)
LINEAR = (Rule("kernel", ("weight",), "dense"), Rule("bias", ("bias",), "copy"))  # connector, classifier
MAE = (
    *_projection("input", "input"),
    Rule("mask_token", ("mask_token",), "copy"),
    *_vision_blocks("layers.{}"),
    *_norm("norm", "norm"),
    *_projection("prediction", "prediction"),
)


def transform(form: str, arrays: list[np.ndarray]) -> np.ndarray:
    """The target of one layer from its source tensors."""
    if form == "dense":
        return arrays[0].T
    if form == "conv":
        weight = arrays[0]
        return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
    if form == "qkv":
        return np.stack([weight.T for weight in arrays], axis=1)
    return np.stack(arrays) if form == "qkv_bias" else arrays[0]


def inverse(form: str, array: np.ndarray) -> list[np.ndarray]:
    """The source tensors of one layer's target, the inverse of `transform`."""
    if form == "dense":
        return [array.T]
    if form == "conv":
        side = math.isqrt(array.shape[0] // 3)
        return [array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)]
    if form == "qkv":
        return [array[:, i].T for i in range(3)]
    return list(array) if form == "qkv_bias" else [array]
