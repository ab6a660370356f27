"""How good a trained agent is: acting in a simulator, with intervals."""
