"""Pictures: what an agent did, and what its encoder's masked autoencoder sees."""
