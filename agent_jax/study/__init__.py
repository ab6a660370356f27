"""Studies: several training runs by a plan that is fixed before they begin, and what they show."""
