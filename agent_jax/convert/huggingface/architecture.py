"""Reads config.json of CLIP and OPT into our config, and refuses what our model cannot represent."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_type_hints

from agent_jax.config import LanguageConfig, VisionConfig
from agent_jax.convert.huggingface.weights_folder import config_path, read_config

Fields = Mapping[str, tuple[str, Any]]

# Our field: (field of transformers, its default, which some config.json leave out).
CLIP_FIELDS = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 32),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "mlp_width": ("intermediate_size", 3072),
    "activation": ("hidden_act", "quick_gelu"),
    "layer_norm_eps": ("layer_norm_eps", 1e-5),
}
OPT_FIELDS = {
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "mlp_width": ("ffn_dim", 3072),
    "activation": ("activation_function", "relu"),
    "positions": ("max_position_embeddings", 2048),
}
MOST = 2**20  # more than any size of a transformer
OPT_EPS = 1e-5  # torch.nn.LayerNorm's default; OPT's config.json has no field for it
# (field, the value that our model has, meaning of another value)
OPT_REFUSED: tuple[tuple[str, Any, str], ...] = (
    ("do_layer_norm_before", True, "a post-LayerNorm OPT, such as opt-350m"),
    ("_remove_final_layer_norm", False, "an OPT without the norm after its last block"),
    ("enable_bias", True, "an OPT without biases"),
    ("layer_norm_elementwise_affine", True, "an OPT whose norms have no weights"),
)


def model_kind(config: Mapping[str, Any]) -> Literal["vision", "language", ""]:
    """The kind of a config.json: a CLIP with a vision tower, an OPT, or neither."""
    model_type = config.get("model_type")
    if model_type in ("clip", "clip_vision_model"):
        return "vision"
    return "language" if model_type == "opt" else ""


def vision_config(directory: str | pathlib.Path) -> VisionConfig:
    """The VisionConfig of a CLIP folder: CLIP's positions, no temporal attention.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: another model, or a CLIP that ours cannot represent; names the field.
    """
    where, content = _section(directory, "vision")
    if (channels := content.get("num_channels", 3)) != 3:
        raise ValueError(f"{where}: num_channels={channels}, expected 3")
    return VisionConfig(positions="clip", **_fields(VisionConfig, CLIP_FIELDS, content, where))


def language_config(directory: str | pathlib.Path) -> LanguageConfig:
    """The LanguageConfig of an OPT folder; `vocabulary_size` stays 0.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: another model, or an OPT that ours cannot represent; names the field.
    """
    where, content = _section(directory, "language")
    for field, expected, meaning in OPT_REFUSED:
        if (found := content.get(field, expected)) != expected:
            raise ValueError(f"{where}: {field}={found} is {meaning}; only {field}={expected} is supported")
    dropout = content.get("dropout", 0.1)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"{where}: dropout={dropout!r}, expected a number in [0, 1)")
    config = LanguageConfig(dropout=float(dropout), layer_norm_eps=OPT_EPS,
                            **_fields(LanguageConfig, OPT_FIELDS, content, where))
    if (projected := content.get("word_embed_proj_dim") or config.width) != config.width:
        raise ValueError(f"{where}: word_embed_proj_dim={projected} differs from hidden_size={config.width}; an OPT "
                         "with projected embeddings, such as opt-350m, is not supported")
    return config


def check_vision(config: VisionConfig, directory: str | pathlib.Path, *,
                 interpolate_positions: bool = False) -> VisionConfig:
    """The folder's own config, after a check that `config` has its sizes.

    Images may have another size if CLIP's positions are not used, or are interpolated.

    Raises:
        ValueError: lists every field that differs.
    """
    found = vision_config(directory)
    any_size = config.positions == "sincos" or interpolate_positions
    fields = {ours: field for ours, field in CLIP_FIELDS.items() if not (any_size and ours == "image_size")}
    hint = ("" if any_size or config.image_size == found.image_size else
            "\nFor images of another size, --config.init.pretrained.interpolate_positions=true resizes CLIP's table.")
    _check("vision", config, found, fields, directory, hint)
    return found


def check_language(config: LanguageConfig, directory: str | pathlib.Path) -> None:
    """Raise ValueError for a config of other sizes than the folder's config.json; lists every field that differs."""
    fields = {**OPT_FIELDS, "layer_norm_eps": ("layer_norm_eps", OPT_EPS)}
    _check("language", config, language_config(directory), fields, directory)


def _section(directory: str | pathlib.Path, part: str) -> tuple[str, dict[str, Any]]:
    content, where = read_config(directory), str(config_path(directory))
    if model_kind(content) != part:
        expected = "clip or clip_vision_model" if part == "vision" else "opt"
        raise ValueError(f"{where}: model_type={content.get('model_type')!r}, expected {expected} for {part} weights")
    if content["model_type"] != "clip":
        return where, content
    tower = content.get("vision_config")
    if not isinstance(tower, dict):
        raise ValueError(f"{where}: vision_config is missing, expected the sizes of the vision tower")
    return f"{where}, vision_config", tower


def _fields(kind: type, fields: Fields, content: Mapping[str, Any], where: str) -> dict[str, Any]:
    activations = get_args(get_type_hints(kind)["activation"])
    values = {}
    for ours, (theirs, default) in fields.items():
        value = content.get(theirs, default)
        if isinstance(default, str):
            if value not in activations:
                raise ValueError(f"{where}: {theirs}={value!r}, expected one of {', '.join(activations)}")
        elif isinstance(value, bool) or not isinstance(value, (int, type(default))) or not 0 < value < MOST:
            whole = "whole " if isinstance(default, int) else ""
            raise ValueError(f"{where}: {theirs}={value!r}, expected a positive {whole}number below {MOST:,}")
        values[ours] = value if isinstance(default, str) else type(default)(value)
    if values["width"] % values["heads"]:
        raise ValueError(f"{where}: hidden_size={values['width']} must be a multiple of num_attention_heads="
                         f"{values['heads']}")
    return values


def _check(part: str, config: Any, found: Any, fields: Fields, directory: str | pathlib.Path,
           hint: str = "") -> None:
    lines = [f"  config.model.{part}.{ours}={getattr(config, ours)!r}, the weights: {theirs}={getattr(found, ours)!r}"
             for ours, (theirs, _) in fields.items() if getattr(config, ours) != getattr(found, ours)]
    if lines:
        raise ValueError(f"{config_path(directory)} describes another model than the config:\n" + "\n".join(lines)
                         + f"\nSet config.model.{part} to these sizes, or use other weights.{hint}")
