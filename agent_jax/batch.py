"""The contract between data and model: a batch of laid-out rows.

A row has S slots. A slot is a token (an embedding lookup) or a visual token (of the encoder's output), as given by
`token_BS` and `visual_BS`:

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

PADDING_CLIP = -1  # clip_BF of an empty image.


@dataclasses.dataclass(frozen=True)
class RowSize:
    """The static size of every row of a batch."""

    frames: int  # F
    image_size: int  # height and width in pixels
    slots: int  # S
    targets: int  # T


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of rows, with exactly the dtypes of `Batch.spec`, for which steps are compiled.

    Padding has `segment_BS` 0 for a slot, `clip_BF` -1 for an image, and both weights 0 for a target. Its other fields
    change neither loss nor gradient.
    """

    frames_BFHWC: Array  # uint8. Images of the row, one for each camera and step. Normalised on the device.
    frame_weight_BF: Array  # f32. Weight of the image in the MAE loss; 0 for padding and repeated images.
    clip_BF: Array  # int32. The clip of the image within its row; without video each image is a clip. -1 for padding.
    token_BS: Array  # int32. Token id; 0 where the slot is visual.
    visual_BS: Array  # int32. Index f * V + v into the row's flattened visual tokens; -1 where the slot is a token.
    segment_BS: Array  # int32. The sample of the slot within its row, from 1; 0 for padding.
    position_BS: Array  # int32. Position of the slot within its sample, from 0.
    slot_BT: Array  # int32. The slot whose output predicts the target.
    target_BT: Array  # int32. The token id to predict.
    language_weight_BT: Array  # f32. Weight of the target in the language loss.
    action_weight_BT: Array  # f32. Weight of the target in the action loss.
    choice_BT: Array  # int32. State of the domain's automaton if it allows several ids there; else -1.
    denominator_BT: Array  # f32. |W| + sum_t (|V_t| + |A_t|) of the target's sample (paper eq. 5); 1 for padding.
    denominator_BF: Array  # f32. The same for the image's sample.
    domain_BS: Array  # int32. Index of the domain, for losses and metrics by domain.
    domain_BF: Array  # int32.
    domain_BT: Array  # int32.
    seed_B: Array  # uint32. Derived from the samples; masks and dropout depend on it and the step, not on the host.
    label_B: Array  # int32. Class label of the clip; -1: no label.

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
        """A Batch of NumPy arrays with padding only, for the layout to fill in."""
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), cls.spec(size, rows))
        values = {"denominator_BT": 1, "denominator_BF": 1, "clip_BF": PADDING_CLIP, "visual_BS": -1, "choice_BT": -1,
                  "label_B": -1}
        return dataclasses.replace(blank, **{name: np.full_like(getattr(blank, name), value)
                                             for name, value in values.items()})

    @classmethod
    def fake(cls, size: RowSize, rows: int, *, visual_tokens: int, vocabulary_size: int, clip_length: int = 1,
             domains: int = 1, seed: int = 0) -> Batch:
        """A valid random batch of one sample a row, for tests, benchmarks and compilation.

        Args:
            size: the row; `slots` must be at least all visual tokens and two more.
            rows: B.
            visual_tokens: V, visual tokens of an image.
            vocabulary_size: upper bound of the ids.
            clip_length: images of a clip; more than one needs a video model.
            domains: row r is of domain r % domains.
            seed: of the random numbers.

        Returns:
            NumPy arrays: a third of the tokens as text, then the images, each followed by its share of the others. Only
            the first image of a clip has the CLS token.

        Raises:
            ValueError: the row is too short.
        """
        rng = np.random.default_rng(seed)
        images = []
        for f in range(size.frames):
            first = 0 if f % clip_length == 0 else 1  # the images of a clip share a CLS token
            images.append(range(f * visual_tokens + first, (f + 1) * visual_tokens))
        tokens = size.slots - sum(len(image) for image in images)
        if tokens < 2:
            raise ValueError(f"slots={size.slots}: found room for {tokens} tokens next to {size.frames} images of "
                             f"{visual_tokens} visual tokens, expected at least 2; use more slots")
        text = max(1, tokens // 3)
        shares = np.array_split(np.arange(tokens - text), size.frames)
        visual_index = [-1] * text
        for image, share in zip(images, shares, strict=True):
            visual_index += [*image, *[-1] * len(share)]
        visual_S = np.asarray(visual_index, np.int32)
        token_places = np.flatnonzero(visual_S < 0)[1:]  # the slot before predicts every token except the first
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
