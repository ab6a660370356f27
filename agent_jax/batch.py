"""The only contract between data and model: a batch of laid-out rows.

A row is S slots. A slot is a token (an embedding lookup) or a visual token (taken from the encoder's output); which it
is, is data:

    </s> instruction   image 0          state   action      image 1          state   action
    [b w w w w w]  [v v v ... v (V)]  [s s s s]  [a a a a]  [v v v ... v (V)]  [s s s s]  [a a a a]   (padding)

Legend of dimensions, used in names, einsum strings and docstrings throughout the package:

    B batch (rows)         F images of a row      P patches of an image   V visual tokens of an image
    S slots of a row       T targets of a row     Z slots as attention keys
    N attention heads      H width of a head      D model width           M MLP width
    K vocabulary rows      X pixel values of a patch      C colour channels      L layers      Y classes of a clip
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

# An array on the host or the device, a ShapeDtypeStruct or a sharding: a Batch is a pytree of any of them.
Array = Any

PADDING_SEGMENT = 0  # segment_BS of an empty slot; samples of a row count from 1.
PADDING_CLIP = -1  # clip_BF of an empty image.


@dataclasses.dataclass(frozen=True)
class RowSize:
    """The static size of every row of a batch; `B` is left to the caller."""

    frames: int  # F
    image_size: int  # height and width in pixels
    slots: int  # S
    targets: int  # T


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of rows. Dtypes are exact: `Batch.spec` is what a step is compiled for.

    Padding is said once per kind: `segment_BS` 0 for a slot, `clip_BF` -1 for an image, both weights 0 for a target.
    Whatever else stands in a padding place changes neither loss nor gradient.
    """

    frames_BFHWC: Array  # uint8. Images of the row; two cameras a step are two images. Normalised on the device.
    frame_weight_BF: Array  # f32. Weight of the image in the MAE loss; 0 for padding and repeated images.
    clip_BF: Array  # int32. The clip an image belongs to within its row; each its own if frame-level; -1 for padding.
    token_BS: Array  # int32. Token id; 0 where the slot is visual.
    visual_BS: Array  # int32. Index f * V + v into the row's flattened visual tokens; -1 where the slot is a token.
    segment_BS: Array  # int32. The packed sample a slot belongs to, from 1; 0 for padding.
    position_BS: Array  # int32. Position of the slot within its sample, from 0.
    slot_BT: Array  # int32. The slot whose output predicts.
    target_BT: Array  # int32. The token id it is to predict.
    language_weight_BT: Array  # f32. Weight of the target in the language loss.
    action_weight_BT: Array  # f32. Weight of the target in the action loss.
    choice_BT: Array  # int32. State of the domain's automaton where it allows several ids (a choice); else -1.
    denominator_BT: Array  # f32. |W| + sum_t (|V_t| + |A_t|) of the target's sample (paper eq. 5), 1 for padding.
    denominator_BF: Array  # f32. The same for the image's sample.
    domain_BS: Array  # int32. Index of the domain, for losses and metrics by domain.
    domain_BF: Array  # int32.
    domain_BT: Array  # int32.
    seed_B: Array  # uint32. Derived from the sample: its masks and dropout follow it and the step, not the host.
    label_B: Array  # int32. Class label of a clip, -1 for none.

    @property
    def rows(self) -> int:
        """B, the number of rows."""
        return self.token_BS.shape[0]

    @classmethod
    def spec(cls, size: RowSize, rows: int) -> Batch:
        """A Batch of `jax.ShapeDtypeStruct`, for `jax.eval_shape` and ahead-of-time compilation."""
        B, F, S, T = rows, size.frames, size.slots, size.targets
        image = (size.image_size, size.image_size, 3)
        shapes = {"BFHWC": (B, F, *image), "BF": (B, F), "BS": (B, S), "BT": (B, T), "B": (B,)}
        fields = {}
        for field in dataclasses.fields(cls):
            stem, dims = field.name.rsplit("_", 1)
            dtype = np.float32 if stem.endswith(("weight", "denominator")) else np.int32
            dtype = {"frames": np.uint8, "seed": np.uint32}.get(stem, dtype)
            fields[field.name] = jax.ShapeDtypeStruct(shapes[dims], dtype)
        return cls(**fields)

    @classmethod
    def padding(cls, size: RowSize, rows: int) -> Batch:
        """A Batch of NumPy arrays in which every place is padding, to be filled in by the layout."""
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), cls.spec(size, rows))
        one = {name: np.ones_like(getattr(blank, name)) for name in ("denominator_BT", "denominator_BF")}
        none = {name: np.full_like(getattr(blank, name), -1) for name in ("clip_BF", "visual_BS", "choice_BT",
                                                                            "label_B")}
        return dataclasses.replace(blank, **one, **none)

    @classmethod
    def fake(cls, size: RowSize, rows: int, *, visual_tokens: int, vocabulary_size: int, clip_length: int = 1,
             domains: int = 1, seed: int = 0) -> Batch:
        """A valid random batch of one sample a row, for tests, benchmarks and compilation.

        Args:
            size: the row; `slots` must hold all visual tokens and at least two tokens more.
            rows: B.
            visual_tokens: V, visual tokens of an image.
            vocabulary_size: ids are drawn below it.
            clip_length: images a clip; more than one asks for a video model.
            domains: rows take the domains 0 .. domains - 1 in turn.
            seed: of the random numbers.

        Returns:
            NumPy arrays: a third of the text first, then images each followed by their share of the remaining tokens.
            In a clip of several images only the first carries the shared CLS token.

        Raises:
            ValueError: if the row is too short.
        """
        rng = np.random.default_rng(seed)
        visual_index, images = [], []
        for f in range(size.frames):
            first = 0 if f % clip_length == 0 else 1  # the CLS is shared by the clip and stands once
            images.append(range(f * visual_tokens + first, (f + 1) * visual_tokens))
        tokens = size.slots - sum(len(image) for image in images)
        if tokens < 2:
            raise ValueError(f"slots={size.slots} leave {tokens} token slots beside {size.frames} images of "
                             f"{visual_tokens} visual tokens; at least 2 are needed")
        text = max(1, tokens // 3)
        shares = np.array_split(np.arange(tokens - text), size.frames)
        visual_index = [-1] * text
        for image, share in zip(images, shares, strict=True):
            visual_index += [*image, *[-1] * len(share)]
        visual_S = np.asarray(visual_index, np.int32)
        token_places = np.flatnonzero(visual_S < 0)[1:]  # every token but the first is predicted by the slot before it
        token_places = token_places[: size.targets]
        used = len(token_places)

        batch = cls.padding(size, rows)
        batch.frames_BFHWC[:] = rng.integers(0, 256, batch.frames_BFHWC.shape, dtype=np.uint8)
        batch.frame_weight_BF[:] = 1.0
        batch.clip_BF[:] = np.arange(size.frames) // clip_length
        batch.token_BS[:] = np.where(visual_S < 0, rng.integers(0, vocabulary_size, batch.token_BS.shape), 0)
        batch.visual_BS[:] = visual_S
        batch.segment_BS[:] = 1
        batch.position_BS[:] = np.arange(size.slots)
        batch.slot_BT[:, :used] = token_places - 1
        batch.target_BT[:, :used] = batch.token_BS[:, token_places]
        batch.language_weight_BT[:, :used] = token_places < text
        batch.action_weight_BT[:, :used] = token_places >= text
        batch.choice_BT[:, :used] = np.where(token_places >= text, 0, -1)
        denominator = used + size.frames * (visual_tokens - 1)
        batch.denominator_BT[:], batch.denominator_BF[:] = denominator, denominator
        for name in ("domain_BS", "domain_BF", "domain_BT"):
            getattr(batch, name)[:] = (np.arange(rows) % domains)[:, None]
        batch.seed_B[:] = rng.integers(0, 2**32, rows, dtype=np.uint32)
        return batch
