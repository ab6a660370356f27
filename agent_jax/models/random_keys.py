"""Random keys of a run: all of them follow from config.seed.

fold_in(key(seed), purpose of the run) --fold_in the step, in training--> fold_in(purpose of a row) --> fold_in(row)
"""

from __future__ import annotations

import jax

INIT_KEY, STEP_KEY, VALIDATION_KEY = range(3)  # purposes of a run's keys
MASK_KEY, DROPOUT_KEY, AUGMENTATION_KEY = range(3)  # purposes of a row's keys


def purpose_key(seed: int, purpose: int) -> jax.Array:
    """The key of one purpose of a run: `INIT_KEY`, `STEP_KEY` or `VALIDATION_KEY`."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def row_keys(key: jax.Array, seed_B: jax.Array, purpose: int) -> jax.Array:
    """A key for each row, from the step's key, the purpose and the row's own seed."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, purpose), seed_B)
