"""Draw one sample as a figure and a page."""
