"""Conversion of weights from Hugging Face, to and from PyTorch, with a parity check of the results."""
