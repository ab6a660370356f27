"""Attention and matmuls for CPUs."""
