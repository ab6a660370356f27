r"""The agent: encode the images, gather the row, attend causally, read the targets.

    frames -> patches -> vision(all or visible) -> connector -> gather by visual_BS \\
                                                   tokens -> embed by token_BS    --> language -> slot_BT -> logits_BTK
    frames -> patches -> vision(visible) -> mae -> predicted_BFIX
    CLS of the row's first clip -> classifier -> classes_BY     (config.model.classes only)

Whatever the domain, this is the only path; which slot holds what is the host's decision (batch.py).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from agent_jax.batch import Batch, RowSize
from agent_jax.config import ModelConfig
from agent_jax.models.compute import Compute
from agent_jax.models.language import LanguageModel
from agent_jax.models.mae import MaeDecoder, PatchMask, kept_patches, random_mask
from agent_jax.models.transformer import Dense
from agent_jax.models.vision import VisionEncoder, patchify

Params = dict[str, Any]  # nested dict of f32 arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AgentOutput:
    """What the losses need, all in f32. The three after the logits are None without a mask."""

    logits_BTK: jax.Array
    predicted_BFIX: jax.Array | None = None  # normalised pixels of the hidden patches, as painted
    pixels_BFIX: jax.Array | None = None  # and as they are
    mask: PatchMask | None = None
    classes_BY: jax.Array | None = None  # logits of the class of the row's first clip; None without a class head


def training_visual_tokens(config: ModelConfig) -> int:
    """V that the rows of a training batch are laid out for: 1 + P, or 1 + the visible patches."""
    patches = config.vision.patches
    return 1 + (patches if config.visual_tokens == "all" else kept_patches(patches, config.mae.mask_ratio))


class Agent(nn.Module):
    """The Interactive Agent Foundation Model (Durante et al., 2024), arXiv 2402.05929, eq. 1."""

    config: ModelConfig
    compute: Compute | None = None  # None: what the config asks for, with XLA's attention

    def setup(self) -> None:
        """Encoder, connector, language model and MAE decoder."""
        c, compute = self.config, self.compute or Compute.of(self.config)
        grid = c.vision.image_size // c.vision.patch_size
        self.vision = VisionEncoder(c.vision, compute)
        self.connector = Dense((c.language.width,), compute)
        self.language = LanguageModel(c.language, compute)
        if c.classes:
            self.classifier = Dense((c.classes,), dataclasses.replace(compute, dtype=compute.f32))
        self.mae = MaeDecoder(c.mae, c.vision.patch_size**2 * 3, grid, compute)

    def __call__(
        self,
        batch: Batch,
        *,
        mask_keys_B: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
        visual_tokens: str = "all",
    ) -> AgentOutput:
        """Logits of the targets and, with a mask, the painted patches.

        Args:
            batch: rows laid out for V = 1 + P visual tokens, or 1 + the visible patches if `visual_tokens="visible"`.
            mask_keys_B: a key for each row's patch masks; None: no MAE pass.
            dropout_keys_B: a key for each row's dropout; None: none.
            visual_tokens: what the language model sees: "all" encodes every patch in a pass of its own, "visible"
                shares the masked pass and so needs `mask_keys_B`.
        """
        c = self.config.vision
        patches_BFPX = patchify(batch.frames_BFHWC, c.patch_size)
        mask = tokens_BFVD = predicted = pixels = None
        if mask_keys_B is not None:
            tokens_BFVD, predicted, pixels, mask = self._masked_pass(patches_BFPX, batch.clip_BF, mask_keys_B)
        if visual_tokens == "all":
            tokens_BFVD, _ = self.vision(patches_BFPX, batch.clip_BF)
        elif tokens_BFVD is None:
            raise ValueError('visual_tokens="visible" needs mask_keys_B: only a masked pass has visible tokens')
        logits_BTK = self.read_row(batch, self.connector(tokens_BFVD), dropout_keys_B)
        classes_BY = self.classify(tokens_BFVD, batch.clip_BF) if self.config.classes else None
        return AgentOutput(logits_BTK, predicted, pixels, mask, classes_BY)

    def _masked_pass(self, patches_BFPX: jax.Array, clip_BF: jax.Array, mask_keys_B: jax.Array
                     ) -> tuple[jax.Array, jax.Array, jax.Array, PatchMask]:
        mask = random_mask(mask_keys_B, clip_BF, self.config.vision.patches, self.config.mae.mask_ratio)
        tokens_BFVD, _ = self.vision(patches_BFPX, clip_BF, mask.keep_BFJ)
        predicted_BFIX = self.mae(tokens_BFVD, mask)
        pixels_BFIX = jnp.take_along_axis(patches_BFPX, mask.hide_BFI[..., None], axis=2)
        return tokens_BFVD, predicted_BFIX, pixels_BFIX, mask

    def reconstruct(self, frames_BFHWC: jax.Array, clip_BF: jax.Array, mask_keys_B: jax.Array
                    ) -> tuple[jax.Array, jax.Array, jax.Array, PatchMask]:
        """The masked pass alone: tokens of the visible patches, predicted and true pixels of the others, the mask."""
        return self._masked_pass(patchify(frames_BFHWC, self.config.vision.patch_size), clip_BF, mask_keys_B)

    def classify(self, tokens_BFVD: jax.Array, clip_BF: jax.Array) -> jax.Array:
        """classes_BY, logits of the class of each row's first clip, from the CLS of its images (B, F, V, D).

        In a model with temporal attention they are copies of one CLS. In one without, each is of its own image, and
        their mean stands for the clip. Logits are f32, or of the model's type where that is wider.
        """
        f32 = jnp.promote_types(tokens_BFVD.dtype, jnp.float32)
        member_BF = (clip_BF == clip_BF[:, :1]).astype(f32)
        sum_BD = jnp.einsum("BF,BFD->BD", member_BF, tokens_BFVD[:, :, 0].astype(f32))
        return self.classifier(sum_BD / jnp.sum(member_BF, axis=1, keepdims=True))

    def classify_images(self, frames_BFHWC: jax.Array, clip_BF: jax.Array) -> jax.Array:
        """classes_BY, as `classify`, from the unmasked images themselves."""
        return self.classify(self.vision(patchify(frames_BFHWC, self.config.vision.patch_size), clip_BF)[0], clip_BF)

    def encode(self, frames_BFHWC: jax.Array, clip_BF: jax.Array) -> jax.Array:
        """Projected visual tokens (B, F, 1 + P, D) of unmasked images."""
        patches_BFPX = patchify(frames_BFHWC, self.config.vision.patch_size)
        return self.connector(self.vision(patches_BFPX, clip_BF)[0])

    def embed_row(self, batch: Batch, visual_BFVD: jax.Array) -> jax.Array:
        """x_BSD, the language model's input: token embeddings and visual tokens, each in its slot."""
        B, F, V, D = visual_BFVD.shape
        flat_BVD = visual_BFVD.reshape(B, F * V, D)
        index_BS = jnp.clip(batch.visual_BS, 0, F * V - 1)
        visual_BSD = jnp.take_along_axis(flat_BVD, index_BS[..., None], axis=1)
        token_BSD = self.language.embed(batch.token_BS)
        return jnp.where((batch.visual_BS >= 0)[..., None], visual_BSD, token_BSD)

    def read_row(self, batch: Batch, visual_BFVD: jax.Array, dropout_keys_B: jax.Array | None = None) -> jax.Array:
        """logits_BTK of a row whose images are already encoded and projected."""
        x_BSD = self.embed_row(batch, visual_BFVD)
        hidden_BSD, _ = self.language(x_BSD, batch.position_BS, batch.segment_BS, dropout_keys_B)
        hidden_BTD = jnp.take_along_axis(hidden_BSD, jnp.clip(batch.slot_BT, 0, None)[..., None], axis=1, mode="clip")
        return self.language.logits(hidden_BTD)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh f32 parameters as a plain nested dict; pure, so it can be shape-evaluated or jitted with shardings."""
    V = 1 + config.vision.patches
    size = RowSize(frames=1, image_size=config.vision.image_size, slots=V + 2, targets=1)
    batch = Batch.fake(size, 1, visual_tokens=V, vocabulary_size=1)
    keys_B = key[None]
    variables: Any = Agent(config).init(key, batch, mask_keys_B=keys_B)
    return variables["params"]


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters; nothing is computed."""
    return jax.tree.map(lambda leaf: leaf, _traced_params(config))  # in containers of the caller's own


@functools.lru_cache(maxsize=4)  # tracing configs/babyai.py's takes 0.4 s beside other work; a start asks five times
def _traced_params(config: ModelConfig) -> Params:
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
