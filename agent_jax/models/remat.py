"""What the backward pass finds saved, and what it computes again: `config.model.remat`."""

from __future__ import annotations

from typing import Any

import jax

SAVED = "matmul"  # name of what `remat="dots"` saves: the outputs of Dense


# Of a flash kernel the output and a number or two a query are saved: little, and it is not run again.
REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(SAVED),
        lambda primitive, *_, **__: primitive.name.startswith("dot_product_attention_fwd")),  # cuDNN's
    "full": None,
}
