"""Parity checks: compare the agent with PyTorch."""
