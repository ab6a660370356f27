"""A policy server on a websocket: `python -m agent_jax.serve --checkpoint DIR`; its client is `agent_jax.client`."""
