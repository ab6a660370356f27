"""A web page on this machine where a person watches an agent act, takes over, and teaches it."""
