"""Folders exported from tiny checkpoints, each once a test session, since the parity check takes time."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoints import Made, make_checkpoint

from agent_jax.convert.parity.pytorch import Parity
from agent_jax.convert.to_pytorch import export

KINDS: dict[str, dict[str, Any]] = {
    # Robot and game, images one by one, the loss as in the paper; the averaged parameters.
    "images": {"names": ("table", "minecraft"), "ema": 0.9, "form": "eq5"},
    # Clips of two cameras, space-time attention, trained positions.
    "clips": {"names": ("edge",), "temporal_attention": True, "positions": "clip",
              "domain_fields": {"video": True, "fixed_positions": True,
                                "cameras": ("steps/observation/left", "steps/observation/right")}},
    # Captions and classes of clips, no actions.
    "texts": {"names": ("caption", "ward"), "temporal_attention": True, "temporal_order": "before", "classes": 4,
              "domain_fields": {"video": True}},
}


@functools.cache
def checkpoint_of(base: Path, kind: str) -> Made:
    """The checkpoint."""
    place = base / "exported_agents"
    place.mkdir(exist_ok=True)
    fields = dict(KINDS[kind])
    return make_checkpoint(place / kind, fields.pop("names"), **fields)


@functools.cache
def exported(base: Path, kind: str) -> tuple[Made, Path, Parity]:
    """The checkpoint, the folder for PyTorch, and the parity report."""
    made = checkpoint_of(base, kind)
    folder = made.path.with_name(f"{kind}-torch")
    return made, folder, export(made.path, folder)


@functools.cache
def exported_onnx(base: Path, kind: str) -> tuple[Made, Path]:
    """The checkpoint and the folder for onnxruntime in f32; there are no recorded data to compare."""
    from agent_jax.convert import to_onnx

    made = checkpoint_of(base, kind)
    folder = made.path.with_name(f"{kind}-onnx")
    to_onnx.export(made.path, folder, windows=0)
    return made, folder


def images(made: Made, number: int, seed: int = 0) -> list[Any]:
    """The observations of `number` environments: an image, or one for each camera."""
    [cameras] = {domain.cameras for domain in made.domains.values()}
    size = made.config.model.vision.image_size
    found = np.random.default_rng(seed).integers(0, 256, (number, len(cameras), size, size, 3), np.uint8)
    return [list(row) if len(cameras) > 1 else row[0] for row in found]
