"""Define tasks, build the index of samples and their contexts."""
