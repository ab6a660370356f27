"""Weights in: Hugging Face folders of CLIP and OPT, and the proof that they compute the same here as in PyTorch."""
