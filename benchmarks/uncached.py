"""Acting without a cache: for every id of an action, the whole row of the training layout through the whole model.

The reference for cached acting: of act_latency.py and of tests/policy/test_policy.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax.batch import Batch
from agent_jax.config import Config
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Window, lay_out_prefix, row_size, stack
from agent_jax.models.agent import Agent, Params
from agent_jax.runtime.compiler_options import compiler_options


class Uncached:
    """Logits of the next id of windows that end in a partial action."""

    def __init__(self, config: Config, domain: Domain):
        """Of a run's config and a domain with actions."""
        assert domain.spec is not None
        self._spec, self._patches = domain.spec, config.model.vision.patches
        self._size = row_size([domain], 1 + self._patches, domain.images, config.model.language.positions)
        agent = Agent(config.model)
        legal_A = jnp.asarray(domain.spec.automaton.ids_A)

        def logits_of_actions(params: Params, batch: Batch) -> jax.Array:
            output: Any = agent.apply({"params": params}, batch)
            return output.logits_BTK[:, 0, legal_A]

        options = compiler_options(jax.local_devices()[0], config.model.dtype)
        self._logits = jax.jit(logits_of_actions, compiler_options=options)

    def logits(self, params: Params, windows: Sequence[Window]) -> np.ndarray:
        """f32 (n, A) over the ids of the automaton, legal or not."""
        rows = [lay_out_prefix(window, self._size, 1 + self._patches, self._patches) for window in windows]
        return np.asarray(self._logits(params, stack(rows)))
