"""Episodes on disk: records, splits, and statistics of their numbers."""
