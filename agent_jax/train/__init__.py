"""Training: the loop, the step, its state, and what a run writes."""
