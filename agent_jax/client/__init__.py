"""The robot's end of the policy server: `from agent_jax.client import Client`; imports neither jax nor the model."""

from agent_jax.client.connection import BadRequestError, Client, ServerError

__all__ = ["BadRequestError", "Client", "ServerError"]
