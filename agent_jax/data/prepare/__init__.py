"""Other formats converted into a store of episodes."""
