"""Parse and score answers: sets, texts, probabilities of yes, proper scores."""
