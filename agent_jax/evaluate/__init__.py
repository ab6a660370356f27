"""Evaluation of trained agents, in a simulator and on recorded data."""
