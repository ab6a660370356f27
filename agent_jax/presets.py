"""What config files are made of: changes to the default config, applied in order.

    def get_config(variant: str = "") -> ConfigDict:
        return build(variant, {"": [_main], "smoke": [_main, _smoke]})

A change is a function that sets fields of an unlocked ConfigDict. They live in the package, not in configs/, because a
config file is executed by its path, from whatever directory, and can import nothing that lies beside it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from agent_jax.config import Config, DomainConfig, from_config_dict, to_config_dict

Draft = Any  # an unlocked ConfigDict, whose annotations take every field for a number or a string
Change = Callable[[Draft], None]


def build(variant: str, variants: Mapping[str, Sequence[Change]]) -> ConfigDict:
    """The config of a file's variant: the default one with the variant's changes, checked and locked.

    Args:
        variant: what stands behind the colon in `--config FILE:VARIANT`; "" where nothing does.
        variants: the changes of each variant.

    Raises:
        ValueError: for a variant that the file does not have, with those it has; for values that contradict each other.
    """
    if variant not in variants:
        near = difflib.get_close_matches(variant, variants, n=1)
        known = ", ".join(name if name else "'' (no colon)" for name in variants)
        raise ValueError(f"config variant: found {variant!r}, expected one of {known}"
                         + (f"; did you mean {near[0]!r}?" if near else ""))
    config: Draft = to_config_dict(Config()).unlock()
    for change in variants[variant]:
        change(config)
    from_config_dict(config)
    return config.lock()


def domain(**fields: Any) -> Draft:
    """A data set for `config.data.domains`: the default fields with those given here.

    Raises:
        TypeError: for a field that a domain does not have.
    """
    return to_config_dict(DomainConfig(**fields)).unlock()


def paper(config: Draft) -> None:
    """Where paper and authors' code differ, the paper: sin-cos positions, eq. 1 and eq. 5 as they are written."""
    config.model.vision.positions = "sincos"
    config.model.visual_tokens = "all"
    config.loss.form = "eq5"


def code(config: Draft) -> None:
    """Where paper and authors' code differ, the code: CLIP's table, one masked pass, means weighted 2 and 1."""
    config.model.vision.positions = "clip"
    config.model.visual_tokens = "visible"
    config.loss.form = "mean"
    config.loss.token = 2.0
    config.loss.mae = 1.0


def small_model(config: Draft, *, image_size: int, patch_size: int, width: int, heads: int, vision_depth: int,
                language_depth: int, positions: int) -> None:
    """An agent to be trained from scratch on little data: one width throughout, a shallow decoder, no dropout.

    Args:
        config: changed in place.
        image_size: pixels.
        patch_size: pixels.
        width: of encoder, language model and decoder; MLPs are twice as wide, half of what is usual, for speed.
        heads: of all three.
        vision_depth: blocks of the encoder.
        language_depth: blocks of the language model.
        positions: the longest row, in slots.
    """
    vision, language, mae = config.model.vision, config.model.language, config.model.mae
    vision.image_size, vision.patch_size = image_size, patch_size
    for part, depth in ((vision, vision_depth), (language, language_depth), (mae, 1)):
        part.width, part.heads, part.mlp_width, part.depth = width, heads, 2 * width, depth
        part.activation = "relu"  # cheaper than GELU on a CPU
    language.positions = positions
    language.dropout = 0.0


def tiny_run(config: Draft, *, steps: int = 2) -> None:
    """A model of a few thousand parameters and a run of a few steps: does everything hold together?"""
    small_model(config, image_size=56, patch_size=14, width=16, heads=2, vision_depth=1, language_depth=1,
                positions=config.model.language.positions)
    config.train.steps = steps
    config.train.log_every = 1
    config.train.validate_every = 0
    config.train.validation_batches = 1
    config.checkpoint.every = 0
