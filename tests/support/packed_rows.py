"""Rows for the tests of model and losses: samples side by side, and garbage in every padding place."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from agent_jax.batch import Batch, RowSize
from agent_jax.config import LanguageConfig, MaeConfig, ModelConfig, VisionConfig
from agent_jax.models.agent import init_params

# 16 patches an image, of which a mask keeps 4; widths that differ, so that nothing fits by accident.
TINY = ModelConfig(
    vision=VisionConfig(image_size=16, patch_size=4, width=8, depth=2, heads=2, mlp_width=16),
    language=LanguageConfig(width=12, depth=2, heads=2, mlp_width=20, positions=64, dropout=0.2,
                            vocabulary_size=50, vocabulary_multiple=32),
    mae=MaeConfig(width=16, depth=1, heads=4, mlp_width=24),
)

# The same graph without LLVM's optimisations: slower to run, which does not matter here, and half the time to compile.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

INT32 = np.iinfo(np.int32)
WILD_INDEX = np.array([INT32.min, -1_000_000, -2, -1, 0, 1, 7, 1_000_000, INT32.max - 1, INT32.max], np.int32)
WILD_WEIGHT = np.array([np.nan, np.inf, -np.inf, -1.0, 0.0, 1.0, 1e-30, 1e30], np.float32)


@functools.cache
def _abstract_params(config: ModelConfig) -> Any:
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def random_params(config: ModelConfig, seed: int = 0) -> Any:
    """Parameters none of which is zero or one, unlike fresh ones; and no time spent on compiling an initialiser."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, _abstract_params(config))


def beside(*parts: Batch, visual_tokens: int) -> Batch:
    """Rows that hold the rows of all parts side by side; padding stays padding, seeds are those of the first part."""
    joined = parts[0]
    for part in parts[1:]:
        images, slots = joined.clip_BF.shape[1], joined.token_BS.shape[1]
        moved = {
            "clip_BF": np.where(part.clip_BF < 0, -1, part.clip_BF + joined.clip_BF.max() + 1),
            "segment_BS": np.where(part.segment_BS == 0, 0, part.segment_BS + joined.segment_BS.max()),
            "visual_BS": np.where(part.visual_BS < 0, -1, part.visual_BS + images * visual_tokens),
            "slot_BT": part.slot_BT + slots,
        }
        part = dataclasses.replace(part, **{name: leaf.astype(np.int32) for name, leaf in moved.items()})
        joined = jax.tree.map(lambda a, b: a if a.ndim == 1 else np.concatenate([a, b], axis=1), joined, part)
    return joined


def below(*parts: Batch) -> Batch:
    """The rows of all parts as one batch."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def mixed_batch(visual_tokens: int) -> Batch:
    """Four rows of TINY with everything that a row can hold, and padding beside it.

    Rows 0 and 1: a sample of two images that are clips of their own (the second one repeated in row 1), then one with a
    clip of two images, from another domain; row 2: one sample; row 3: nothing. Some targets weigh a half.
    """
    V = visual_tokens
    size = RowSize(frames=2, image_size=16, slots=2 * V + 14, targets=16)  # 14 tokens in 16 places for targets
    fake = {"visual_tokens": V, "vocabulary_size": TINY.language.vocabulary_size}
    frame_level = Batch.fake(size, 2, domains=2, seed=1, **fake)
    frame_level.frame_weight_BF[1, 1] = 0.0
    frame_level.action_weight_BT[:, 5:7] *= 0.5
    video = Batch.fake(size, 2, clip_length=2, seed=2, **fake)
    for name in ("domain_BS", "domain_BF", "domain_BT"):
        getattr(video, name)[:] = [[1], [2]]
    blank = lambda rows, images, slots, targets: Batch.padding(RowSize(images, 16, slots, targets), rows)  # noqa: E731
    packed = beside(frame_level, video, blank(2, 1, 4, 2), visual_tokens=V)
    single = beside(Batch.fake(size, 1, seed=3, **fake), blank(1, 3, size.slots + 4, 18), visual_tokens=V)
    return below(packed, single, blank(1, 5, 2 * size.slots + 4, 34))


def with_garbage(batch: Batch, seed: int) -> Batch:
    """The same batch with anything at all where batch.py says that nothing counts. Padding marks and seeds stay."""
    rng = np.random.default_rng(seed)
    batch = jax.tree.map(np.copy, batch)
    places = {"BS": batch.segment_BS == 0, "BF": batch.clip_BF == -1, "B": ~np.any(batch.segment_BS, axis=1),
              "BT": (batch.language_weight_BT == 0) & (batch.action_weight_BT == 0)}
    marks = {"segment_BS", "clip_BF", "language_weight_BT", "action_weight_BT", "seed_B"}
    for field in dataclasses.fields(batch):
        dims = field.name.rsplit("_", 1)[1]
        if field.name in marks or dims not in places:
            continue
        leaf = getattr(batch, field.name)
        wild = rng.choice(WILD_WEIGHT if leaf.dtype == np.float32 else WILD_INDEX, leaf.shape)
        leaf[...] = np.where(places[dims], wild, leaf)
    pixels = rng.integers(0, 256, batch.frames_BFHWC.shape, dtype=np.uint8)
    pixels[::2] = rng.choice(np.array([0, 255], np.uint8), pixels[::2].shape)
    batch.frames_BFHWC[...] = np.where(places["BF"][:, :, None, None, None], pixels, batch.frames_BFHWC)
    return batch
