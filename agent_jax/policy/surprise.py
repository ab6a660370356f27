"""Surprise: how badly the MAE decoder reconstructs what the policy sees.

    image --M masks--> visible patches --encoder, MAE decoder--> hidden patches --squared error, mean--> surprise

The error of the training loss (arXiv 2402.05929, eq. 3), in normalised pixels, of one image at a time. The masks follow
from a seed and are the same for every image, so the value of an image does not depend on the others of a call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax.config import Config
from agent_jax.models.agent import Params
from agent_jax.policy.buckets import split
from agent_jax.policy.parameters import acting_params
from agent_jax.policy.row_reader import RowReader

MASKS = 4  # by default


def mae_params(params: Mapping[str, Any], dtype: Any) -> Callable[[], Params]:
    """Returns the parameters of the MAE decoder as acting reads them; cast when they are first asked for.

    Acting alone does not need them. No other parameters are held.
    """
    held = {name: part for name, part in params.items() if name == "mae"}
    return functools.cache(lambda: acting_params(held, dtype, ("mae",)))


class SurpriseMeter:
    """The reconstruction error of images by one model; holds no parameters."""

    def __init__(self, config: Config) -> None:
        """Prepare; the first call with a number of masks compiles."""
        self._reader = RowReader(config, video=False)
        self._compiled: dict[int, Any] = {}  # by number of masks

    def _errors(self, masks: int) -> Any:
        """The compiled function (params, frames_BHWC, seed) -> mean error of each image over its masks, f32."""
        if masks not in self._compiled:

            def errors(params: Params, frames_BHWC: jax.Array, seed: jax.Array) -> jax.Array:
                images = frames_BHWC.shape[0]
                keys_M = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(masks))
                # A row holds one image under one mask; the masks of an image follow each other.
                frames_RFHWC = jnp.repeat(frames_BHWC[:, None], masks, axis=0)
                clip_RF, keys_R = jnp.zeros((images * masks, 1), jnp.int32), jnp.tile(keys_M, images)
                found: Any = self._reader.agent.apply({"params": params}, frames_RFHWC, clip_RF, keys_R,
                                                      method="reconstruct")
                _, predicted_RFIX, pixels_RFIX, _ = found
                error_R = jnp.mean(jnp.square(predicted_RFIX - pixels_RFIX), axis=(1, 2, 3))
                return jnp.mean(error_R.reshape(images, masks), axis=1)

            self._compiled[masks] = jax.jit(errors, compiler_options=self._reader.compiler_options)
        return self._compiled[masks]

    def __call__(self, params: Params, frames: Sequence[np.ndarray], *, masks: int = MASKS, seed: int = 0
                 ) -> np.ndarray:
        """The surprise of each image, f32 (n,).

        Args:
            params: `vision` and `mae`, as acting reads them.
            frames: prepared images, uint8 (size, size, 3).
            masks: number of masks whose errors are averaged.
            seed: of the masks.

        Raises:
            ValueError: no MAE decoder, `masks` below 1, a negative seed, or an error that is not finite.
        """
        if "mae" not in params:
            raise ValueError("surprise: the parameters have no MAE decoder (mae/...), expected those of a training run")
        if masks < 1:
            raise ValueError(f"surprise: masks={masks}, expected at least 1")
        if seed < 0:
            raise ValueError(f"surprise: seed={seed}, expected 0 or more")
        found = []
        for members, rows in split(frames):
            batch = np.zeros((rows, *members[0].shape), np.uint8)
            batch[: len(members)] = members
            found.append(np.asarray(self._errors(masks)(params, batch, np.uint32(seed)))[: len(members)])
        errors = np.concatenate(found) if found else np.zeros(0, np.float32)
        if not np.isfinite(errors).all():
            raise ValueError("surprise: the reconstruction is NaN or infinite, expected finite numbers: the parameters "
                             "are damaged or their training diverged; load another step")
        return errors
