"""Looking at prepared data: check, show, statistics."""
