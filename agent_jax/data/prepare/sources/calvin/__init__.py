"""CALVIN: a folder of .npz files."""
