"""Every field with its default: the paper's model and recipe, in the `mean` form of the loss. Names no data.

    python -m agent_jax.train --config configs/default.py --config.FIELD=VALUE ...

Variants: `configs/default.py:paper` (fixed sin-cos positions, all visual tokens, eq. 5) and `configs/default.py:code`
(CLIP's positions, visible tokens, means) are the two readings where the paper and its authors' code differ.
The fields and what they mean: agent_jax/config/schema.py.
"""

from ml_collections import ConfigDict

from agent_jax.config import presets


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "", "paper" or "code"."""
    return presets.build(variant, {"": [], "paper": [presets.paper], "code": [presets.code]})
