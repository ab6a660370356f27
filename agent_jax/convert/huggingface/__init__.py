"""Loads Hugging Face's CLIP and OPT weights into the agent."""
