"""Comparing the agent with PyTorch, number by number."""
