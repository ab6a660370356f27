"""The parameters as acting reads them: the parts it needs, layers apart, and what products alone read in their dtype.

Training keeps parameters in f32 and casts what a product reads at each step. That is little beside a training step, but
a fifth or more of an action, and a policy would hold twice the memory. A CPU without products of bfloat16 makes their
operands f32 (models/cpu/matmul.py), so there they stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax.models.agent import Params
from agent_jax.models.transformer import layers_apart
from agent_jax.runtime.processor import lacks_bfloat16_products

_PARTS = ("vision", "connector", "language", "classifier")  # the last one where the model has classes
_CAST = ("kernel", "token_embedding")  # nothing is done with them before they are cast to the compute dtype


def acting_params(params: Mapping[str, Any], dtype: Any, parts: Sequence[str] = _PARTS) -> Params:
    """Of a whole agent's parameters, on the default device and not committed to it.

    What is computed from committed ones is committed as well, and a jitted function is compiled anew for every mixture
    of committed arguments and fresh ones, such as the blanks that fill up a batch: seconds in the middle of an episode.

    Args:
        params: of the agent, on any devices.
        dtype: the compute dtype; kernels and the token table of a wider one are cast to it.
        parts: to take; those that are missing are left out.
    """
    if jax.local_devices()[0].platform == "cpu" and lacks_bfloat16_products():
        dtype = np.float32
    needed = layers_apart({name: jax.tree.map(np.asarray, params[name]) for name in parts if name in params})

    def cast(path: Any, leaf: np.ndarray) -> jax.Array:
        only_in_products = path[-1].key in _CAST and path[0].key != "classifier"  # which computes in f32
        wider = leaf.dtype.itemsize > np.dtype(dtype).itemsize
        return jnp.asarray(leaf.astype(dtype) if only_in_products and wider else leaf)

    return jax.tree_util.tree_map_with_path(cast, needed)
