"""From a directory of recorded episodes to `Batch`, with NumPy on the host: store, windows, packing, layout, loader."""
