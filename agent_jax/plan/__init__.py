"""What a run would need and take on a described machine, before anybody pays for it; `python -m agent_jax.plan`."""
