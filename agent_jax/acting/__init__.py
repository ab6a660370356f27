"""How a policy acts: observations are prepared, laid out and decoded into actions (see policy.py)."""
