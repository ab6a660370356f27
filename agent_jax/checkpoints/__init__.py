"""Checkpoints: arrays, meta data, retention, restoring."""
