"""agent_jax: the Interactive Agent Foundation Model (arXiv 2402.05929) in JAX and Flax."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_jax.config import presets
    from agent_jax.policy import Policy

__all__ = ["Policy", "__version__", "presets"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Policy` to act with, and `presets` to write config files with; imported when they are first named."""
    if name == "Policy":
        return importlib.import_module("agent_jax.policy").Policy
    if name == "presets":
        return importlib.import_module("agent_jax.config.presets")
    raise AttributeError(f"module 'agent_jax' has no attribute {name!r}")
