"""Episodes on disk: records, splits, statistics of their numbers."""
