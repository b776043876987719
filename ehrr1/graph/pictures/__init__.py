"""One sample to look at: a figure and an interactive page."""
