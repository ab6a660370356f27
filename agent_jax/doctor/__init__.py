"""Examines a machine and data sets before a run: `python -m agent_jax.doctor`."""
