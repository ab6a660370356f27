"""Reads the folder that `convert to-pytorch` writes: the same agent as a checkpoint, in safetensors and JSON."""
