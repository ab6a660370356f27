"""The agent in PyTorch: its model, its folder, its tensors."""
