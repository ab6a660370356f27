"""A policy behind a websocket: `python -m agent_jax.serve --checkpoint DIR`; `agent_jax.client` is its other end."""
