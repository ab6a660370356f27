"""CLIP and OPT weights of Hugging Face, loaded into the agent."""
