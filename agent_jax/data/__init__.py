"""From a directory of recorded episodes to `Batch`: store, windows, packing, layout, loader. NumPy on the host only."""
