"""agent_jax: the Interactive Agent Foundation Model (arXiv 2402.05929) in JAX and Flax."""

__version__ = "0.1.0"
