"""Acting: observations are prepared, laid out as rows and decoded into actions. `Policy` is the room's face."""

from __future__ import annotations

from agent_jax.policy.policy import Policy

__all__ = ["Policy"]
