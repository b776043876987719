"""Models: sizes, loading, attention over token forests, log-probabilities, memory and planning."""
