"""The network: CLIP vision transformer, connector, OPT decoder, MAE decoder, and the agent that joins them."""
