"""The client of the policy server: `from agent_jax.client import Client`; imports neither jax nor the model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_jax.client.connection import BadRequestError, Client, ServerError

__all__ = ["BadRequestError", "Client", "ServerError"]


def __getattr__(name: str) -> Any:
    """Import the connection, and websockets with it, at the first access: `agent_jax.policy` uses only `pictures`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agent_jax.client import connection

    return getattr(connection, name)
