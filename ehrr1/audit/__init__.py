"""Check labels, contexts and times by rules and readers of its own."""
