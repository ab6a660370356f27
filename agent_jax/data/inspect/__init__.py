"""Commands that look at prepared data: check, show, stats."""
