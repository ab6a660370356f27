"""Plan a run for a described machine: memory, communication and time, without the machine."""
