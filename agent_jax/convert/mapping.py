"""Which Hugging Face tensors make which of our parameters: two tables, and the five ways a tensor changes its form.

    form     Hugging Face                  ours
    copy     (...)                         (...)
    dense    Linear (out, in)              (in, out)
    conv     Conv2d (D, C, rows, columns)  (rows * columns * C, D), pixels in the order row, column, channel
    qkv      3 x Linear (D, D)             (D, 3, D)
    qkv_bias 3 x (D,)                      (3, D)

A `{}` in a name is the layer; ours are stacked along a leading axis L.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rule:
    """One of our leaves, and the tensors it is made of."""

    target: str  # path below `vision` or `language`
    sources: tuple[str, ...]  # names behind the file's prefix; with {} if there is one a layer
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


def _attention(layer: str) -> tuple[Rule, ...]:
    """Of CLIP and OPT alike."""
    qkv = [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
    return (Rule("blocks/attention/qkv/kernel", tuple(f"{name}.weight" for name in qkv), "qkv"),
            Rule("blocks/attention/qkv/bias", tuple(f"{name}.bias" for name in qkv), "qkv_bias"),
            *_projection("blocks/attention/out", f"{layer}.self_attn.out_proj"))


CLIP_POSITIONS = Rule("position_embedding", ("embeddings.position_embedding.weight",), "copy")
CLIP = (
    Rule("patch_embedding/kernel", ("embeddings.patch_embedding.weight",), "conv"),
    Rule("class_embedding", ("embeddings.class_embedding",), "copy"),
    CLIP_POSITIONS,
    *_norm("pre_norm", "pre_layrnorm"),  # spelled so
    *_norm("blocks/attention_norm", "encoder.layers.{}.layer_norm1"),
    *_attention("encoder.layers.{}"),
    *_norm("blocks/mlp_norm", "encoder.layers.{}.layer_norm2"),
    *_projection("blocks/mlp/up", "encoder.layers.{}.mlp.fc1"),
    *_projection("blocks/mlp/down", "encoder.layers.{}.mlp.fc2"),
    *_norm("post_norm", "post_layernorm"),
)

OPT_TOKENS = Rule("token_embedding", ("embed_tokens.weight",), "copy")  # cut and extended on the way
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


def source_shape(form: str, target: tuple[int, ...]) -> tuple[int, ...]:
    """Shape that each source tensor must have for a target of one layer."""
    if form == "dense":
        return target[::-1]
    if form == "conv":
        side = math.isqrt(target[0] // 3)
        return (target[1], 3, side, side)
    if form == "qkv":
        return (target[2], target[0])
    return target[1:] if form == "qkv_bias" else target


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
