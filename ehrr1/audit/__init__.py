"""Check labels, contexts and times by independent rules and readers."""
