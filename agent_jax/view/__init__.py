"""Pages that show runs, samples, attention, rollouts and reconstructions: `python -m agent_jax.view`."""
