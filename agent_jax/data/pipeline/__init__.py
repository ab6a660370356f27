"""From episodes to batches: windows, packing into rows, mixing of domains, loading."""
